"""`rootstock serve` as it is started: it has its data directory to itself, and reads uploads in a process apart."""

from collections.abc import Iterator
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
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    refused = serving.http.post("/v1/adapters", data={"name": "good"}, files=files)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "invalid_adapter"), refused.text
    assert "longer than the limit of 0.001 seconds" in error["message"] and "a higher limit" in error["message"]
    assert serving.http.get("/v1/adapters/good").status_code == 404
