"""Uploads that are out to change others, on a real engine: after each, the weights, the canary's answer and all that is
held are what they were. The same cases in all their forms are in the files beside this one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.manifest import Kind
from tests.support.adapters import llama_shape, peft_config, write_adapter
from tests.support.broken_configs import C30, C32, C35
from tests.support.broken_files import B21, B22, B25
from tests.support.real_engine_server import RealEngineServer, real_engine_server
from tests.support.real_engine_watch import said
from tests.support.server_rig import BASE


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngineServer]:
    with real_engine_server(tmp_path_factory.mktemp("real")) as made:
        yield made


@pytest.fixture(scope="module")
def weights(real: RealEngineServer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of an adapter that would be taken."""
    folder = write_adapter(tmp_path_factory.mktemp("good"), real.base.shape)
    return (folder / "adapter_model.safetensors").read_bytes()


def test_the_watch_sees_a_weight_that_changed(real: RealEngineServer) -> None:
    weight = real.base.model.get_parameter("model.norm.weight")
    kept = weight[0].clone()
    with torch.no_grad():
        weight[0] = torch.nextafter(kept, kept + 1)
        with pytest.raises(AssertionError, match="I1"):
            real.watch()
        weight[0] = kept
    real.watch()


def test_the_watch_hears_a_canary_that_changed(real: RealEngineServer) -> None:
    canary = real.rig.catalog.resolve("canary").id
    low = next(iter(real.watch._runner._bank.get(canary).parts.values())).low
    kept = low.b_RO.clone()
    low.b_RO.mul_(-20)
    with pytest.raises(AssertionError, match="I2"):
        real.watch()
    low.b_RO.copy_(kept)
    real.watch()


def test_the_watch_misses_a_block_and_a_lease(real: RealEngineServer) -> None:
    pool = real.worker._engine.pool
    taken = pool.allocate(1)
    with pytest.raises(AssertionError, match="a block is held by nobody"):
        real.watch()
    pool.release(taken)
    with real.rig.catalog.lease("canary"):
        assert real.watch.held()["leases"]
    real.watch()


@pytest.mark.parametrize("case", B21)
def test_b21_tensors_of_the_base_never_reach_it(real: RealEngineServer, tmp_path: Path, case: str) -> None:
    change, _ = B21[case]
    real.refused(real.upload(write_adapter(tmp_path, real.base.shape, change=change)))


@pytest.mark.parametrize("case", B22)
def test_b22_names_that_fit_nothing_change_nothing(real: RealEngineServer, tmp_path: Path, case: str) -> None:
    change, _ = B22[case]
    real.refused(real.upload(write_adapter(tmp_path, real.base.shape, change=change)))


@pytest.mark.parametrize("case", B25)
def test_b25_what_is_not_finite_never_gets_in(real: RealEngineServer, tmp_path: Path, case: str) -> None:
    change, _ = B25[case]
    real.refused(real.upload(write_adapter(tmp_path, real.base.shape, change=change)))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_b25_what_overflows_fails_its_own_row_alone(real: RealEngineServer, tmp_path: Path, kind: Kind) -> None:
    folder = write_adapter(tmp_path, real.base.shape, scale=1e37, kind=kind)
    assert real.upload(folder, "overflow").status_code == 201
    prompt, asked = [5, 9, 17], {"max_tokens": 60, "temperature": 0, "ignore_eos": True, "stream": True}
    with (
        real.live.client() as other,
        other.stream("POST", "/v1/completions", json={"model": "canary", "prompt": prompt} | asked) as beside,
    ):
        failed = real.http.post("/v1/completions", json={"model": "overflow", "prompt": prompt, "max_tokens": 4})
        assert (failed.status_code, failed.json()["error"]["code"]) == (422, "adapter_overflow")
        events = [line for line in beside.iter_lines() if line]
    assert events[-1] == "data: [DONE]" and len(events) > 2
    real.http.delete("/v1/adapters/overflow")
    real.invariants.check(failed)


def with_config(real: RealEngineServer, weights: bytes, field: str, value: Any) -> None:
    reply = real.post(json.dumps(peft_config(**{field: value})).encode(), weights)
    assert f"adapter_config.json: {field}" in real.refused(reply)


@pytest.mark.parametrize(("field", "value"), C30)
def test_c30_initialisations_leave_the_weights(real: RealEngineServer, weights: bytes, field: str, value: Any) -> None:
    with_config(real, weights, field, value)


@pytest.mark.parametrize(("field", "value"), C32)
def test_c32_what_is_not_served_leaves_the_model(
    real: RealEngineServer, weights: bytes, field: str, value: Any
) -> None:
    with_config(real, weights, field, value)


@pytest.mark.parametrize(("field", "value"), C35)
def test_c35_what_would_import_leaves_the_model(real: RealEngineServer, weights: bytes, field: str, value: Any) -> None:
    with_config(real, weights, field, value)


def test_c35_a_plain_config_is_taken_and_heard(real: RealEngineServer, tmp_path: Path) -> None:
    """So that the refusals above are for their fields."""
    assert llama_shape().linears["model.layers.0.mlp.up_proj"] == real.base.shape.linears["model.layers.0.mlp.up_proj"]
    real.add(tmp_path, "plain", seed=5)
    assert said(real.http, "plain") != said(real.http, BASE)
    real.http.delete("/v1/adapters/plain")
    real.invariants.check()
