"""The check of a presented key: what another process does holds from the next request on, and nothing tells why not."""

import inspect
import logging
from datetime import timedelta
from hmac import compare_digest
from pathlib import Path

import pytest

from server.keys.ring import KeyRing, NoKeys
from server.keys.token import DIGEST_BYTES, digest
from server.principal import ANYONE, Scope
from tests.support.keys import stored_keys

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


async def test_a_key_is_its_owners(tmp_path: Path) -> None:
    with stored_keys(tmp_path) as store:
        key, text = store.create("acme", "lab", [Scope.INFER])
        ring = KeyRing(store, "on")
        for spelled in (f"Bearer {text}", f"bearer  {text}", f"BEARER {text} "):
            assert await ring.authenticate([spelled]) == key.principal
        odd: tuple[list[str], ...] = (
            [],
            [""],
            [text],
            [f"Basic {text}"],
            [f"Bearer {text}"] * 2,
            [f"Bearer {text[:-1]}"],
            ["Bearer é\ud800"],
        )
        for headers in odd:
            assert await ring.authenticate(headers) is None


async def test_h75_what_another_process_does_holds_at_once(tmp_path: Path) -> None:
    with stored_keys(tmp_path) as own, stored_keys(tmp_path) as other:
        ring = KeyRing(own, "on")
        key, text = other.create("acme", "default", [Scope.INFER])
        assert await ring.authenticate([f"Bearer {text}"]) == key.principal
        other.revoke(key.id)
        assert await ring.authenticate([f"Bearer {text}"]) is None
        gone, late = other.create("acme", "default", [Scope.INFER], -timedelta(hours=3))
        assert await ring.authenticate([f"Bearer {late}"]) is None, f"{gone.id} expired before it was made"
        mine, text = own.create("acme", "default", [Scope.INFER])
        assert await ring.authenticate([f"Bearer {text}"]) == mine.principal, "and so does what this process does"


async def test_with_auto_keys_are_asked_for_once_there_was_one(tmp_path: Path) -> None:
    with stored_keys(tmp_path) as store:
        ring = KeyRing(store, "auto")
        assert await ring.authenticate([]) == ANYONE and not ring.required
        key, _ = store.create("acme", "default", [Scope.INFER])
        assert await ring.authenticate([]) is None and ring.required
        store.revoke(key.id)
        assert await ring.authenticate([]) is None, "to revoke the last key lets nobody in"
        assert await KeyRing(store, "on").authenticate([]) is None


async def test_without_keys_anyone_may_do_anything() -> None:
    assert await NoKeys().authenticate(["Bearer unused"]) == ANYONE


async def test_h79_every_key_costs_one_digest_and_one_comparison(tmp_path: Path) -> None:
    """Known, unknown, malformed, revoked, expired: the same work, counted instead of timed."""
    with stored_keys(tmp_path) as store:
        key, text = store.create("acme", "default", [Scope.INFER])
        revoked, dead = store.create("acme", "default", [Scope.INFER])
        store.revoke(revoked.id)
        _, late = store.create("acme", "default", [Scope.INFER], timedelta(0))
        same = Noted()
        ring = KeyRing(store, "on", same)
        asked = (text, text[:-2] + "AA", f"sk-{key.id[::-1]}_{'A' * 43}", dead, late, "nonsense", "")
        for presented in asked:
            await ring.authenticate([f"Bearer {presented}"])
        assert same.compared == [digest(store.pepper, presented) for presented in asked]
    assert inspect.signature(KeyRing).parameters["same"].default is compare_digest, "which takes the same time for all"


class Noted:
    """A comparison that notes what was shown to it, each time against as many bytes."""

    def __init__(self) -> None:
        self.compared: list[bytes] = []

    def __call__(self, left: bytes, right: bytes) -> bool:
        assert len(left) == len(right) == DIGEST_BYTES
        self.compared.append(left)
        return compare_digest(left, right)
