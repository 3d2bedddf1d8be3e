"""GET /v1/usage: what requests used, from the ledger.

Owns the route, and who may see whose rows. Every row comes from `rootstock usage` on the data directory.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from server.deps import PrincipalDep, RequireScope, ServicesDep, in_thread
from server.errors import NO_RETRY, ApiError, BadRequest
from server.principal import Scope
from server.usage.ledger import UsageFilter
from server.usage.table import as_json, read_time

router = APIRouter(tags=["usage"])

Time = Annotated[str | None, Query(max_length=40, description="ISO 8601; UTC unless it says otherwise.")]


@router.get("/v1/usage", dependencies=[Depends(RequireScope(Scope.READ))])
async def usage(
    services: ServicesDep,
    caller: PrincipalDep,
    since: Time = None,
    until: Time = None,
    tenant: Annotated[
        str | None, Query(max_length=128, description="On a server without keys: this one's only.")
    ] = None,
    after: Annotated[int, Query(ge=0, lt=1 << 63, description="The `next` of the page before.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> dict[str, Any]:
    """Rows in the order they were written; `next` is null on the last page. A key sees its own tenant's."""
    ledger = services.meter.ledger
    if ledger is None:
        message = "This server keeps no usage. Start it with --usage-ledger on."
        raise ApiError(404, message, code="no_ledger", headers=NO_RETRY)
    if caller.key:  # whatever its scopes: no key is the operator's, who has the data directory
        if tenant not in (None, caller.tenant):
            message = (
                "A key sees its own tenant's usage. `rootstock usage` on the server's data directory tells everybody's."
            )
            raise ApiError(403, message, type="permission_error", code="not_owner", headers=NO_RETRY)
        tenant = caller.tenant
    wanted = UsageFilter(_time(since, "since"), _time(until, "until"), tenant)
    rows = await in_thread(ledger.page, wanted, after, limit)
    following = rows[-1][0] if len(rows) == limit else None
    return {"object": "list", "data": [as_json(row) for _, row in rows], "next": following}


def _time(text: str | None, param: str) -> float | None:
    try:
        return None if text is None else read_time(text)
    except (ValueError, OverflowError):
        raise BadRequest("Write a time as 2026-11-25 or 2026-11-25T18:00:00Z.", param) from None
