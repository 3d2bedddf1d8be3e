"""POST /v1/adapters/{name}/promote: move an alias to a version that is no worse than the one it points at.

Owns the route and the refusal. Scores are measured by evaluation.py and compared by the adapters' own rule.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapters.condition import Condition
from adapters.errors import UnknownAdapter
from adapters.evaluations import Score
from adapters.version import Version
from server.audit import note
from server.body import StrictRoute
from server.cards import adapter_card, score_card
from server.deps import PrincipalDep, RequireScope, ServicesDep, accepting, in_thread
from server.disconnect import while_connected
from server.errors import NO_RETRY, ApiError
from server.etag import condition, etag
from server.evaluation import score
from server.ports import Services
from server.principal import Principal, Scope
from server.routes.aliases import AliasName, VersionNumber
from server.strict import Strict

router = APIRouter(
    route_class=StrictRoute, dependencies=[Depends(RequireScope(Scope.WRITE)), Depends(accepting)], tags=["adapters"]
)

TOLERANCE = 0.02


class PromoteBody(Strict):
    version: VersionNumber
    alias: AliasName = "prod"
    force: Annotated[bool, Field(description="Move the alias without measuring anything.")] = False
    tolerance: Annotated[float, Field(ge=0, le=100, description="In nats per token.")] = TOLERANCE


@dataclass(frozen=True, slots=True)
class Comparison:
    """`after` is the promoted version's score, `before` that of `current`, where the alias points, if anywhere.

    The scores are None where neither version carries an eval file.
    """

    current: Version | None
    after: Score | None = None
    before: Score | None = None

    @property
    def gate(self) -> str:
        return "no_eval_file" if self.after is None else "measured"

    @property
    def condition(self) -> Condition:
        """That the alias points where it did when the two were compared."""
        return Condition(absent=True) if self.current is None else Condition(frozenset({self.current.number}))


@router.post("/v1/adapters/{name}/promote")
async def promote(
    name: str, body: PromoteBody, http: HttpRequest, services: ServicesDep, caller: PrincipalDep
) -> Response:
    """Move an alias to a version. 409 with the numbers when it does worse on its eval file, unless forced.

    `gate` is how it was let through: `measured`, `forced` or `no_eval_file`, and `before` the other version's score.
    If-Match makes it conditional; unless forced, it is a 412 when the alias was moved while the two were compared.
    """
    chosen = await in_thread(services.tenant_catalog.resolve, f"{name}@{body.version}")
    asked, before, gate = condition(http), None, "forced"
    if not body.force:
        with services.lifecycle.answering():
            work = _compare(services, chosen, body.alias, caller, http.state.request_id)
            compared = await while_connected(http, work)
        _check(compared, body)
        asked, before, gate = asked or compared.condition, compared.before, compared.gate
    promoted = await in_thread(services.tenant_catalog.set_alias, name, body.alias, body.version, asked)
    note("alias_set", name=name, alias=body.alias, version=promoted.number, forced=body.force)
    reply = await adapter_card(services, promoted) | {"gate": gate, "before": before and score_card(before)}
    return JSONResponse(reply, headers=etag(promoted))


async def _compare(services: Services, chosen: Version, alias: str, caller: Principal, id: str) -> Comparison:
    """On the eval file of the promoted version or, if it has none, of the one that the alias points at."""
    current = await in_thread(_current, services, chosen.name, alias)
    file = await in_thread(services.tenant_catalog.eval_file, chosen)
    if file is None and current is not None:
        file = await in_thread(services.tenant_catalog.eval_file, current)
    if file is None:
        return Comparison(current)
    after = await score(services, chosen, file, caller, id)
    before = None if current is None else await score(services, current, file, caller, id)
    return Comparison(current, after, before)


def _current(services: Services, name: str, alias: str) -> Version | None:
    try:
        return services.tenant_catalog.resolve(f"{name}@{alias}")
    except UnknownAdapter:
        return None


def _check(compared: Comparison, body: PromoteBody) -> None:
    after, before = compared.after, compared.before
    if after is None or before is None or not after.regresses(before, body.tolerance):
        return
    raise ApiError(
        409,
        f"Version {body.version} does worse than the one that the alias points at: {_in_words(after)} against "
        f"{_in_words(before)}, on {after.rows} rows. The tolerance is {body.tolerance:g} nats per token. "
        "Send `force: true` to promote it all the same.",
        code="promote_regresses",
        headers=NO_RETRY,
        details={"before": score_card(before), "after": score_card(after), "tolerance": body.tolerance},
    )


def _in_words(score: Score) -> str:
    return f"{score.mean_logprob:.3f} nats per token and {score.exact:.0%} exact"
