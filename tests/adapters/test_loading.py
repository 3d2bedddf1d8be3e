"""Adapters read into memory: true rank, the base's dtype, DoRA's gains, and only bytes that have their digest."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import identity, layout, loading
from adapters.checkpoint import Checkpoint, read_directory
from adapters.errors import AdapterCorrupt, InvalidAdapter
from adapters.loading import Loader, Scratch
from loader import pages
from native.kernels import Kernels
from tests.support.adapters import Tensors, llama_shape, random_tensors, write_adapter, write_safetensors
from tests.support.kernels import kernels

SHAPE = llama_shape()
FACTORS = ("A.weight", "B.weight", "magnitude_vector")
Order = Callable[[Iterable[str]], list[str]]


def base_weight(path: str) -> Tensor:
    linear = SHAPE.linears[path]
    return torch.randn(linear.out_features, linear.in_features, generator=torch.Generator().manual_seed(len(path)))


def no_weight(path: str) -> Tensor:
    raise AssertionError("only DoRA needs the base's weight")


@pytest.fixture(params=["alone", "beside"])
def beside(request: pytest.FixtureRequest) -> Iterator[Executor | None]:
    """What hashes: nobody else, or another thread."""
    if request.param == "alone":
        yield None
        return
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture(params=["torch", "compiled"])
def packer(request: pytest.FixtureRequest) -> Kernels | None:
    """What packs: torch, or the compiled kernel."""
    return kernels() if request.param == "compiled" else None


def checkpoint(root: Path, **how: object) -> Checkpoint:
    return read_directory(write_adapter(root / "adapter", SHAPE, **how), SHAPE)  # type: ignore[arg-type]


def test_tensors_are_what_the_file_holds(tmp_path: Path) -> None:
    read = checkpoint(tmp_path, rank=4, ranks={"v_proj": 7}, seed=3)
    loaded = Loader(torch.float32, no_weight).load(read)
    raw = random_tensors(read.manifest.grafts, seed=3)
    assert loaded.parts.keys() == {graft.path for graft in read.manifest.grafts}
    for graft in read.manifest.grafts:
        low, prefix = loaded.parts[graft.path].low, f"base_model.model.{graft.path}"
        assert low.rank == graft.rank and low.scaling == graft.scaling
        assert np.array_equal(low.a_RI.numpy(), raw[f"{prefix}.lora_A.weight"])
        assert np.array_equal(low.b_RO.numpy().T, raw[f"{prefix}.lora_B.weight"])
        assert loaded.parts[graft.path].gain is None and low.b_RO.is_contiguous()


def mixed(tensors: Tensors) -> Tensors:
    return {name: values.astype(np.float16) if "q_proj" in name else values for name, values in tensors.items()}


@pytest.mark.parametrize(("piece", "block"), [(1 << 20, 1 << 18), (1, 1), (5000, 1000), (1000, 1 << 18)])
@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names, reverse=True)], ids=["sorted", "reversed"])
def test_pieces_of_any_size_make_the_same_adapter(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    piece: int,
    block: int,
    order: Order,
    beside: Executor | None,
    packer: Kernels | None,
) -> None:
    """Wherever a piece ends, and in whatever order the file has its tensors: a run is one tensor or all of them."""
    monkeypatch.setattr(layout, "PIECE_BYTES", piece)
    monkeypatch.setattr(identity, "BLOCK_BYTES", block)
    monkeypatch.setattr(identity, "HANDED_BYTES", block)
    monkeypatch.setattr(loading, "HANDED_BYTES", block)
    read = checkpoint(tmp_path, rank=4, ranks={"v_proj": 7}, seed=3, kind="dora", change=mixed)
    raw = mixed(random_tensors(read.manifest.grafts, seed=3))
    write_safetensors(read.weights, raw, order(raw))
    read = read_directory(read.weights.parent, SHAPE)
    assert {spec.dtype for spec in read.tensors.values()} == {"F16", "F32"}
    loaded = Loader(torch.bfloat16, base_weight, beside=beside, kernels=packer).load(read)
    for path, part in loaded.parts.items():
        a, b, magnitude = (torch.from_numpy(raw[f"base_model.model.{path}.lora_{which}"]) for which in FACTORS)
        assert torch.equal(part.low.a_RI, a.bfloat16()) and torch.equal(part.low.b_RO, b.bfloat16().t())
        adapted = base_weight(path) + part.low.scaling * part.low.b_RO.float().t() @ part.low.a_RI.float()
        assert part.gain is not None and torch.allclose(part.gain, magnitude.float() / adapted.norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("block", [1 << 20, 100])
@pytest.mark.parametrize("which", [-1, -200])
def test_bytes_that_changed_are_not_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, which: int, beside: Executor | None
) -> None:
    monkeypatch.setattr(identity, "BLOCK_BYTES", block)
    monkeypatch.setattr(identity, "HANDED_BYTES", block)
    monkeypatch.setattr(loading, "HANDED_BYTES", block)
    read = checkpoint(tmp_path)
    content = bytearray(read.weights.read_bytes())
    content[which] ^= 1
    read.weights.write_bytes(content)
    with pytest.raises(AdapterCorrupt, match="Upload it again"):
        Loader(torch.float32, no_weight, beside=beside).load(read)


def test_loads_one_after_the_other_share_memory_and_nothing_else(tmp_path: Path) -> None:
    scratch = Scratch()
    assert scratch.of(8, torch.uint8).data_ptr() == scratch.of(4, torch.uint8).data_ptr()
    reads = [checkpoint(tmp_path / str(seed), rank=rank, seed=seed, change=mixed) for seed, rank in ((1, 8), (2, 4))]
    loader = Loader(torch.bfloat16, no_weight, scratch=scratch)
    loaded = [loader.load(read) for read in reads]
    for one, read in zip(loaded, reads, strict=True):
        alone = Loader(torch.bfloat16, no_weight).load(read)
        assert all(torch.equal(part.low.a_RI, alone.parts[path].low.a_RI) for path, part in one.parts.items())
        assert all(torch.equal(part.low.b_RO, alone.parts[path].low.b_RO) for path, part in one.parts.items())


def test_a_file_that_became_shorter_is_damaged(tmp_path: Path) -> None:
    read = checkpoint(tmp_path)
    read.weights.write_bytes(read.weights.read_bytes()[:-1])
    with pytest.raises(AdapterCorrupt, match="Upload it again"):
        Loader(torch.float32, no_weight).load(read)


def test_gains_are_magnitudes_over_the_norms_of_adapted_rows(tmp_path: Path) -> None:
    read = checkpoint(tmp_path, kind="dora", seed=5, scale=0.3)
    loaded = Loader(torch.float32, base_weight).load(read)
    raw = random_tensors(read.manifest.grafts, seed=5, scale=0.3)
    for graft in read.manifest.grafts:
        low, gain = loaded.parts[graft.path].low, loaded.parts[graft.path].gain
        adapted = base_weight(graft.path).double() + graft.scaling * low.b_RO.double().T @ low.a_RI.double()
        magnitude = torch.from_numpy(raw[f"base_model.model.{graft.path}.lora_magnitude_vector"]).double()
        assert gain is not None and gain.dtype == torch.float32
        assert torch.allclose(gain.double(), magnitude / adapted.norm(dim=1), rtol=1e-5)


def enormous(tensors: Tensors) -> Tensors:
    return {name: values * 1e6 if "lora_B" in name else values for name, values in tensors.items()}


def test_numbers_too_large_for_the_bases_dtype_are_refused(tmp_path: Path, packer: Kernels | None) -> None:
    """In float16 they would be infinite, and 0 * inf in a neighbour's row is NaN."""
    read = checkpoint(tmp_path, change=enormous)
    Loader(torch.bfloat16, no_weight, kernels=packer).load(read)
    with pytest.raises(InvalidAdapter, match="too large for torch.float16"):
        Loader(torch.float16, no_weight, kernels=packer).load(read)


@pytest.mark.parametrize(("factor", "alpha", "fits"), [("lora_B", 8, False), ("lora_B", 4, True), ("lora_A", 8, True)])
def test_b_must_be_finite_when_it_is_scaled_too(
    factor: str, alpha: float, fits: bool, tmp_path: Path, packer: Kernels | None
) -> None:
    """A stage holds `s B`, and steps multiply it with zeros of other rows; A is never scaled."""

    def huge(tensors: Tensors) -> Tensors:
        return {name: np.full_like(values, 3e38) if factor in name else values for name, values in tensors.items()}

    read = checkpoint(tmp_path, rank=4, alpha=alpha, change=huge)
    for dtype in (torch.float32, torch.bfloat16):
        if fits:
            Loader(dtype, no_weight, kernels=packer).load(read)
            continue
        with pytest.raises(InvalidAdapter, match="B, times the adapter's scaling, are too large"):
            Loader(dtype, no_weight, kernels=packer).load(read)


def test_what_bf16_cannot_hold_is_refused(tmp_path: Path, packer: Kernels | None) -> None:
    """The largest float32 becomes infinite when it is rounded."""

    def largest(tensors: Tensors) -> Tensors:
        return {name: np.full_like(values, np.finfo(np.float32).max) for name, values in tensors.items()}

    read = checkpoint(tmp_path, change=largest)
    with pytest.raises(InvalidAdapter, match="some elements are too large for torch.bfloat16"):
        Loader(torch.bfloat16, no_weight, kernels=packer).load(read)


def test_large_adapters_that_come_and_go_use_the_same_memory(tmp_path: Path) -> None:
    wide = llama_shape(hidden=512, kv=512)
    reads = [read_directory(write_adapter(tmp_path / str(seed), wide, rank=256, seed=seed), wide) for seed in (1, 2)]
    loader = Loader(torch.bfloat16, no_weight)
    one = loader.load(reads[0])
    assert one.allocations[0].nbytes >= pages.LARGE
    begin, content = one.allocations[0].data_ptr(), one.allocations[0].clone()
    other = loader.load(reads[1])
    assert other.allocations[0].data_ptr() != begin and torch.equal(one.allocations[0], content)
    del one
    assert loader.load(reads[0]).allocations[0].data_ptr() == begin
