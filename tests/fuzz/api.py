"""`python -m tests.fuzz.api --seconds N`: the OpenAPI description against the application, in process.

Owns the requests that schemathesis makes of the description, half of them for an adapter that is there, and the checks
on what comes back, each by itself; chains of requests are `stateful.py`'s. The engine is the fake one, so an answer's
text says nothing; its status and its manners do.
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.result import Ok
from starlette.testclient import TestClient

from tests.fuzz.stateful import CONFORMANCE
from tests.support.server_rig import ServerRig, form, make_rig

NAME = "fuzzed"
_ROUND = 10
"""Requests of each operation between two looks at the clock."""

_CHECKS = ("not_a_server_error", "unsupported_method", "allow_header_conformance", *CONFORMANCE)
_INSIDE = ("Traceback", ".py", "site-packages")


def fuzz(rig: ServerRig, examples: int, same: bool = False) -> Counter[tuple[str, int]]:
    """`examples` requests of each operation; how often each had which status. Raises what a check raises.

    With `same`, they are the same ones every time.
    """
    load_all_checks()
    checks: list[Any] = [CHECKS.get_one(name) for name in _CHECKS]
    schema = schemathesis.openapi.from_asgi("/openapi.json", rig.app)
    seen: Counter[tuple[str, int]] = Counter()
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), "the description is our own"
        operation = found.ok()
        health = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

        @settings(max_examples=examples, derandomize=same, deadline=None, suppress_health_check=health, database=None)
        @given(case=operation.as_strategy(), known=st.booleans())
        def request(case: Case[Any], known: bool) -> None:
            if known:
                _upload(rig)
                _aim(case)
            reply = case.call()
            seen[case.operation.label, reply.status_code] += 1
            case.validate_response(reply, checks=checks)
            assert not any(word in reply.text for word in _INSIDE) or reply.status_code < 400, reply.text

        request()
    return seen


def _upload(rig: ServerRig) -> None:
    """Two versions and an alias of the adapter that requests are aimed at, unless one of them deleted it."""
    client = TestClient(rig.app)
    if client.get(f"/v1/adapters/{NAME}@2").status_code == 200:
        return
    for seed in (1, 2):
        client.post("/v1/adapters", data={"name": NAME, "alias": "prod"}, files=form(seed)).raise_for_status()


def _aim(case: Case[Any]) -> None:
    for parameter in ("name", "id"):
        if parameter in case.path_parameters:
            case.path_parameters[parameter] = NAME
    if "alias" in case.path_parameters:
        case.path_parameters["alias"] = "prod"
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = f"{NAME}@prod"


def main() -> None:
    options = argparse.ArgumentParser(description="Send what the OpenAPI description allows, and what it does not.")
    options.add_argument("--seconds", type=float, default=60)
    until = time.monotonic() + options.parse_args().seconds
    seen: Counter[tuple[str, int]] = Counter()
    while not seen or time.monotonic() < until:
        with tempfile.TemporaryDirectory() as folder:
            rig = make_rig(Path(folder))
            seen += fuzz(rig, _ROUND)
            rig.registry.close()
    for (label, status), count in sorted(seen.items()):
        print(f"{label}\t{status}\t{count}")


if __name__ == "__main__":
    main()
