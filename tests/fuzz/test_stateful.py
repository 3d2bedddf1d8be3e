"""Chains of requests: what was created is there, what was deleted is not, no route forgets to ask for a key, and every
answer is one that the description has. Each check is also held against an application that it must find fault with."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis.errors import Flaky
from schemathesis.core.failures import FailureGroup
from starlette.types import ASGIApp

from tests.fuzz.stateful import UPLOADS, batch, chains
from tests.support.broken_faces import (
    Careless,
    Forgetful,
    Haunted,
    OpenDoor,
    Swallowing,
    Undead,
    Undescribed,
    Unmannered,
)
from tests.support.face import make_face
from tests.support.keys import guarded_face, headers_of

ADAPTER = "/v1/adapters/{name}"


@pytest.mark.parametrize("guarded", [False, True])
def test_what_is_deleted_is_gone_and_what_is_created_is_there(guarded: bool, tmp_path: Path) -> None:
    seen = batch(tmp_path, examples=8, seed=0, guarded=guarded)
    assert max(status for _, status in seen) < 500
    reached = {
        ("POST /v1/adapters", 201),
        (f"GET {ADAPTER}", 200),
        (f"DELETE {ADAPTER}", 200),
        (f"GET {ADAPTER}", 404),  # after a DELETE, among others
        ("POST /v1/adapters/uploads", 201),
        ("GET /v1/adapters/uploads/{id}", 200),
        ("DELETE /v1/adapters/uploads/{id}", 200),
    }
    assert not reached - set(seen), seen


def test_an_upload_in_pieces_is_as_far_as_its_pieces_say(tmp_path: Path) -> None:
    """Each turn that its life can take was taken, and each answer was the model's."""
    seen = batch(tmp_path, examples=12, seed=1, guarded=True, paths=UPLOADS)
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
    assert not turns - set(seen), seen


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
    face = make_face(tmp_path)
    try:
        with pytest.raises(FailureGroup) as found:
            chains(broken(face.app), examples=15)
    finally:
        face.registry.close()
    assert fault in {type(failure).__name__ for failure in found.value.exceptions}


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (Swallowing, "bytes are there"),
        (Careless, "an end with another digest was answered with 201"),
    ],
)
def test_an_upload_that_is_not_as_it_says_is_found(
    broken: Callable[[ASGIApp], ASGIApp], fault: str, tmp_path: Path
) -> None:
    """A chain has to come by the fault: where those of one seed do not, others do.

    What the fault leaves behind may also change what the chain does when it is tried again, which is told as such.
    """
    for seed in range(1, 13):
        face = make_face(tmp_path / str(seed))
        try:
            chains(broken(face.app), examples=20, seed=seed, paths=UPLOADS)
        except AssertionError as found:
            assert fault in str(found)
            return
        except Flaky:
            return
        finally:
            face.registry.close()
    pytest.fail("no chain found it")


def test_an_adapter_that_stays_a_model_is_found(tmp_path: Path) -> None:
    face = make_face(tmp_path)
    try:
        with pytest.raises(AssertionError, match="answers for chain-.*, which was deleted"):
            chains(Haunted(face.app), examples=15)
    finally:
        face.registry.close()


def test_an_application_that_asks_for_no_key_is_found(tmp_path: Path) -> None:
    with guarded_face(tmp_path) as (face, keys):
        headers = headers_of(keys, "acme")
        with pytest.raises(FailureGroup) as found:
            chains(OpenDoor(face.app, headers["authorization"]), 15, headers)
    assert {type(failure).__name__ for failure in found.value.exceptions} == {"IgnoredAuth"}
