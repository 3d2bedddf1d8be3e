"""Chains of requests: what was created is there, what was deleted is not, no route forgets to ask for a key, and every
answer is one that the description has. Each check is also held against an application that it must find fault with."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from schemathesis.core.failures import FailureGroup
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from tests.fuzz.pieces import BEGIN, END, PIECE, SHOW, Pieces
from tests.fuzz.stateful import UPLOADS, Seen, batch, chains
from tests.support.broken_apps import (
    Careless,
    Forgetful,
    Haunted,
    OpenDoor,
    Swallowing,
    Tired,
    Undead,
    Undescribed,
    Unmannered,
)
from tests.support.keys import guarded_rig, headers_of
from tests.support.server_rig import adapter_config, adapter_weights, make_rig

ADAPTER = "/v1/adapters/{name}"


def until_all_are_seen(wanted: set[tuple[str, int]], folder: Path, **how: Any) -> Seen:
    """What chains of a few seeds saw, up to the one that completes `wanted`.

    What a seed makes changes with the sources: Hypothesis draws from the constants of whatever has been imported.
    """
    seen: Seen = Counter()
    for seed in range(6):
        seen += batch(folder / str(seed), seed=seed, **how)
        if wanted <= set(seen):
            return seen
    raise AssertionError(f"never seen: {wanted - set(seen)}; seen: {seen}")


@pytest.mark.parametrize("guarded", [False, True])
def test_what_is_deleted_is_gone_and_what_is_created_is_there(guarded: bool, tmp_path: Path) -> None:
    reached = {
        ("POST /v1/adapters", 201),
        (f"GET {ADAPTER}", 200),
        (f"DELETE {ADAPTER}", 200),
        (f"GET {ADAPTER}", 404),  # after a DELETE, among others
        ("POST /v1/adapters/uploads", 201),
        ("GET /v1/adapters/uploads/{id}", 200),
        ("DELETE /v1/adapters/uploads/{id}", 200),
    }
    seen = until_all_are_seen(reached, tmp_path, examples=8, guarded=guarded)
    assert max(status for _, status in seen) < 500


def test_an_upload_in_pieces_is_as_far_as_its_pieces_say(tmp_path: Path) -> None:
    """Each turn that its life can take was taken, and each answer was the model's."""
    turns = {
        ("a piece that was due", 202),
        ("a piece that does not follow", 416),
        ("a piece that is too long", 413),
        ("a piece for what is over", 409),
        ("an end before all is there", 409),
        ("an end with another digest", 400),
        ("an end after the end", 409),
        ("an end", 201),
    }
    until_all_are_seen(turns, tmp_path, examples=12, guarded=True, paths=UPLOADS)


def test_the_same_seed_makes_the_same_chains(tmp_path: Path) -> None:
    first, second = (batch(tmp_path / name, examples=2, seed=7, guarded=False) for name in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (Undead, "UseAfterFree"),
        (Forgetful, "EnsureResourceAvailability"),
        (Undescribed, "UndefinedStatusCode"),
        (Unmannered, "JsonSchemaError"),
    ],
)
def test_an_application_that_breaks_a_promise_is_found(
    broken: Callable[[ASGIApp], ASGIApp], fault: str, tmp_path: Path
) -> None:
    rig = make_rig(tmp_path)
    try:
        with pytest.raises((FailureGroup, AssertionError)) as found:
            chains(broken(rig.app), examples=60)
    finally:
        rig.registry.close()
    if isinstance(found.value, FailureGroup):
        assert fault in {type(failure).__name__ for failure in found.value.exceptions}
    else:  # `check_gone` came first
        assert fault == "UseAfterFree" and "which was deleted" in str(found.value)


def test_an_upload_that_loses_bytes_is_found_by_a_chain(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    try:
        with pytest.raises(AssertionError, match="bytes are there"):
            chains(Swallowing(rig.app), examples=20, seed=1, paths=UPLOADS)
    finally:
        rig.registry.close()


def turn(http: TestClient, pieces: Pieces, label: str, **fields: Any) -> dict[str, Any]:
    """One request of a chain, aimed and judged as there. A case is as much of schemathesis' as Pieces looks at."""
    empty: dict[str, Any] = {"path_parameters": {}, "query": {}, "headers": {}, "body": b""}
    case = SimpleNamespace(operation=SimpleNamespace(label=label), **(empty | fields))
    pieces.aim(cast(Any, case))
    method, path = label.split()
    body = {"json": case.body} if isinstance(case.body, dict) else {"content": case.body}
    url = path.format(**case.path_parameters)
    got = http.request(method, url, params=case.query, headers=case.headers, **body)
    headers = {name: [value] for name, value in got.headers.items()}
    answer = SimpleNamespace(status_code=got.status_code, json=got.json, headers=headers)
    pieces.judge(cast(Any, answer), cast(Any, case))
    return cast(dict[str, Any], got.json())


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (lambda app: app, None),
        (Swallowing, "bytes are there"),
        (Careless, "an end with another digest was answered with 201"),
    ],
)
def test_an_upload_that_is_not_as_it_says_is_found(
    broken: Callable[[ASGIApp], ASGIApp], fault: str | None, tmp_path: Path
) -> None:
    """The turns that show it, without the luck of a chain that comes by them."""
    rig = make_rig(tmp_path)
    expected = nullcontext() if fault is None else pytest.raises(AssertionError, match=fault)
    try:
        with TestClient(broken(rig.app), base_url="http://127.0.0.1") as http, expected:
            pieces = Pieces(Counter())
            order = {"name": "pieces", "config": adapter_config().decode(), "size": len(adapter_weights())}
            of = {"id": turn(http, pieces, BEGIN, body=order)["id"]}
            turn(http, pieces, PIECE, path_parameters=of)
            turn(http, pieces, SHOW, path_parameters=of)
            turn(http, pieces, END, path_parameters=of, query={"digest": "odd"})
    finally:
        rig.registry.close()


def test_an_adapter_that_stays_a_model_is_found(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    try:
        with pytest.raises(AssertionError, match="answers for chain-.*, which was deleted"):
            chains(Haunted(rig.app), examples=60)  # few come by it
    finally:
        rig.registry.close()


def test_what_fails_before_an_answer_has_led_on_is_told(tmp_path: Path) -> None:
    """Hypothesis runs such a chain again, and may not stumble over it."""
    rig = make_rig(tmp_path)
    try:
        with pytest.raises(AssertionError, match="it is tired"):
            chains(Tired(rig.app), examples=2)
    finally:
        rig.registry.close()


def test_an_application_that_asks_for_no_key_is_found(tmp_path: Path) -> None:
    with guarded_rig(tmp_path) as (rig, keys):
        headers = headers_of(keys, "acme")
        with pytest.raises(FailureGroup) as found:
            chains(OpenDoor(rig.app, headers["authorization"]), 15, headers)
    assert {type(failure).__name__ for failure in found.value.exceptions} == {"IgnoredAuth"}
