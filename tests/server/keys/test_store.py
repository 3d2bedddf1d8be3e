"""Keys in their store: what is kept of them, when they live, how one takes over from another."""

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from adapters.errors import DatabaseUnusable
from server.datadir import DataDir
from server.keys.errors import KeyNotLive, PepperUnusable, UnknownKey
from server.keys.opening import open_keys
from server.keys.store import KeyStore
from server.keys.token import digest, id_of, new_token
from server.principal import Scope
from tests.support.keys import stored_keys

DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    with stored_keys(tmp_path) as opened:
        yield opened


def test_a_key_has_an_id_that_may_be_shown_and_256_bits_that_may_not() -> None:
    token = new_token()
    assert token.text.startswith(f"sk-{token.id}_")
    assert id_of(token.text) == token.id
    assert token.text not in repr(token)
    assert len({new_token().text for _ in range(100)}) == 100
    for odd in ("", "sk-", f"{token.text}x", token.text[:-1], token.text.upper(), "sk-é_", f" {token.text}"):
        assert id_of(odd) == ""


def test_the_digest_is_hmac_sha256() -> None:
    """RFC 4231, test case 2."""
    assert digest(b"Jefe", "what do ya want for nothing?").hex() == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_h79_only_a_digest_is_stored(tmp_path: Path, store: KeyStore) -> None:
    key, text = store.create("acme", "default", [Scope.INFER])
    secret = text.partition("_")[2]
    assert text not in repr(key) and key.digest.hex() not in repr(key)
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes()
    assert key.digest == digest(store.pepper, text)


def test_both_files_are_their_owners_alone(tmp_path: Path, store: KeyStore) -> None:
    for name in ("keys.sqlite", "keys.pepper"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_pepper_is_made_once_and_its_loss_is_told(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    with stored_keys(tmp_path) as first, stored_keys(tmp_path) as second:
        assert first.pepper == second.pepper
    data.pepper.rename(tmp_path / "kept")
    with pytest.raises(PepperUnusable, match="put it back"):
        open_keys(data)
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(PepperUnusable, match="at least"):
        open_keys(data, tmp_path / "short")
    open_keys(data, tmp_path / "kept").close()


def test_a_damaged_database_is_told_by_its_name(tmp_path: Path) -> None:
    with stored_keys(tmp_path):
        pass
    (tmp_path / "keys.sqlite").write_bytes(b"no database at all" * 1000)
    with pytest.raises(DatabaseUnusable, match="of the keys"):
        open_keys(DataDir(tmp_path))


def test_keys_live_until_they_expire_or_are_revoked(store: KeyStore) -> None:
    now = datetime.now(UTC)
    lasting, _ = store.create("acme", "default", [Scope.READ])
    brief, _ = store.create("acme", "default", [Scope.READ], DAY)
    assert lasting.live(now + 999 * DAY) and lasting.state(now) == "live"
    assert brief.live(now) and not brief.live(now + 2 * DAY)
    assert brief.state(now + 2 * DAY) == "expired"
    revoked = store.revoke(lasting.id)
    assert not revoked.live(now) and revoked.state(now) == "revoked"
    assert store.revoke(lasting.id) == revoked, "revoking is idempotent"
    with pytest.raises(UnknownKey):
        store.revoke("nobody")
    assert [key.id for key in store.every()] == [lasting.id, brief.id]


def test_two_keys_live_while_one_takes_over(store: KeyStore) -> None:
    now = datetime.now(UTC)
    old, _ = store.create("acme", "lab", [Scope.READ, Scope.WRITE], 90 * DAY)
    new, text = store.rotate(old.id, DAY)
    assert (new.tenant, new.project, new.scopes, new.replaces) == ("acme", "lab", old.scopes, old.id)
    assert id_of(text) == new.id
    old = store.every()[0]
    assert old.live(now) and new.live(now)
    assert not old.live(now + 2 * DAY) and new.live(now + 89 * DAY) and not new.live(now + 91 * DAY)
    with pytest.raises(KeyNotLive, match=new.id):
        store.rotate(old.id, DAY)
    store.revoke(new.id)
    third, _ = store.rotate(old.id, DAY)
    assert third.replaces == old.id, "a successor that was revoked is none"
    store.revoke(old.id)
    with pytest.raises(KeyNotLive, match="keys create"):
        store.rotate(old.id, DAY)


def test_a_rotation_never_lengthens_a_life(store: KeyStore) -> None:
    old, _ = store.create("acme", "default", [Scope.READ], timedelta(hours=1))
    store.rotate(old.id, DAY)
    assert store.every()[0].expires == old.expires
