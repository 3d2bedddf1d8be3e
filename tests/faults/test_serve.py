"""`rootstock serve` as it is started: it has its data directory to itself, and reads uploads in a sandbox."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from adapters.checkpoint import read_directory
from loader.base import load
from loader.shape import BaseShape
from loader.source import resolve
from tests.support.adapters import write_adapter
from tests.support.models import tiny_model_dir
from tests.support.served import run, served

BUDGETS = ("--kv-cache-memory=8MiB", "--adapter-device-memory=8MiB", "--adapter-host-memory=8MiB")


@dataclass(frozen=True, slots=True)
class Serving:
    """A client of a server that gives the reading of an upload no time at all."""

    http: httpx.Client
    flags: tuple[str, ...]
    data: Path
    shape: BaseShape


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("serve")
    model, data = tiny_model_dir("llama", root), root / "data"
    shape = load(resolve(str(model), root), dtype="float32").shape
    flags = ("--base", str(model), "--dtype", "float32", "--data-dir", str(data), *BUDGETS)
    with served(*flags, "--validation-timeout=0.001", log=root / "log") as running, running.client() as http:
        yield Serving(http, flags, data, shape)


def test_g73_a_second_server_does_not_start(serving: Serving) -> None:
    """Nor does it take away what the first one is just receiving."""
    receiving = serving.data / "uploads" / "half.part"
    receiving.parent.mkdir(exist_ok=True)
    receiving.touch()
    refused = run("serve", "--port", "0", *serving.flags)
    assert refused.returncode == 1
    told = f"Another server uses {serving.data}. Stop it, or give this one its own --data-dir."
    assert refused.stderr.strip() == told
    assert receiving.exists() and serving.http.get("/readyz").status_code == 200


def test_an_upload_is_read_apart_within_the_limits_of_the_settings(serving: Serving, tmp_path: Path) -> None:
    """The adapter is a good one; but what starts a process takes longer than this server allows."""
    folder = write_adapter(tmp_path, serving.shape)
    read_directory(folder, serving.shape)  # raises for one that is not
    files = {"config": _config(folder), "weights": _weights(folder)}
    refused = serving.http.post("/v1/adapters", data={"name": "good"}, files=files)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "invalid_adapter"), refused.text
    assert "longer than the limit of 0.001 seconds" in error["message"] and "a higher limit" in error["message"]
    assert serving.http.get("/v1/adapters/good").status_code == 404


def test_an_upload_that_takes_too_much_memory_to_read_fails_alone(serving: Serving, tmp_path: Path) -> None:
    """Its config is legal in length, and takes far more memory as objects than this server gives to a reader."""
    folder = write_adapter(tmp_path / "adapter", serving.shape)
    bloated = '{"x": [' + '{"":{"":0}},' * 80_000 + "0]}"
    flags = ("--data-dir", str(tmp_path / "data"), "--validation-memory=40MiB")
    with served(*serving.flags, *flags, log=tmp_path / "log") as running, running.client() as http:
        at, refused = _push(http, folder, "bloated", bloated)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_adapter"), refused.text
        card = http.get(at).json()
        assert card["state"] == "failed" and "more than the limit of 40 MiB of memory" in card["reason"]
        assert "a higher limit" in card["reason"] and http.get("/v1/adapters/bloated").status_code == 404
        at, stored = _push(http, folder, "good", _config(folder).decode())
        assert stored.status_code == 201 and http.get(at).json()["state"] == "ready", "the same limit, and enough"
        said = http.post("/v1/completions", json={"model": "good", "prompt": [5, 9], "max_tokens": 2})
        assert said.status_code == 200 and running.process.poll() is None


def _overwritten(registry: Path) -> None:
    registry.write_bytes(b"not a database" * 999)


def _of_a_newer_release(registry: Path) -> None:
    with closing(sqlite3.connect(registry)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()


def test_g70_serve_refuses_such_a_registry_says_how_to_go_on_and_serves_what_was_found_again(
    serving: Serving, tmp_path: Path
) -> None:
    folder, data = write_adapter(tmp_path / "adapter", serving.shape), tmp_path / "data"
    flags, registry = (*serving.flags, "--data-dir", str(data)), data / "registry.sqlite"
    asked = {"model": "kept", "prompt": [5, 9], "max_tokens": 8, "temperature": 0}
    with served(*flags, "--adapter", f"kept={folder}", log=tmp_path / "log") as running, running.client() as http:
        said = http.post("/v1/completions", json=asked).raise_for_status().json()["choices"]
    for damage, told in ((_of_a_newer_release, "newer release"), (_overwritten, "rootstock doctor")):
        damage(registry)
        refused = run("serve", "--port", "0", *flags)
        assert refused.returncode == 1 and told in refused.stderr and "Traceback" not in refused.stderr, refused.stderr
    assert run("doctor", "--data-dir", str(data), "--rebuild").returncode == 0
    with served(*flags, log=tmp_path / "log") as running, running.client() as http:
        assert http.post("/v1/completions", json=asked).raise_for_status().json()["choices"] == said


def _push(http: httpx.Client, folder: Path, name: str, config: str) -> tuple[str, httpx.Response]:
    """An upload in pieces of the folder's weights under this config: where it is, and what its end was told."""
    weights = _weights(folder)
    at = http.post("/v1/adapters/uploads", json={"name": name, "config": config, "size": len(weights)})
    where = at.raise_for_status().headers["location"]
    http.patch(where, content=weights, headers={"upload-offset": "0"}).raise_for_status()
    return where, http.put(where, params={"digest": f"sha256:{hashlib.sha256(weights).hexdigest()}"})


def _config(folder: Path) -> bytes:
    return (folder / "adapter_config.json").read_bytes()


def _weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()
