"""The LoRA product on a real GPU, all its ways, against the loop that defines it."""

import pytest
import torch

from adapters import op
from adapters.op import LowRank, Term, Terms, add_grouped
from bench.workload import Popularity, assign
from tests.support.gpu import DEVICE, needs_gpu

pytestmark = needs_gpu

IN, OUT, ADAPTERS = 256, 512, 9
RANKS = (1, 2, 3, 8, 16, 5, 64, 32, 7)


def parts(dtype: torch.dtype) -> list[LowRank | None]:
    torch.manual_seed(1)
    made: list[LowRank | None] = [
        LowRank(
            torch.randn(rank, IN, device=DEVICE).to(dtype) / 16,
            torch.randn(rank, OUT, device=DEVICE).to(dtype) / rank**0.5,
            0.5 + number,
        )
        for number, rank in enumerate(RANKS)
    ]
    made[3] = None
    return made


def terms(popularity: Popularity, rows: int) -> Terms:
    owners = sorted(assign(popularity, rows, ADAPTERS, seed=3))
    bounds = [at for at in range(1, rows) if owners[at] != owners[at - 1]]
    each = zip([0, *bounds], [*bounds, rows], strict=True)
    return Terms(rows, tuple(Term(owners[start], start, stop) for start, stop in each if start % 3), DEVICE)


def loop(x: torch.Tensor, lows: list[LowRank | None], batch: Terms) -> torch.Tensor:
    y = torch.zeros(len(x), OUT, dtype=torch.float64, device=DEVICE)
    for term in batch.terms:
        low, rows = lows[term.index], slice(term.start, term.stop)
        if low is not None:
            y[rows] = low.scaling * (x[rows].double() @ low.a_RI.double().T) @ low.b_RO.double()
    return y


@pytest.mark.parametrize("popularity", Popularity)
@pytest.mark.parametrize("way", ["dense", "segments", "grouped"])
def test_every_way_is_the_loop(popularity: Popularity, way: str) -> None:
    lows, batch, x = parts(torch.bfloat16), terms(popularity, 300), torch.randn(300, IN, device=DEVICE).bfloat16()
    y = torch.zeros(300, OUT, dtype=torch.bfloat16, device=DEVICE)
    present = [low for low in lows if low is not None]
    if way == "dense":
        op._add_dense(y, x, lows, present, batch)
    elif way == "segments":
        op._add_by_segment(y, x, lows, batch)
    elif any(lows[term.index] is not None for term in batch.terms):
        assert op.can_group(x, y, torch.bfloat16, torch.cuda.get_device_capability(DEVICE))
        add_grouped(y, x, lows, batch)
    want = loop(x, lows, batch)
    assert float((y.double() - want).abs().max()) <= 3e-2 * max(1.0, float(want.abs().max()))


def test_float32_is_the_loop_too() -> None:
    lows, batch, x = parts(torch.float32), terms(Popularity.UNIFORM, 300), torch.randn(300, IN, device=DEVICE)
    y = torch.zeros(300, OUT, device=DEVICE)
    op.add_low_rank(y, x, lows, batch)
    assert torch.allclose(y.double(), loop(x, lows, batch), rtol=1e-3, atol=1e-2)
