"""A tenant's quota on what it stores, held before and while an upload's bytes come in.

Owns the order: what is held already, then the declared length, then, once it is known, the name.
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
from server.quotas.keeper import Holdings, Quotas


@dataclass(frozen=True, slots=True)
class Room:
    """What one upload was granted."""

    _quotas: Quotas
    _tenant: str
    _held: Holdings

    def check_name(self, name: str) -> None:
        """`name` as the tenant spells it. Raises QuotaExceeded when this would be one adapter too many."""
        full = qualified(self._tenant, name.removeprefix(qualified(self._tenant, "")))
        self._quotas.check_name(self._tenant, self._held, full)


@asynccontextmanager
async def storing(declared: int, services: Services, caller: Principal) -> AsyncIterator[Room]:
    """Room for one upload of `declared` bytes. Raises RateLimited and QuotaExceeded, before any of them are read."""
    quotas, tenant = services.meter.quotas, caller.tenant
    held = Holdings(frozenset(), 0)
    if quotas.holds_storage(tenant):
        held = holdings(await in_thread(services.whole.every), tenant)
    with quotas.upload(tenant, held, declared):
        yield Room(quotas, tenant, held)


def declared_bytes(http: HttpRequest, most: int) -> int:
    """What a body says it will hold; one without a length counts as the largest that may be sent."""
    length = http.headers.get("content-length", "")
    return min(int(length), most) if length.isascii() and length.isdigit() and len(length) < 20 else most
