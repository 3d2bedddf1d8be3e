"""What each tenant may have on the device at once, and what counts for it.

Owns the counting only: it moves nothing, and knows no budgets but the tenants'. An adapter that several tenants use
counts for each of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from adapters.manifest import AdapterId


class AdapterUse(NamedTuple):
    """An adapter, and the tenant whose requests want it; None for the server itself, which pins and merges."""

    adapter: AdapterId
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceQuota:
    """What one tenant may have on the device. None is no limit."""

    bytes: int | None = None
    adapters: int | None = None

    @property
    def limited(self) -> bool:
        return self.bytes is not None or self.adapters is not None

    def exceeded_by(self, bytes: int, adapters: int) -> bool:
        """Whether that much would be too much."""
        return (self.bytes is not None and bytes > self.bytes) or (
            self.adapters is not None and adapters > self.adapters
        )

    def fraction(self, bytes: int, adapters: int) -> float:
        """What fraction of it that much is, of the bytes or of the adapters, whichever is more."""
        of_bytes = 0.0 if self.bytes is None else bytes / self.bytes
        of_adapters = 0.0 if self.adapters is None else adapters / self.adapters
        return max(of_bytes, of_adapters)


class DeviceQuotas:
    """Who has what on the device, each tenant's least recently used first. `default` holds for every tenant that is
    not in `tenants`.

    A tenant with a quota has an adapter from when it takes it until it gives it up for another, or until the adapter
    leaves the device. A tenant without one takes what it runs, so that nobody else's giving up costs it anything.
    """

    def __init__(self, default: DeviceQuota | None = None, tenants: Mapping[str, DeviceQuota] | None = None) -> None:
        self._default, self._tenants = default or DeviceQuota(), dict(tenants or {})
        self._held: dict[str, dict[AdapterId, int]] = {}

    # Queries

    @property
    def limits_anybody(self) -> bool:
        """Without limits nothing needs to be counted."""
        return self._default.limited or any(quota.limited for quota in self._tenants.values())

    def quota_of(self, tenant: str | None) -> DeviceQuota:
        return DeviceQuota() if tenant is None else self._tenants.get(tenant, self._default)

    def admits(self, use: AdapterUse) -> bool:
        """Whether the tenant may use the adapter once it is on the device."""
        return not self.quota_of(use.tenant).limited or use.adapter in self._held.get(use.tenant or "", {})

    def fits(self, use: AdapterUse, size: int) -> bool:
        """Whether the tenant's quota can ever hold `size` bytes."""
        return not self.quota_of(use.tenant).exceeded_by(size, 1)

    def held(self, tenant: str) -> dict[AdapterId, int]:
        """The adapters that count for a tenant, and their bytes."""
        return dict(self._held.get(tenant, {}))

    def fractions_used(self) -> tuple[float, ...]:
        """What fraction of their quotas the tenants use that have one and hold anything, the fullest first."""
        quotas = [(self.quota_of(tenant), held) for tenant, held in self._held.items() if held]
        parts = (quota.fraction(sum(held.values()), len(held)) for quota, held in quotas if quota.limited)
        return tuple(sorted(parts, reverse=True))

    def users(self, adapter: AdapterId) -> set[str]:
        return {tenant for tenant, held in self._held.items() if adapter in held}

    def counted(self) -> frozenset[AdapterId]:
        """The adapters that count for anybody."""
        return frozenset().union(*self._held.values())

    def room_for(self, use: AdapterUse, size: int, stays: Callable[[AdapterUse], bool]) -> tuple[AdapterId, ...] | None:
        """What the tenant gives up, least recently used first, to take this adapter; None if that is not enough."""
        quota, held = self.quota_of(use.tenant), self._held.get(use.tenant or "", {})
        bytes, count = sum(held.values()) + size, len(held) + 1
        leaving: list[AdapterId] = []
        for adapter, its in held.items():
            if not quota.exceeded_by(bytes, count):
                break
            if not stays(AdapterUse(adapter, use.tenant)):
                leaving.append(adapter)
                bytes, count = bytes - its, count - 1
        return None if quota.exceeded_by(bytes, count) else tuple(leaving)

    # Commands

    def take(self, use: AdapterUse, size: int) -> None:
        """It counts for the tenant from now on, as the most recently used."""
        if use.tenant is not None:
            held = self._held.setdefault(use.tenant, {})
            held.pop(use.adapter, None)
            held[use.adapter] = size

    def give_up(self, use: AdapterUse) -> None:
        self._held.get(use.tenant or "", {}).pop(use.adapter, None)

    def evicted(self, adapter: AdapterId) -> None:
        """It is not on the device any more, and counts for nobody."""
        for held in self._held.values():
            held.pop(adapter, None)

    def copy(self) -> "DeviceQuotas":
        other = DeviceQuotas(self._default, self._tenants)
        other._held = {tenant: dict(held) for tenant, held in self._held.items()}
        return other

    def check_integrity(self) -> None:
        """Assert that nobody has more than its quota."""
        for tenant, held in self._held.items():
            exceeded = self.quota_of(tenant).exceeded_by(sum(held.values()), len(held))
            assert not exceeded, f"{tenant} has more than its quota"
