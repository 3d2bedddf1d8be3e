"""Bytes between the tiers: read and checked in background threads, placed, dropped."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor

from adapters.bank import Bank
from adapters.checkpoint import Checkpoint, read_directory
from adapters.errors import AdapterCorrupt, UnknownAdapter
from adapters.manifest import AdapterId
from adapters.mover import Arrival
from adapters.store import BlobStore
from adapters.supply import Supply
from tests.support.adapters import llama_shape, write_adapter

SHAPE = llama_shape()


def base_weight(path: str) -> Tensor:
    linear = SHAPE.linears[path]
    return torch.ones(linear.out_features, linear.in_features)


class Unreadable(BlobStore):
    """A store whose reads end in OSError while `number` is one."""

    number: int | None = None

    def open(self, id: AdapterId) -> Checkpoint:
        if self.number is not None:
            raise OSError(self.number, os.strerror(self.number))
        return super().open(id)


class Yard:
    """A supply over a store on disk, and the arrivals it reports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Unreadable(root / "store")
        self.bank = Bank(torch.device("cpu"))
        self.supply = Supply(self.store, self.bank, torch.float32, base_weight)
        self.arrivals: SimpleQueue[Arrival] = SimpleQueue()

    def add(self, seed: int, kind: str = "lora") -> AdapterId:
        folder = write_adapter(self.root / f"{kind}-{seed}", SHAPE, kind=kind, seed=seed)  # type: ignore[arg-type]
        return self.store.put(read_directory(folder, SHAPE))

    def fetch(self, adapter: AdapterId) -> Arrival:
        self.supply.fetch(adapter, self.arrivals.put)
        return self.arrivals.get(timeout=20)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    yield made
    made.supply.close()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_from_disk_to_device_and_back(yard: Yard, kind: str) -> None:
    adapter = yard.add(1, kind)
    arrival = yard.fetch(adapter)
    assert arrival.adapter == adapter and arrival.error is None and arrival.seconds > 0
    yard.supply.place(adapter)
    assert adapter in yard.bank and yard.bank.num_bytes == yard.supply.size(adapter)
    yard.supply.drop_host(adapter)
    assert yard.bank.part(adapter, "model.layers.0.self_attn.q_proj") is not None, "the device's copy is its own"
    yard.supply.drop_device(adapter)
    assert adapter not in yard.bank


def test_many_reads_each_report_once(yard: Yard) -> None:
    adapters = [yard.add(seed) for seed in range(8)]
    for adapter in adapters:
        yard.supply.fetch(adapter, yard.arrivals.put)
    arrived = [yard.arrivals.get(timeout=20) for _ in adapters]
    assert {arrival.adapter for arrival in arrived} == set(adapters) and yard.arrivals.empty()


def test_changed_bytes_are_not_served(yard: Yard) -> None:
    adapter = yard.add(1)
    weights = yard.store.path(adapter) / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(content)
    assert isinstance(yard.fetch(adapter).error, AdapterCorrupt)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_g69_a_read_that_fails_is_told_and_the_next_one_is_well(yard: Yard, number: int) -> None:
    """What cannot be read now is not damaged: it stays where it is, and nothing of it is in memory."""
    adapter, other = yard.add(1), yard.add(2)
    assert yard.fetch(other).error is None
    yard.store.number = number
    error = yard.fetch(adapter).error
    assert isinstance(error, OSError) and error.errno == number
    yard.store.number = None
    assert not yard.store.quarantined() and set(yard.store.ids()) == {adapter, other}
    yard.supply.place(other)
    assert yard.fetch(adapter).error is None, "both reading threads are still there"
    yard.supply.place(adapter)


def test_a_deleted_blob_is_told_by_the_read(yard: Yard) -> None:
    adapter = yard.add(1)
    yard.store.delete(adapter)
    assert isinstance(yard.fetch(adapter).error, UnknownAdapter)
    with pytest.raises(UnknownAdapter):
        yard.supply.size(adapter)


def test_closing_waits_for_reads_under_way(yard: Yard) -> None:
    adapters = [yard.add(seed) for seed in range(6)]
    for adapter in adapters:
        yard.supply.fetch(adapter, yard.arrivals.put)
    yard.supply.close()
    reported = yard.arrivals.qsize()
    assert reported <= 6
    for _ in range(reported):
        assert yard.arrivals.get().error is None
    assert yard.arrivals.empty(), "nothing comes after closing"
