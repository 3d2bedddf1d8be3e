"""Peers: the pipe to libraries, the list, and that what is missing is told by name."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from bench.api import CompletionRequest
from bench.arrivals import ClosedLoop, Poisson
from bench.errors import BenchError
from bench.peers.command import PEERS, chosen
from bench.peers.library_target import PipeTarget, library_target
from bench.peers.loops import protocol
from bench.peers.peer import Environment, ServedModels, Unavailable
from bench.peers.vllm import Vllm
from tests.support.fake_loop import Instant

LOOP = "tests.support.fake_loop"
HERE = Environment(None)


@contextmanager
def piped(tmp_path: Path) -> Iterator[PipeTarget]:
    models = ServedModels(tmp_path, (tmp_path / "a0",), rank=4)
    with library_target("lib", LOOP, HERE, models, tmp_path / "log") as target:
        yield target


def test_a_library_is_measured_through_its_pipe(tmp_path: Path) -> None:
    with piped(tmp_path) as target:
        assert target.adapters == {"a0"}
        run = target.run(
            [CompletionRequest("", (1, 2), 3), CompletionRequest("a0", (1, 2), 3), CompletionRequest("", (3,), 3)],
            ClosedLoop(2),
            seed=0,
        )
        assert [timing.ids for timing in run.timings] == [(0, 0, 0), (2, 2, 2), (0, 0, 0)]
        assert all(gap > 0 for timing in run.timings for gap in timing.gaps_s)
        with pytest.raises(BenchError, match="lib: MemoryError: no room"):
            target.run([CompletionRequest("bad", (1,), 2)], ClosedLoop(1), seed=0)
        with pytest.raises(BenchError, match="1 tokens where 2"):
            target.run([CompletionRequest("short", (1,), 2)], ClosedLoop(1), seed=0)
        with pytest.raises(BenchError, match="closed loop only"):
            target.run([CompletionRequest("", (1,), 2)], Poisson(1), seed=0)
    assert target.process.poll() is not None, "it ends with the block"


def test_a_library_that_does_not_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    models = ServedModels(tmp_path / "nowhere", (), rank=4)
    with (
        pytest.raises(Unavailable, match="nowhere is no base"),
        library_target("lib", LOOP, HERE, models, tmp_path / "log"),
    ):
        pass


def test_what_cannot_mix_is_called_once_for_each_model() -> None:
    models = ("a1", "", "a1", "a0")
    assert protocol.calls(models, mixes=False) == [[0, 2], [1], [3]]
    assert protocol.calls(models, mixes=True) == [[0, 1, 2, 3]]


def test_timings_stay_with_their_requests() -> None:
    """Answered model by model, told in the order of requests."""
    requests = [
        protocol.Request(model, [1], tokens) for model, tokens in (("a1", 2), ("", 1), ("a1", 3), ("a0", 4), ("", 5))
    ]
    reply = protocol.answer(Instant(), requests, clients=4)
    arrivals = reply["arrivals_s"]
    assert isinstance(arrivals, list)
    assert [len(one) for one in arrivals] == [2, 1, 3, 4, 5]


def test_peers_are_chosen_by_name() -> None:
    assert [peer.name for peer in chosen(["peft", "vllm"])] == ["peft", "vllm"]
    assert chosen([]) == list(PEERS)
    with pytest.raises(typer.BadParameter, match="sglang: known are vllm"):
        chosen(["sglang"])


def test_vllm_gets_adapters_only_where_it_is_asked_to() -> None:
    models = ServedModels(Path("base"), (Path("adapters/a0"), Path("adapters/a1")), rank=16)
    with_them, without = Vllm("vllm", True).flags(models), Vllm("vllm-base", False).flags(models)
    assert with_them[-2:] == [f"a0={Path('adapters/a0').resolve()}", f"a1={Path('adapters/a1').resolve()}"]
    assert "--enable-lora" not in without


def test_a_command_that_fails_leaves_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="ended with 3(.|\n)*no such package"):
        HERE.check([HERE.python, "-c", "import sys; print('no such package'); sys.exit(3)"], tmp_path / "log")


def test_an_environment_knows_what_it_has(tmp_path: Path) -> None:
    assert HERE.has("json", "typer")
    assert not HERE.has("json", "no_such_module")
    assert not Environment(tmp_path / "none").has("json")
    assert subprocess.run([HERE.python, "--version"]).returncode == 0
