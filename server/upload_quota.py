"""A tenant's quota on what it stores, held before and while an upload's bytes come in, and again when they are judged.

Owns the order: the rate, the declared length beside what is held already, then, once it is known, the name.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from adapters.naming import qualified
from server.deps import in_thread
from server.ports import Services
from server.principal import Principal
from server.quotas.holdings import holdings
from server.quotas.tenant_quotas import Holdings, UploadGrant


@dataclass(frozen=True, slots=True)
class UploadQuota:
    """What one upload was granted. Every question reads anew what the tenant holds: minutes may lie between two."""

    _granted: UploadGrant
    _services: Services
    _tenant: str

    async def begin(self) -> None:
        """Before a byte is read. Raises QuotaExceeded, RateLimited."""
        await self._check()
        self._granted.begin()

    async def keep(self, name: str) -> None:
        """`name`, as the tenant spells it, is taken until the upload ends. Raises QuotaExceeded."""
        self._granted.take_name(qualified(self._tenant, name.removeprefix(qualified(self._tenant, ""))))
        await self._check()

    async def end(self, name: str) -> None:
        """Before what came in is judged and stored under `name`. Raises QuotaExceeded, RateLimited."""
        await self.keep(name)
        self._granted.end()

    async def _check(self) -> None:
        ahead = self._granted.ahead()
        self._granted.check(await self._held(), ahead)

    async def _held(self) -> Holdings:
        if not self._services.meter.quotas.holds_storage(self._tenant):
            return Holdings(frozenset(), 0)
        return await in_thread(self._all)

    def _all(self) -> Holdings:
        catalog = self._services.server_catalog
        return holdings(catalog.every(), self._tenant, catalog.quarantined())


@asynccontextmanager
async def upload_quota(declared: int, services: Services, caller: Principal) -> AsyncIterator[UploadQuota]:
    """For one upload of `declared` bytes, which count for the tenant until the block ends."""
    with services.meter.quotas.upload(caller.tenant, declared) as granted:
        yield UploadQuota(granted, services, caller.tenant)


def declared_bytes(http: HttpRequest, most: int) -> int:
    """What a body says it will hold; one without a length counts as the largest that may be sent."""
    length = http.headers.get("content-length", "")
    return min(int(length), most) if length.isascii() and length.isdigit() and len(length) < 20 else most
