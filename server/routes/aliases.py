"""/v1/adapters/{name}/aliases/{alias}: where a word such as `prod` points, and the canary that gets a part of its
traffic.

Owns those routes, the rollback and their conditions. Running requests keep the version they began with, because they
hold its id.
"""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapters.aliases import Alias, Move
from adapters.canary import Canary
from server.audit import note
from server.body import StrictRoute
from server.cards import adapter_card
from server.deps import RequireScope, ServicesDep, accepting, in_thread
from server.etag import condition, etag
from server.principal import Scope
from server.strict import Strict

router = APIRouter(route_class=StrictRoute, tags=["adapters"])

VersionNumber = Annotated[int, Field(ge=1, lt=1 << 63)]
AliasName = Annotated[str, Field(max_length=512, description="A word, such as `prod`.")]


class CanaryBody(Strict):
    version: VersionNumber
    weight: Annotated[float, Field(gt=0, lt=1, description="Its share of the alias's traffic.")]


class AliasBody(Strict):
    version: VersionNumber
    canary: Annotated[CanaryBody | None, Field(description="Without it, the alias has no canary.")] = None


class RollbackBody(Strict):
    alias: AliasName = "prod"


_WRITES = [Depends(RequireScope(Scope.WRITE)), Depends(accepting)]


@router.get("/v1/adapters/{name}/aliases/{alias}", dependencies=[Depends(RequireScope(Scope.READ))])
async def show_alias(name: str, alias: str, services: ServicesDep) -> Response:
    """Where an alias points, its canary, and where it pointed before."""
    found = await in_thread(services.tenant_catalog.alias, name, alias)
    return JSONResponse(_alias(found), headers={"etag": f'"{found.number}"'})


@router.put("/v1/adapters/{name}/aliases/{alias}", dependencies=_WRITES)
async def set_alias(name: str, alias: str, body: AliasBody, http: HttpRequest, services: ServicesDep) -> Response:
    """Point an alias at a version; the next request that names it gets that version, or its share the canary.

    If-Match makes it conditional.
    """
    canary = None if body.canary is None else Canary(body.canary.version, body.canary.weight)
    wanted = condition(http)
    version = await in_thread(services.tenant_catalog.set_alias, name, alias, body.version, wanted, canary)
    if canary is not None:
        await in_thread(services.metrics.label_canaries, services.server_catalog.splits)
    note("alias_set", name=name, alias=alias, version=version.number)
    return JSONResponse(await adapter_card(services, version), headers=etag(version))


@router.delete("/v1/adapters/{name}/aliases/{alias}", dependencies=_WRITES)
async def delete_alias(name: str, alias: str, http: HttpRequest, services: ServicesDep) -> dict[str, Any]:
    """Remove an alias. The versions stay. If-Match makes it conditional."""
    await in_thread(services.tenant_catalog.delete_alias, name, alias, condition(http))
    note("alias_deleted", name=name, alias=alias)
    return {"name": name, "alias": alias, "object": "alias", "deleted": True}


@router.post("/v1/adapters/{name}/rollback", dependencies=_WRITES)
async def roll_back(name: str, body: RollbackBody, http: HttpRequest, services: ServicesDep) -> Response:
    """End the alias's canary or, where it has none, put it back to where it pointed. If-Match makes it conditional."""
    version = await in_thread(services.tenant_catalog.roll_back, name, body.alias, condition(http))
    note("alias_rolled_back", name=name, alias=body.alias, version=version.number)
    return JSONResponse(await adapter_card(services, version), headers=etag(version))


def _alias(alias: Alias) -> dict[str, Any]:
    canary = alias.canary
    return {
        "object": "alias",
        "name": alias.name,
        "alias": alias.alias,
        "version": alias.number,
        "canary": None if canary is None else {"version": canary.number, "weight": canary.weight},
        "history": [_move(move) for move in alias.moves],
    }


def _move(move: Move) -> dict[str, Any]:
    return {
        "moved": _seconds(move.moved),
        "from": move.from_number,
        "to": move.to_number,
        "undone": None if move.undone is None else _seconds(move.undone),
    }


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
