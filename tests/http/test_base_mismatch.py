"""Adapters that were trained on another base: refused wherever they come in, and where they are already."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from safetensors.numpy import load_file, save_file

from adapters.manifest import AdapterId
from adapters.provenance import ServedBase
from engine.errors import AdapterTooLarge
from tests.support.engine import FakeWorker
from tests.support.http import serve
from tests.support.server_rig import WEIGHTS, ServerRig, make_rig, served, write_adapter

OTHER = f"sha256:{8:064x}"


def trained(folder: Path, weights: str = WEIGHTS, quantization: str = "none", seed: int = 0) -> Path:
    file = write_adapter(folder, seed) / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"base_weights": weights, "base_quantization": quantization})
    return folder


def push(http: httpx.Client, name: str, folder: Path) -> httpx.Response:
    files = ("config", "adapter_config.json"), ("weights", "adapter_model.safetensors")
    return http.post(
        "/v1/adapters", data={"name": name}, files={field: (folder / file).read_bytes() for field, file in files}
    )


def ask(http: httpx.Client, model: str) -> httpx.Response:
    return http.post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 1})


def test_a_record_is_shown(http: httpx.Client, tmp_path: Path) -> None:
    card = push(http, "mine", trained(tmp_path / "mine")).json()
    assert (card["base_weights"], card["base_quantization"], card["refused"]) == (WEIGHTS, "none", None)
    plain = push(http, "plain", write_adapter(tmp_path / "plain", 1)).json()
    assert (plain["base_weights"], plain["base_quantization"], plain["refused"]) == (None, None, None)
    assert http.get("/v1/adapters/mine").json()["base_weights"] == WEIGHTS


def test_an_upload_from_another_base_is_a_409_that_names_both(http: httpx.Client, tmp_path: Path) -> None:
    refused = push(http, "other", trained(tmp_path / "other", OTHER))
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert error["code"] == "base_mismatch"
    assert OTHER in error["message"] and WEIGHTS in error["message"] and "--base" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert http.get("/v1/adapters/other").status_code == 404
    quantized = push(http, "other", trained(tmp_path / "nf4", quantization="nf4"))
    assert quantized.status_code == 409
    assert "--allow-quantization-mismatch" in quantized.json()["error"]["message"]


def test_so_it_is_on_vllms_route(http: httpx.Client, rig: ServerRig) -> None:
    assert rig.services.adapter_root is not None
    trained(rig.services.adapter_root / "other", OTHER)
    loaded = http.post("/v1/load_lora_adapter", json={"lora_name": "other", "lora_path": "other"})
    assert loaded.status_code == 409
    assert loaded.json()["error"]["code"] == "base_mismatch"


def test_with_the_setting_another_quantization_is_served(tmp_path: Path) -> None:
    with _live(tmp_path, served("nf4", allow=True)) as http:
        assert push(http, "plain", trained(tmp_path / "plain")).status_code == 201
        assert ask(http, "plain").status_code == 200
        assert push(http, "other", trained(tmp_path / "other", OTHER)).status_code == 409


def test_what_is_registered_is_refused_under_another_base_and_served_again_under_its_own(tmp_path: Path) -> None:
    with _live(tmp_path, served()) as http:
        push(http, "mine", trained(tmp_path / "mine"))
        push(http, "plain", write_adapter(tmp_path / "plain", 1))
        assert http.post("/v1/adapters/mine/pin").status_code == 200
    with _live(tmp_path, served(weights=OTHER)) as http:
        for reply in (ask(http, "mine"), http.post("/v1/adapters/mine/pin"), http.post("/v1/adapters/mine/merge")):
            assert reply.status_code == 409, reply.text
            assert reply.json()["error"]["code"] == "base_mismatch"
        cards = {card["name"]: card for card in http.get("/v1/adapters").json()["data"]}
        assert OTHER in cards["mine"]["refused"] and cards["plain"]["refused"] is None
        assert not cards["mine"]["pinned"]
        assert "mine" not in {model["id"] for model in http.get("/v1/models").json()["data"]}
        assert ask(http, "plain").status_code == 200
        assert push(http, "another", write_adapter(tmp_path / "another", 2)).status_code == 201, "pins stand in no way"
    with _live(tmp_path, served()) as http:
        assert ask(http, "mine").status_code == 200


class Crowded(FakeWorker):
    """Takes no more pins once it is full."""

    full = False

    async def pin(self, id: AdapterId) -> None:
        if self.full:
            raise AdapterTooLarge("no room beside the others")
        await super().pin(id)


def test_an_upload_stands_even_if_its_pin_cannot_follow(tmp_path: Path) -> None:
    worker = Crowded()
    with _live(tmp_path, served(), worker) as http:
        push(http, "first", write_adapter(tmp_path / "a", 1))
        assert http.post("/v1/adapters/first/pin").status_code == 200
        worker.full = True
        again = push(http, "first", write_adapter(tmp_path / "b", 2))
        assert again.status_code == 201, again.text
        assert again.json()["version"] == 2 and not again.json()["pinned"]
        assert http.post("/v1/adapters/first/pin").status_code == 507, "asked for by itself, a pin is told to fail"


@contextmanager
def _live(root: Path, base: ServedBase, worker: FakeWorker | None = None) -> Iterator[httpx.Client]:
    """A server over a data directory that outlives it."""
    rig = make_rig(root / "server", worker, base=base)
    with serve(rig.app) as server, server.client() as http:
        yield http
    rig.registry.close()
