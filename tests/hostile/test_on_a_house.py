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
from tests.support.face import BASE
from tests.support.house_door import House, house
from tests.support.house_watch import said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("house")) as made:
        yield made


@pytest.fixture(scope="module")
def weights(home: House, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of an adapter that would be taken."""
    folder = write_adapter(tmp_path_factory.mktemp("good"), home.base.shape)
    return (folder / "adapter_model.safetensors").read_bytes()


def test_the_watch_sees_a_weight_that_changed(home: House) -> None:
    weight = home.base.model.get_parameter("model.norm.weight")
    kept = weight[0].clone()
    with torch.no_grad():
        weight[0] = torch.nextafter(kept, kept + 1)
        with pytest.raises(AssertionError, match="I1"):
            home.watch()
        weight[0] = kept
    home.watch()


def test_the_watch_hears_a_canary_that_changed(home: House) -> None:
    canary = home.face.catalog.resolve("canary").id
    low = next(iter(home.watch._runner._bank.get(canary).parts.values())).low
    kept = low.b_RO.clone()
    low.b_RO.mul_(-20)
    with pytest.raises(AssertionError, match="I2"):
        home.watch()
    low.b_RO.copy_(kept)
    home.watch()


def test_the_watch_misses_a_block_and_a_lease(home: House) -> None:
    pool = home.worker._engine.pool
    taken = pool.allocate(1)
    with pytest.raises(AssertionError, match="a block is held by nobody"):
        home.watch()
    pool.release(taken)
    with home.face.catalog.lease("canary"):
        assert home.watch.held()["leases"]
    home.watch()


@pytest.mark.parametrize("case", B21)
def test_b21_tensors_of_the_base_never_reach_it(home: House, tmp_path: Path, case: str) -> None:
    change, _ = B21[case]
    home.refused(home.upload(write_adapter(tmp_path, home.base.shape, change=change)))


@pytest.mark.parametrize("case", B22)
def test_b22_names_that_fit_nothing_change_nothing(home: House, tmp_path: Path, case: str) -> None:
    change, _ = B22[case]
    home.refused(home.upload(write_adapter(tmp_path, home.base.shape, change=change)))


@pytest.mark.parametrize("case", B25)
def test_b25_what_is_not_finite_never_gets_in(home: House, tmp_path: Path, case: str) -> None:
    change, _ = B25[case]
    home.refused(home.upload(write_adapter(tmp_path, home.base.shape, change=change)))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_b25_what_overflows_fails_its_own_row_alone(home: House, tmp_path: Path, kind: Kind) -> None:
    folder = write_adapter(tmp_path, home.base.shape, scale=1e37, kind=kind)
    assert home.upload(folder, "overflow").status_code == 201
    prompt, asked = [5, 9, 17], {"max_tokens": 60, "temperature": 0, "ignore_eos": True, "stream": True}
    with (
        home.live.client() as other,
        other.stream("POST", "/v1/completions", json={"model": "canary", "prompt": prompt} | asked) as beside,
    ):
        failed = home.http.post("/v1/completions", json={"model": "overflow", "prompt": prompt, "max_tokens": 4})
        assert (failed.status_code, failed.json()["error"]["code"]) == (422, "adapter_overflow")
        told = [line for line in beside.iter_lines() if line]
    assert told[-1] == "data: [DONE]" and len(told) > 2
    home.http.delete("/v1/adapters/overflow")
    home.invariants.check(failed)


def with_config(home: House, weights: bytes, field: str, value: Any) -> None:
    reply = home.post(json.dumps(peft_config(**{field: value})).encode(), weights)
    assert f"adapter_config.json: {field}" in home.refused(reply)


@pytest.mark.parametrize(("field", "value"), C30)
def test_c30_initialisations_leave_the_weights(home: House, weights: bytes, field: str, value: Any) -> None:
    with_config(home, weights, field, value)


@pytest.mark.parametrize(("field", "value"), C32)
def test_c32_what_is_not_served_leaves_the_model(home: House, weights: bytes, field: str, value: Any) -> None:
    with_config(home, weights, field, value)


@pytest.mark.parametrize(("field", "value"), C35)
def test_c35_what_would_import_leaves_the_model(home: House, weights: bytes, field: str, value: Any) -> None:
    with_config(home, weights, field, value)


def test_c35_a_plain_config_is_taken_and_heard(home: House, tmp_path: Path) -> None:
    """So that the refusals above are for their fields."""
    assert llama_shape().linears["model.layers.0.mlp.up_proj"] == home.base.shape.linears["model.layers.0.mlp.up_proj"]
    home.add(tmp_path, "plain", seed=5)
    assert said(home.http, "plain") != said(home.http, BASE)
    home.http.delete("/v1/adapters/plain")
    home.invariants.check()
