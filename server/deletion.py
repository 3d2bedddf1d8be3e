"""Deleting an adapter, whichever route asks for it: with all its versions, or one of them.

Owns that order: what is merged stays, pins follow. Knows no request.
"""

from adapters.condition import Condition
from server.audit import note
from server.deps import in_thread
from server.errors import NO_RETRY, ApiError, BadRequest
from server.pins import follow_pins_if_possible
from server.ports import Services


async def delete_adapter(services: Services, name: str, asked: Condition | None = None) -> int:
    """The status: 200, or 202 when requests run on it.

    Raises UnknownAdapter, UnknownVersion, VersionInUse, NotOwner, ConditionFailed; 409 while it is merged under this
    name.
    """
    whole, number = _name_and_number(name)
    versions = await in_thread(services.tenant_catalog.own_versions, whole)
    if any(services.merges.has(services.worker, each) for each in versions if number in (None, each.number)):
        path = f"/v1/adapters/{whole}/merge"
        raise ApiError(409, f"This adapter is merged. DELETE {path} first.", code="merged", headers=NO_RETRY)
    if number is None:
        in_use = await in_thread(services.tenant_catalog.delete, whole, asked)
        await services.merges.release(services.worker, versions[0].full_name)  # if a merge ended while it was deleted
    else:
        in_use = await in_thread(services.tenant_catalog.delete_version, whole, number, asked)
    note("adapter_deleted", name=name)
    await follow_pins_if_possible(services)
    return 202 if in_use else 200


def _name_and_number(name: str) -> tuple[str, int | None]:
    whole, at, selector = name.partition("@")
    if at and not selector.isdecimal():
        raise BadRequest(
            "Give the adapter's name alone, or a version's number behind the @. An alias is deleted by DELETE "
            "/v1/adapters/NAME/aliases/ALIAS.",
            "name",
        )
    return whole, int(selector) if at else None
