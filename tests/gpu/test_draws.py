"""On a GPU tokens are drawn from the same distribution as on a CPU, by the same numbers."""

import pytest
import torch

from engine.draws import draw
from engine.sequence import SamplingParams
from tests.support.gpu import needs_gpu
from tests.support.sequences import sequence

pytestmark = needs_gpu


@pytest.mark.parametrize(
    "params",
    [SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_k=40, top_p=0.95), SamplingParams(min_p=0.02)],
    ids=str,
)
def test_draws_are_those_of_a_cpu(params: SamplingParams) -> None:
    """All but those whose number falls between the two roundings of a sum."""
    logits = torch.randn(64, 32_000, generator=torch.Generator().manual_seed(1)) * 3
    sequences = [sequence(params=params, stream=row) for row in range(len(logits))]
    here, there = draw(logits, sequences), draw(logits.cuda(), sequences)
    assert sum(one == other for one, other in zip(here, there, strict=True)) >= 62
