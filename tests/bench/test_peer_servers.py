"""Peers that are servers: how they are started and ended, and what has to be at hand to install them."""

import sys
import tarfile
from pathlib import Path

import httpx
import psutil
import pytest

from bench import launch
from bench.api import Dialect, LlamaCpp
from bench.peers import llama_cpp, preloaded_libraries, vllm
from bench.peers.loops.openvino_loop import scale
from bench.peers.peer import Unavailable, all_cores, content_key, partial_path
from bench.peers.server import running_peer


def command(port: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "tests.support.fake_peer", str(port), *more]


def test_a_server_gets_its_settings_is_prepared_and_ends_with_its_children(tmp_path: Path) -> None:
    port = launch.free_port()
    settings = {"PEER_SETTING": "all cores"}
    with running_peer(
        "p", command(port), port, Dialect.LLAMA_CPP, tmp_path / "log", settings, llama_cpp.zero_adapter_scales
    ) as target:
        health = httpx.get(f"{target.url}/health").json()
        scales = [adapter["scale"] for adapter in httpx.get(f"{target.url}/lora-adapters").json()]
        assert health["told"] == "all cores"
        assert scales == [0.0, 0.0], "it starts with all adapters in force"
        assert target.adapters == {"a0", "a1"} and isinstance(target.api, LlamaCpp)
    assert not psutil.pid_exists(health["child"]) or psutil.Process(health["child"]).status() == psutil.STATUS_ZOMBIE


def test_a_server_that_does_not_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    port = launch.free_port()
    served = running_peer("p", command(port, "no AVX512 here"), port, Dialect.VLLM, tmp_path / "log", {})
    with pytest.raises(Unavailable, match="no AVX512 here"), served:
        pass


def test_vllm_computes_on_all_cores_with_both_libraries(tmp_path: Path) -> None:
    openmp, allocator = (
        tmp_path / "lib" / preloaded_libraries.INTEL_OPENMP,
        tmp_path / "debian/usr/lib/some" / preloaded_libraries.TCMALLOC,
    )
    for library in (openmp, allocator):
        library.parent.mkdir(parents=True)
        library.touch()
    settings = vllm.settings(tmp_path)
    assert settings["LD_PRELOAD"].startswith(f"{allocator}:") or "/usr/" in settings["LD_PRELOAD"]
    assert settings["LD_PRELOAD"].endswith(f":{openmp}")
    assert settings["VLLM_CPU_OMP_THREADS_BIND"] == f"0-{int(all_cores()['OMP_NUM_THREADS']) - 1}"


def test_vllm_is_not_measured_without_what_makes_it_fast(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"libiomp5\.so is missing"):
        preloaded_libraries.libraries(tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / preloaded_libraries.INTEL_OPENMP).touch()
    with pytest.raises(Unavailable, match="install libtcmalloc-minimal4"):
        preloaded_libraries.libraries(tmp_path, system=())


def archive(directory: Path, names: tuple[str, ...]) -> Path:
    sdist = directory / "package-1.tar.gz"
    with tarfile.open(sdist, "w:gz") as packed:
        for name in names:
            file = directory / Path(name).name
            file.write_text(name)
            packed.add(file, f"package-1/{name}")
    return sdist


def test_a_source_package_is_unpacked_whole_or_not_at_all(tmp_path: Path) -> None:
    converters = tuple(f"llama.cpp/{name}" for name in llama_cpp.CONVERTERS)
    target = tmp_path / "source"
    with pytest.raises(Unavailable, match=r"lacks convert_lora_to_gguf\.py"):
        llama_cpp.extract(archive(tmp_path, converters[:1]), target)
    assert not target.exists()
    llama_cpp.extract(archive(tmp_path, (*converters, "setup.py")), target)
    assert (target / "setup.py").exists() and not partial_path(target).exists()


def test_conversions_are_kept_under_what_they_were_made_from(tmp_path: Path) -> None:
    adapter = tmp_path / "a0"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 32}')
    (adapter / "adapter_model.safetensors").write_bytes(b"one")
    first = content_key(adapter)
    assert first.startswith("a0-") and first == content_key(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"two")
    assert content_key(adapter) != first


def test_openvino_is_told_the_scale_that_it_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 40}')
    assert scale(tmp_path) == 2.5


def test_llama_cpps_base_is_quantized_once(tmp_path: Path) -> None:
    program = tmp_path / "lib" / "python3" / "site-packages" / llama_cpp.MODULE / "bin" / "llama-quantize"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$(cat "$1") as $3" >> "$2"\n')
    program.chmod(0o755)
    base = tmp_path / "base.gguf"
    base.write_text("weights")
    for _ in range(2):
        assert llama_cpp._quantized(tmp_path, base, "Q4_0").read_text() == "weights as Q4_0\n"
    with pytest.raises(Unavailable, match="llama-server"):
        llama_cpp._program(tmp_path, "llama-server")
