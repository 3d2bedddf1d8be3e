"""From `--base` to a directory: what is found, what is refused, and how fast an offline machine says so."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loader import directory, gguf, hub
from loader.errors import BaseNotFound, UnsafeWeights, UnsupportedBase
from loader.source import Source, resolve

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The files of a base, without anything in them that matters before loading."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    return path


def test_a_directory_is_taken_as_it_is(base: Path, tmp_path: Path) -> None:
    assert resolve(str(base), tmp_path) == Source("model", base.resolve())


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(base: Path, missing: str) -> None:
    (base / missing).unlink()
    with pytest.raises(BaseNotFound, match=missing.replace(".", r"\.")):
        directory.check(base)


def test_a_missing_shard_is_named(base: Path) -> None:
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (base / directory.INDEX).write_text(json.dumps({"weight_map": shards}))
    (base / "model-1.safetensors").write_bytes(b"")
    with pytest.raises(BaseNotFound, match=r"model-2\.safetensors"):
        directory.check(base)
    (base / "model-2.safetensors").write_bytes(b"")
    assert [file.name for file in directory.weight_files(base)] == sorted(shards.values())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused(base: Path, name: str) -> None:
    (base / "model.safetensors").rename(base / name)
    with pytest.raises(UnsafeWeights, match="safetensors"):
        directory.check(base)


def test_an_index_cannot_point_elsewhere(base: Path) -> None:
    (base / directory.INDEX).write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    with pytest.raises(UnsafeWeights, match="outside"):
        directory.check(base)


def test_weights_quantized_by_others_are_refused(base: Path) -> None:
    (base / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UnsupportedBase, match="gptq"):
        directory.check(base)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config_is_refused(base: Path, text: str) -> None:
    (base / "config.json").write_text(text)
    with pytest.raises(BaseNotFound, match="JSON"):
        directory.check(base)


@pytest.mark.parametrize("name", ["/no/such/model", "./nothing", "a//b", "", "a/b/c", "../x"])
def test_what_is_nothing_is_refused_without_the_hub(name: str, tmp_path: Path) -> None:
    if name in ("", "./nothing", "../x"):
        name = str(tmp_path / (name or "empty") / "x")
    with pytest.raises(BaseNotFound, match="--base embedded"):
        resolve(name, tmp_path)


def test_a_gguf_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound, match=r"x\.gguf does not exist"):
        resolve(str(tmp_path / "x.gguf"), tmp_path)


def test_a_finished_conversion_is_used_without_reading_the_gguf_again(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "Some Model.gguf"
    file.write_bytes(b"not a GGUF at all")
    made = tmp_path / "bases" / f"some-model-{gguf.digest(file)[:16]}-{gguf.FORMAT}"
    made.parent.mkdir()
    shutil.copytree(base, made)
    assert resolve(str(file), tmp_path) == Source("some-model", made)


def test_an_offline_hub_is_told_within_two_seconds(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "import huggingface_hub.errors\n"
        "from huggingface_hub import constants, snapshot_download\n"
        "from loader.errors import HubOffline\n"
        "from loader.source import resolve\n"
        "began = time.monotonic()\n"
        "try:\n"
        "    resolve('nobody/nothing', Path(sys.argv[1]))\n"
        "except HubOffline as error:\n"
        "    print(time.monotonic() - began, error)\n"
    )
    variables = {"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    for extra in ({"HF_ENDPOINT": NOWHERE}, {"HF_ENDPOINT": "http://host.invalid"}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env=variables | extra,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        seconds, message = done.stdout.split(" ", 1)
        assert float(seconds) < 2
        assert "nobody/nothing" in message and "--base embedded" in message


def test_a_silent_host_is_given_up_in_time() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert not hub.reachable("127.0.0.1", port, 0.5)
        listener.listen()
        assert hub.reachable("127.0.0.1", port, 0.5)
    began = time.monotonic()
    hub.reachable("192.0.2.1", 443, 0.2)
    assert time.monotonic() - began < 2


def test_the_proxy_is_probed_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert hub.gateway("https://example.org") == ("example.org", 443)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert hub.gateway("https://example.org") == ("proxy.example", 3128)
    monkeypatch.setenv("no_proxy", "example.org")
    assert hub.gateway("https://example.org") == ("example.org", 443)


def test_finding_a_base_needs_no_torch() -> None:
    code = (
        "import sys, loader.source, loader.plan, loader.memory, loader.estimate, loader.shape\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=60)
