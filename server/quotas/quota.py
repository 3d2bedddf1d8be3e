"""What one tenant may use, as it stands in the settings file.

Owns the limits' names and meanings. Knows nothing of counting.
"""

from typing import Annotated

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from adapters.device_quotas import DeviceQuota

Count = Annotated[int, Field(ge=1)]


class Quota(BaseModel):
    """A limit that is absent is no limit. `weight` is the tenant's share of the batch beside the others'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    uploads_per_minute: Count | None = None
    adapters: Annotated[int, Field(ge=0)] | None = None
    stored_bytes: Annotated[ByteSize, Field(ge=0)] | None = None
    device_adapters: Count | None = None
    device_bytes: Annotated[ByteSize, Field(gt=0)] | None = None
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0

    @property
    def device_quota(self) -> DeviceQuota:
        return DeviceQuota(self.device_bytes, self.device_adapters)

    def overridden(self, by: "Quota") -> "Quota":
        """These limits, but for those that `by` sets."""
        return self.model_copy(update={name: getattr(by, name) for name in by.model_fields_set})
