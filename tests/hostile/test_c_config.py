"""Cases 28 to 36: an adapter_config.json that is broken, hostile, or of a method that is not served."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.adapters import llama_shape, peft_config, write_adapter
from tests.support.broken_configs import C28, C29, C30, C31, C32, C33, C35, C36
from tests.support.door import Door
from tests.support.processor import least_time


def refused(door: Door, good: Path, field: str, value: Any) -> str:
    """The message for a config that is fine but for one field, which it names."""
    config = json.dumps(peft_config(**{field: value})).encode()
    message = door.refused(door.post(config, (good / "adapter_model.safetensors").read_bytes()))
    assert f"adapter_config.json: {field}" in message
    return message


@pytest.mark.parametrize(("field", "value"), C28)
def test_c28_ranks(door: Door, good: Path, field: str, value: Any) -> None:
    refused(door, good, field, value)


@pytest.mark.parametrize(("field", "value"), C29)
def test_c29_alphas(door: Door, good: Path, field: str, value: Any) -> None:
    refused(door, good, field, value)


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules", "peft_type"])
def test_c29_what_is_missing_is_never_guessed(door: Door, good: Path, field: str) -> None:
    config = peft_config()
    del config[field]
    reply = door.post(json.dumps(config).encode(), (good / "adapter_model.safetensors").read_bytes())
    door.refused(reply)
    assert [fault["where"] for fault in reply.json()["error"]["faults"]] == [f"adapter_config.json: {field}"]


@pytest.mark.parametrize(("field", "value"), C30)
def test_c30_initialisations_that_change_the_base(door: Door, good: Path, field: str, value: Any) -> None:
    refused(door, good, field, value)


@pytest.mark.parametrize(("field", "value"), C31)
def test_c31_patterns_are_never_run(door: Door, good: Path, field: str, value: Any) -> None:
    """Client, server and all that is looked at afterwards take less time together than one run of the pattern."""
    assert least_time(lambda: refused(door, good, field, value)) < 0.1


@pytest.mark.parametrize(("field", "value"), C32)
def test_c32_what_is_not_served_is_refused_by_name(door: Door, good: Path, field: str, value: Any) -> None:
    refused(door, good, field, value)


@pytest.mark.parametrize(("field", "value"), C33)
def test_c33_other_methods(door: Door, good: Path, field: str, value: Any) -> None:
    refused(door, good, field, value)


def test_c34_another_base_is_told_with_both_names(door: Door, tmp_path: Path) -> None:
    other = llama_shape(layers=3, hidden=48)
    named = write_adapter(tmp_path / "named", other, base_model_name_or_path="org/other")
    message = door.refused(door.upload(named))
    assert "'org/other'" in message and "'tiny-llama'" in message
    claims = write_adapter(tmp_path / "claims", other, base_model_name_or_path="tiny-llama")
    assert "expected shape [4, 32], got [4, 48]" in door.refused(door.upload(claims))


@pytest.mark.parametrize(("field", "value"), C35)
def test_c35_nothing_is_imported_or_fetched(
    door: Door, good: Path, field: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, port = door.live.url.removeprefix("http://").split(":")
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        assert address == (host, int(port)), "a socket was opened to somewhere else"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    before = set(sys.modules)
    refused(door, good, field, value)
    assert not {name for name in set(sys.modules) - before if "evil" in name or "transformers" in name}


@pytest.mark.parametrize("case", C36)
def test_c36_json_that_readers_could_understand_differently(door: Door, good: Path, case: str) -> None:
    raw, words = C36[case]
    reply = door.post(raw, (good / "adapter_model.safetensors").read_bytes())
    if len(raw) > 1 << 20:
        assert "too large" in door.refused(reply, 413, "body_too_large")
        return
    assert words in door.refused(reply)


def test_c36_fifty_megabytes_are_not_read(door: Door, good: Path) -> None:
    door.refused(door.post(b" " * (50 << 20), (good / "adapter_model.safetensors").read_bytes()), 413, "body_too_large")
