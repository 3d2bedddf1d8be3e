"""Copies beside the computing: in one piece, begun at once, and waited for at their first use and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters.bank import Bank, Loaded
from adapters.checkpoint import read_directory
from adapters.lane import Lane
from adapters.layer import Segment, Selection, Selections
from adapters.loading import Loader
from adapters.stage import Stage
from tests.support.adapters import llama_shape, write_adapter

CPU = torch.device("cpu")
SHAPE = llama_shape()
PATH = "model.layers.0.self_attn.q_proj"


class Queues:
    """Streams that write down what they are told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.kept: list[Tensor] = []
        self._marks = 0

    @contextmanager
    def copying(self) -> Iterator[None]:
        self.calls.append("copy")
        yield
        self.calls.append("copied")

    def mark(self) -> object:
        self._marks += 1
        self.calls.append(f"mark {self._marks}")
        return self._marks

    def wait(self, mark: object) -> None:
        self.calls.append(f"wait {mark}")

    def keep(self, tensor: Tensor) -> None:
        self.calls.append("keep")
        self.kept.append(tensor)


def adapter(root: Path, seed: int = 0, kind: str = "lora") -> Loaded:
    folder = write_adapter(root / f"{kind}-{seed}", SHAPE, kind=kind, seed=seed)  # type: ignore[arg-type]
    weight = torch.ones(64, 64)
    loader = Loader(torch.float32, lambda path: weight[: SHAPE.linears[path].out_features, :32])
    return loader.load(read_directory(folder, SHAPE))


@pytest.fixture
def queues() -> Queues:
    return Queues()


@pytest.fixture
def bank(queues: Queues) -> Bank:
    return Bank(CPU, lane=Lane(CPU, queues))


BEGUN = ["copy", "copied", "mark 1"]
CLAIMED = ["wait 1", "keep"]


def test_placing_begins_the_copy_and_waits_for_nothing(tmp_path: Path, queues: Queues, bank: Bank) -> None:
    bank.place(adapter(tmp_path))
    assert queues.calls == BEGUN


def test_the_first_use_waits_once_and_keeps_the_whole_allocation(tmp_path: Path, queues: Queues, bank: Bank) -> None:
    loaded = adapter(tmp_path)
    bank.place(loaded)
    part = bank.part(loaded.manifest.id, PATH)
    assert queues.calls == BEGUN, "a query waits for nothing"
    bank.claim(loaded.manifest.id)
    bank.claim(loaded.manifest.id)
    assert part is not None and queues.calls == BEGUN + CLAIMED
    assert queues.kept[0].untyped_storage().data_ptr() == part.low.a_RI.untyped_storage().data_ptr()
    assert queues.kept[0].nbytes == bank.num_bytes


def test_a_step_waits_once_and_before_any_linear(tmp_path: Path, queues: Queues, bank: Bank) -> None:
    loaded = adapter(tmp_path)
    bank.place(loaded)
    selection = Selections(bank).of([Segment(loaded.manifest.id, 0, 2)], None)
    assert queues.calls == BEGUN + CLAIMED
    selection.touch(PATH, bank)
    assert queues.calls == BEGUN + CLAIMED


def test_the_stage_waits_before_it_copies(tmp_path: Path, queues: Queues, bank: Bank) -> None:
    loaded = adapter(tmp_path)
    stage = Stage(bank, SHAPE.linears, torch.float32, 1)
    bank.place(loaded)
    stage.place([loaded.manifest.id])
    assert queues.calls == BEGUN + CLAIMED


def test_what_leaves_before_it_was_used_is_never_waited_for(tmp_path: Path, queues: Queues, bank: Bank) -> None:
    loaded = adapter(tmp_path)
    bank.place(loaded)
    bank.drop(loaded.manifest.id)
    assert queues.calls == BEGUN
    bank.place(loaded)
    bank.claim(loaded.manifest.id)
    assert queues.calls[len(BEGUN) :] == ["copy", "copied", "mark 2", "wait 2", "keep"], "the mark of the second copy"


def test_gains_come_as_one_more_allocation(tmp_path: Path, queues: Queues, bank: Bank) -> None:
    loaded = adapter(tmp_path, kind="dora")
    assert len(loaded.allocations) == 2
    bank.place(loaded)
    assert Selection.of([Segment(loaded.manifest.id, 0, 1)], bank).touch(PATH, bank) is not None
    assert queues.calls == [*BEGUN, "wait 1", "keep", "keep"]


def test_an_adapter_over_copies_is_the_same_adapter(tmp_path: Path) -> None:
    loaded = adapter(tmp_path, kind="dora")
    copies = [allocation.clone() for allocation in loaded.allocations]
    moved = loaded.moved(copies)
    pointers = {copy.data_ptr() for copy in copies}
    for path, part in loaded.parts.items():
        other = moved.parts[path]
        assert torch.equal(part.low.a_RI, other.low.a_RI) and torch.equal(part.low.b_RO, other.low.b_RO)
        assert part.gain is not None and other.gain is not None and torch.equal(part.gain, other.gain)
        assert part.low.scaling == other.low.scaling and other.low.b_RO.is_contiguous()
        for tensor in (other.low.a_RI, other.low.b_RO, other.gain):
            assert tensor.untyped_storage().data_ptr() in pointers
