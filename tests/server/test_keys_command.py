"""`rootstock keys` as an operator types it, on a data directory that a server may have open."""

import json
import os
from pathlib import Path

from server.datadir import DataDir
from tests.server.test_cli import rootstock


def keys(folder: Path, *words: str) -> object:
    done = rootstock("keys", *words, "--data-dir", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_h81_create_ls_rotate_revoke_and_no_secret_in_the_log(tmp_path: Path) -> None:
    made = rootstock("keys", "create", "--tenant", "acme", "--expires", "90d", "--data-dir", str(tmp_path))
    assert made.returncode == 0
    text = made.stdout.strip()
    id = text.removeprefix("sk-").partition("_")[0]
    assert "key_created" in made.stderr and id in made.stderr
    assert text.partition("_")[2] not in made.stderr
    listed = keys(tmp_path, "ls")
    assert isinstance(listed, list)
    assert (listed[0]["id"], listed[0]["scopes"], listed[0]["state"]) == (id, ["infer", "read"], "live")
    rotated = keys(tmp_path, "rotate", id, "--grace", "1h")
    assert isinstance(rotated, dict) and rotated["replaces"] == id and rotated["key"] != text
    assert text not in json.dumps(keys(tmp_path, "ls")) and rotated["key"] not in json.dumps(keys(tmp_path, "ls"))
    revoked = keys(tmp_path, "revoke", id)
    assert isinstance(revoked, dict) and revoked["state"] == "revoked"


def test_h81_a_whole_key_names_itself_and_its_secret_is_not_told(tmp_path: Path) -> None:
    text = rootstock("keys", "create", "--tenant", "acme", "--data-dir", str(tmp_path)).stdout.strip()
    id, _, secret = text.removeprefix("sk-").partition("_")
    for typed, code, told in (
        (text, 0, f"{id} revoked"),
        (text[:-9], 0, f"{id} revoked"),
        (f"sk-{id[::-1]}_{secret}", 1, f"no key '{id[::-1]}'"),
        (secret, 1, "no key's id"),
    ):
        done = rootstock("keys", "revoke", "--data-dir", str(tmp_path), "--", typed)  # a secret may begin with a dash
        assert done.returncode == code and told in done.stdout + done.stderr, done.stderr
        assert secret[:8] not in done.stdout + done.stderr


def test_what_is_typed_wrongly_is_told(tmp_path: Path) -> None:
    for words, code, told in (
        (("create", "--tenant", "a/b"), 2, "not a tenant's name"),
        (("create", "--tenant", "acme", "--expires", "soon"), 2, "30m, 12h or 90d"),
        (("create", "--tenant", "acme", "--scope", "root"), 2, "infer"),
        (("revoke", "nobody"), 1, f"no keys in {tmp_path}"),
        (("ls",), 1, "--data-dir"),
        (("create", "--tenant", "acme"), 0, f"for servers on {tmp_path}"),
        (("revoke", "nobody"), 1, "keys ls"),
    ):
        done = rootstock("keys", *words, "--data-dir", str(tmp_path))
        assert done.returncode == code, done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr


def test_a_key_says_where_it_is_and_whether_a_server_was_ever_there(tmp_path: Path) -> None:
    create = ("keys", "create", "--tenant", "acme", "--json", "--data-dir")
    elsewhere = rootstock(*create, str(tmp_path / "elsewhere"))
    assert f"for servers on {tmp_path / 'elsewhere'}" in elsewhere.stderr
    assert f"No server has used {tmp_path / 'elsewhere'} yet" in elsewhere.stderr
    assert str(tmp_path) not in elsewhere.stdout, "scripts read the key there"
    os.close(DataDir(tmp_path / "data").lock())
    here = rootstock(*create, str(tmp_path / "data"))
    assert f"for servers on {tmp_path / 'data'}" in here.stderr and "No server has used" not in here.stderr


def test_looking_for_keys_makes_no_directory(tmp_path: Path) -> None:
    assert rootstock("keys", "ls", "--data-dir", str(tmp_path / "typo")).returncode == 1
    assert not (tmp_path / "typo").exists()


def test_others_are_not_let_in_without_keys(tmp_path: Path) -> None:
    refused = rootstock("serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))
    assert refused.returncode == 1
    assert "keys create" in refused.stderr and "--keys off" in refused.stderr
    assert "Traceback" not in refused.stderr
