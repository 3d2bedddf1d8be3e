"""`python -m tests.fuzz.stateful --seconds N`: chains of requests along the description's links, in process.

Owns the state machine: what a chain sends where random bytes would only be refused, and the checks on each answer,
which see the whole chain; of an upload in pieces, `pieces.py` knows both. Single requests are `api.py`'s. The engine is
the fake one, with keys and without.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import new_class
from typing import Any, ClassVar

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import Rule
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.transport import Response
from schemathesis.generation.stateful import APIStateMachine
from starlette.testclient import TestClient

from tests.fuzz.pieces import BEGIN, Pieces
from tests.support.keys import guarded_rig, headers_of
from tests.support.server_rig import adapter_config, adapter_weights, make_rig

Seen = Counter[tuple[str, int]]

CONFORMANCE = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
_CHECKS = (
    "not_a_server_error",
    "use_after_free",
    "ensure_resource_availability",
    *CONFORMANCE,
)
UPLOADS = "^/v1/adapters/uploads"
"""Few of the chains that may go anywhere bring an upload to its end."""
_BATCH = 25
_ALIAS = "prod"


@schemathesis.serializer("application/jsonl")
def _plain(context: object, value: object) -> bytes:
    return str(value).encode(errors="replace")


def _form(name: str) -> dict[str, Any]:
    return {"name": name, "alias": _ALIAS, "config": adapter_config(), "weights": adapter_weights()}


def _order(name: str) -> dict[str, Any]:
    return {"name": name, "config": adapter_config().decode(), "size": len(adapter_weights())}


_STORES: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "POST /v1/adapters": _form,
    BEGIN: _order,
}


class Chain(APIStateMachine):
    """One chain. It takes turns with two names of its own, so that what was deleted is made again by some chains."""

    checks: ClassVar[list[Any]]
    headers: ClassVar[dict[str, str]]
    seen: ClassVar[Seen]
    chains: ClassVar["itertools.count[int]"]
    http: ClassVar[TestClient]

    def setup(self) -> None:
        self._number = next(self.chains)
        self._turn = itertools.cycle((0, 1))
        self._gone: set[str] = set()
        self._pieces = Pieces(self.seen)

    def teardown(self) -> None:
        """A tenant may have few uploads open: the next chain begins as this one did."""
        super().teardown()
        for id in self._pieces.begun:
            self.http.delete(f"/v1/adapters/uploads/{id}", headers=self.headers)

    def _repr_step(self, rule: Rule, data: Any, result: Any) -> str:
        """Hypothesis would write the name that each result is kept under, when it runs a failing chain again.

        schemathesis keeps only results that links lead on from. Where there was none yet, looking for a name failed,
        and hid why the chain did.
        """
        return str(rule.function.__name__)

    def get_call_kwargs(self, case: Case[Any]) -> dict[str, Any]:
        return {"headers": dict(self.headers)} if self.headers else {}

    def before_call(self, case: Case[Any]) -> None:
        body = _STORES.get(case.operation.label)
        allowed = case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE
        if body is not None and allowed:
            case.body = body(f"chain-{self._number}-{next(self._turn)}")
        if allowed:
            self._pieces.aim(case)

    def after_call(self, response: Response, case: Case[Any]) -> None:
        super().after_call(response, case)
        self.seen[case.operation.label, response.status_code] += 1

    def check_gone(self, response: Response, case: Case[Any]) -> None:
        """An adapter that was deleted is gone from /v1/models too. schemathesis looks below the deleted path alone."""
        if not 200 <= response.status_code < 300:
            return
        name = str(case.path_parameters.get("name", case.path_parameters.get("id", "")))
        if case.operation.label == "DELETE /v1/adapters/{name}":
            self._gone.add(name)
        elif case.operation.label == "POST /v1/adapters":
            self._gone.discard(response.json()["name"])
        elif case.method == "GET":
            assert name not in self._gone, f"{case.operation.label} answers for {name}, which was deleted"

    def validate_response(
        self, response: Response, case: Case[Any], additional_checks: list[Any] | None = None, **kwargs: Any
    ) -> None:
        recorder = getattr(self, "recorder")  # noqa: B009  # of the class that schemathesis makes of the description
        case.validate_response(response, checks=self.checks, transport_kwargs=kwargs or None, recorder=recorder)
        self.check_gone(response, case)
        self._pieces.judge(response, case)


def chains(
    app: Any, examples: int, headers: Mapping[str, str] | None = None, seed: int = 0, paths: str | None = None
) -> Seen:
    """`examples` chains; how often an operation, or a kind of piece, had which status.

    The same for the same seed in one process: Hypothesis also draws constants of the modules that are imported there.

    With `headers`, which carry a key, every request is sent without them and with a wrong one as well. With `paths`, a
    pattern, chains stay on those.
    Raises schemathesis' FailureGroup with what the checks found, and the requests that lead there.
    """
    load_all_checks()
    # Spelled as schemathesis looks for it; otherwise it takes the key for one that it made up.
    sent = {name.title(): value for name, value in (headers or {}).items()}
    names = (*_CHECKS, "ignored_auth") if sent else _CHECKS
    schema: Any = schemathesis.openapi.from_asgi("/openapi.json", app, headers=sent)
    if paths is not None:
        schema = schema.include(path_regex=paths)
    # A made-up key would count as a parameter that no link gave, and hide what is missing after it was created.
    schema.config.generation.update(with_security_parameters=False)
    # Guessed links lead to what need not be there, such as a new adapter's eval file.
    schema.config.phases.stateful.inference.algorithms = []
    own = {
        "checks": [CHECKS.get_one(name) for name in names],
        "headers": sent,
        "seen": Counter(),
        "chains": itertools.count(),
        "http": TestClient(app),
    }
    made = new_class("Chains", (Chain, schema.as_state_machine()), exec_body=lambda body: body.update(own))
    machine: type[Chain] = hypothesis.seed(seed)(made)
    machine.run(
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
    )
    return machine.seen


def batch(folder: Path, examples: int, seed: int, guarded: bool, paths: str | None = None) -> Seen:
    """Chains over a server of their own."""
    if guarded:
        with guarded_rig(folder) as (rig, keys):
            return chains(rig.app, examples, headers_of(keys, "acme"), seed, paths)
    rig = make_rig(folder)
    try:
        return chains(rig.app, examples, seed=seed, paths=paths)
    finally:
        rig.registry.close()


def main() -> None:
    options = argparse.ArgumentParser(description="Follow the description's links: create, read, delete, read again.")
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="of the first batch")
    chosen = options.parse_args()
    seen: Seen = Counter()
    until = time.monotonic() + chosen.seconds
    for seed in itertools.count(chosen.seed):
        print(f"seed {seed}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            paths = UPLOADS if seed // 2 % 2 else None
            seen += batch(Path(folder), _BATCH, seed, guarded=bool(seed % 2), paths=paths)
        if time.monotonic() > until:
            break
    for (label, status), count in sorted(seen.items()):
        print(f"{label}\t{status}\t{count}")


if __name__ == "__main__":
    main()
