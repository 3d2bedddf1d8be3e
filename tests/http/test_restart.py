"""kill -9, and the next start: everything that was answered is still there, and what was resident is warm again."""

from pathlib import Path

import httpx

from adapters.manifest import AdapterId
from adapters.registry import Registry
from loader.base import load
from loader.source import resolve
from tests.support.adapters import write_adapter
from tests.support.http import eventually
from tests.support.models import tiny_model_dir
from tests.support.served import served


def test_a_killed_server_comes_back_as_it_was(tmp_path: Path) -> None:
    model = tiny_model_dir("llama", tmp_path)
    shape = load(resolve(str(model), tmp_path), dtype="float32").shape
    folders = [write_adapter(tmp_path / str(n), shape, seed=n, scale=0.3) for n in range(2)]
    flags = ("--base", str(model), "--dtype", "float32", "--data-dir", str(tmp_path / "data"))
    budgets = ("--kv-cache-memory=8MiB", "--adapter-device-memory=8MiB", "--adapter-host-memory=8MiB")
    with served(*flags, *budgets, log=tmp_path / "first.log") as first, first.client() as http:
        for folder in folders:
            _upload(http, folder)
        assert http.put("/v1/adapters/red/aliases/prod", json={"version": 1}).is_success
        said = {ref: _complete(http, ref) for ref in ("red", "red@prod")}
        assert said["red"] != said["red@prod"]
        id = http.get("/v1/adapters/red").json()["id"]
        eventually(lambda: _noted(tmp_path / "data", id), within_s=30)
        first.process.kill()
        first.process.wait()
    with served(*flags, *budgets, log=tmp_path / "second.log") as second, second.client() as http:
        eventually(lambda: http.get("/v1/adapters/red").json()["state"] == "device")
        assert {ref: _complete(http, ref) for ref in said} == said
        assert [version["version"] for version in http.get("/v1/adapters/red/versions").json()["data"]] == [1, 2]


def _upload(http: httpx.Client, folder: Path) -> None:
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }
    assert http.post("/v1/adapters", data={"name": "red"}, files=files).status_code == 201


def _complete(http: httpx.Client, model: str) -> list[int]:
    body = {"model": model, "prompt": [5, 9, 17], "max_tokens": 6, "temperature": 0, "return_token_ids": True}
    reply = http.post("/v1/completions", json=body | {"ignore_eos": True})
    reply.raise_for_status()
    ids: list[int] = reply.json()["choices"][0]["token_ids"]
    return ids


def _noted(data: Path, id: str) -> bool:
    """Whether the registry on disk remembers that the adapter is resident."""
    registry = Registry(f"sqlite:///{data / 'registry.sqlite'}")
    try:
        return AdapterId(id) in registry.residents()
    finally:
        registry.close()
