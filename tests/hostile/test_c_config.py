"""Cases 28 to 36: an adapter_config.json that is broken, hostile, or of a method that is not served."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from adapters.checkpoint import read
from adapters.config import FILE as CONFIG
from adapters.errors import InvalidAdapter
from adapters.header import FILE as WEIGHTS
from tests.support.adapters import llama_shape, peft_config, write_adapter
from tests.support.audited import audit_of_reading
from tests.support.broken_configs import C28, C29, C30, C31, C32, C32_VALUES, C33, C35, C36
from tests.support.checked_server import SHAPE, CheckedServer
from tests.support.processor import least_time


def refused(checked: CheckedServer, good: Path, field: str, value: Any) -> str:
    """The message for a config that is fine but for one field, which it names."""
    config = json.dumps(peft_config(**{field: value})).encode()
    message = checked.refused(checked.post(config, (good / "adapter_model.safetensors").read_bytes()))
    assert f"adapter_config.json: {field}" in message
    return message


@pytest.mark.parametrize(("field", "value"), C28)
def test_c28_ranks(checked: CheckedServer, good: Path, field: str, value: Any) -> None:
    refused(checked, good, field, value)


@pytest.mark.parametrize("rank", [256, 2_000_000])
def test_c28_a_rank_allocates_nothing(good: Path, rank: int) -> None:
    """Tensors of that rank would be 90 KiB for a small one, and 700 MiB."""
    config = json.dumps(peft_config(r=rank)).encode()
    tracemalloc.start()
    with pytest.raises(InvalidAdapter):
        read(config, good / "adapter_model.safetensors", SHAPE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(("field", "value"), C29)
def test_c29_alphas(checked: CheckedServer, good: Path, field: str, value: Any) -> None:
    refused(checked, good, field, value)


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules", "peft_type"])
def test_c29_what_is_missing_is_never_guessed(checked: CheckedServer, good: Path, field: str) -> None:
    config = peft_config()
    del config[field]
    reply = checked.post(json.dumps(config).encode(), (good / "adapter_model.safetensors").read_bytes())
    checked.refused(reply)
    assert [fault["where"] for fault in reply.json()["error"]["faults"]] == [f"adapter_config.json: {field}"]


@pytest.mark.parametrize(("field", "value"), C30)
def test_c30_initialisations_that_change_the_base(checked: CheckedServer, good: Path, field: str, value: Any) -> None:
    refused(checked, good, field, value)


@pytest.mark.parametrize(("field", "value"), C31)
def test_c31_patterns_are_never_run(checked: CheckedServer, good: Path, field: str, value: Any) -> None:
    """Client, server and all that is looked at afterwards take less time together than one run of the pattern."""
    assert least_time(lambda: refused(checked, good, field, value)) < 0.1


@pytest.mark.parametrize(("field", "value"), C32)
def test_c32_what_is_not_served_is_refused_by_name(checked: CheckedServer, good: Path, field: str, value: Any) -> None:
    assert f"adapter_config.json: {field}: unsupported: " in refused(checked, good, field, value)


@pytest.mark.parametrize(("field", "value"), C32_VALUES)
def test_c32_what_is_served_has_values_too(checked: CheckedServer, good: Path, field: str, value: Any) -> None:
    refused(checked, good, field, value)


def test_c32_a_module_that_is_not_there_is_told_beside_those_that_are(checked: CheckedServer, good: Path) -> None:
    message = refused(checked, good, "target_modules", ["query_key_value"])
    assert "no linear layer called 'query_key_value'; it has down_proj, gate_proj, k_proj" in message


def test_c32_of_many_faults_a_thousand_are_told(checked: CheckedServer, good: Path) -> None:
    """Else a config of a megabyte would be answered with many, which the event loop writes."""
    unknown = {f"unknown{number}": 0 for number in range(50_000)}
    reply = checked.post(json.dumps(peft_config(**unknown)).encode(), (good / "adapter_model.safetensors").read_bytes())
    assert "(50000 faults)" in checked.refused(reply)
    assert len(reply.json()["error"]["faults"]) == 1000


@pytest.mark.parametrize(("field", "value"), C33)
def test_c33_other_methods(checked: CheckedServer, good: Path, field: str, value: Any) -> None:
    refused(checked, good, field, value)


def test_c34_another_base_is_told_with_both_names(checked: CheckedServer, tmp_path: Path) -> None:
    other = llama_shape(layers=3, hidden=48)
    named = write_adapter(tmp_path / "named", other, base_model_name_or_path="org/other")
    message = checked.refused(checked.upload(named))
    assert "'org/other'" in message and "'tiny-llama'" in message
    claims = write_adapter(tmp_path / "claims", other, base_model_name_or_path="tiny-llama")
    assert "expected shape [4, 32], got [4, 48]" in checked.refused(checked.upload(claims))


@pytest.mark.parametrize(("field", "value"), C35)
def test_c35_what_names_code_or_a_place_is_refused(checked: CheckedServer, good: Path, field: str, value: Any) -> None:
    refused(checked, good, field, value)


def test_c35_nothing_is_imported_or_fetched(good: Path, tmp_path: Path) -> None:
    """Whatever a config names is there to be imported, beside the adapter and where the reader works."""
    weights, configs = good / "adapter_model.safetensors", [*C30, *C32, *C35]
    for number, (field, value) in enumerate(configs):
        folder = tmp_path / "adapters" / str(number)
        evil(folder)
        (folder / "adapter_model.safetensors").hardlink_to(weights)
        (folder / "adapter_config.json").write_text(json.dumps(peft_config(**{field: value})))
    evil(tmp_path)
    folders = sorted((tmp_path / "adapters").iterdir())
    audit = audit_of_reading(SHAPE, good, folders, at=tmp_path)
    assert audit.refused == len(folders) == len(configs)
    opened = {("open", str(folder / file)) for folder in folders for file in (CONFIG, WEIGHTS)}
    assert audit.seen == opened, audit.seen ^ opened
    assert not list(tmp_path.rglob("sentinel"))


def evil(folder: Path) -> None:
    """Modules that leave a file where they are imported from."""
    for package in ("evil", "transformersx"):
        (folder / package).mkdir(parents=True)
        for module in ("__init__", "module", "evil"):
            code = "from pathlib import Path\nPath(__file__).with_name('sentinel').touch()\n"
            (folder / package / f"{module}.py").write_text(code)


@pytest.mark.parametrize("case", C36)
def test_c36_json_that_readers_could_understand_differently(checked: CheckedServer, good: Path, case: str) -> None:
    raw, words = C36[case]
    reply = checked.post(raw, (good / "adapter_model.safetensors").read_bytes())
    if len(raw) > 1 << 20:
        assert "too large" in checked.refused(reply, 413, "body_too_large")
        return
    assert words in checked.refused(reply)


def test_c36_fifty_megabytes_are_not_read(checked: CheckedServer, good: Path) -> None:
    checked.refused(
        checked.post(b" " * (50 << 20), (good / "adapter_model.safetensors").read_bytes()), 413, "body_too_large"
    )
