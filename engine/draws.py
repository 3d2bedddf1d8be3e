"""The draw: a token for each of many rows, by its request's temperature, filters and stream of random numbers.

Owns top-k, top-p and min-p, and the inversion of the cumulative distribution. Knows requests, not models; penalties,
bias and constraints have been applied before. Each row depends on its own logits and request only.

Shape suffixes: R rows to draw for, V vocabulary, B blocks of it with N tokens each, K the largest of it.
"""

from collections.abc import Sequence as Seq
from hashlib import blake2b
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.sequence import SamplingParams, Sequence

BLOCK = 128
COLDEST = 1e-6  # below this only the best token is left, and dividing by less overflows


def draw(logits_RV: Tensor, sequences: Seq[Sequence]) -> list[int]:
    """In the order of ids, the token at which each row's cumulative distribution passes its next random number.

    Looks for it by the sums of blocks first: to add up a whole vocabulary token by token takes several times as long as
    all the rest. Each row's largest logit is finite.
    """
    params = [sequence.params for sequence in sequences]
    weights_RV = _weights(logits_RV, params)
    for weights_V, p in zip(weights_RV, params, strict=True):
        if p.top_k or p.top_p < 1.0 or p.min_p:
            _filter(weights_V, p)
    numbers = [uniform(sequence.stream, sequence.num_generated) for sequence in sequences]
    numbers_R = torch.tensor(numbers, dtype=torch.float64).to(logits_RV.device)
    blocks_RBN = weights_RV.unflatten(-1, (-1, BLOCK))
    sums_RB = blocks_RBN.sum(-1).double()
    block_R, left_R = _invert(sums_RB, numbers_R * sums_RB.sum(-1))
    within_R, _ = _invert(blocks_RBN[torch.arange(len(block_R), device=block_R.device), block_R].double(), left_R)
    return cast(list[int], (block_R * BLOCK + within_R).tolist())


def _invert(weights_RN: Tensor, at_R: Tensor) -> tuple[Tensor, Tensor]:
    """The place where each row's sum passes `at`, which is never one without weight, and what of `at` is left there."""
    up_to_RN = weights_RN.cumsum(-1)
    total_R = up_to_RN[:, -1]
    at_R = at_R.minimum(total_R.nextafter(torch.zeros_like(total_R)))  # sums are rounded, in one order or another
    place_R1 = torch.searchsorted(up_to_RN, at_R[:, None], right=True).clamp_(max=weights_RN.shape[1] - 1)
    before_R1 = (up_to_RN - weights_RN).gather(1, place_R1)
    return place_R1[:, 0], (at_R - before_R1[:, 0]).clamp_(min=0)


def uniform(stream: int, draw: int) -> float:
    """The `draw`-th number in [0, 1) of a request's stream: a hash of both, so that no draw has a past to replay."""
    digest = blake2b(f"{stream}:{draw}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _weights(logits_RV: Tensor, params: Seq[SamplingParams]) -> Tensor:
    """The probabilities at each row's temperature, in whole blocks.

    By softmax: torch's `exp` takes twenty times as long on Intel's processors where one underflows, as it does for
    every token that a constraint rules out.
    """
    coldest = [max(p.temperature, COLDEST) for p in params]
    temperature_R = torch.tensor(coldest, dtype=logits_RV.dtype).to(logits_RV.device)
    scaled_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)).div_(temperature_R[:, None])
    missing = -scaled_RV.shape[1] % BLOCK
    return F.pad(scaled_RV.softmax(-1), (0, missing)) if missing else scaled_RV.softmax(-1)


def _filter(weights_V: Tensor, p: SamplingParams) -> None:
    """Leave nothing of the weights that top-k, top-p and min-p, in that order, rule out.

    A token stays in the nucleus while those above it have less than `top_p` of the sum (arXiv 1904.09751): while it and
    those below it have more than the rest. Of tokens that weigh the same the first stay.
    """
    least, most = p.min_p * float(weights_V.max()) if p.min_p else 0.0, len(weights_V)
    if p.top_k or p.top_p < 1.0:
        ascending_K, below = _largest(weights_V, p)
        first = 0
        if p.top_p < 1.0:
            up_to_K = ascending_K.cumsum(-1, dtype=torch.float64) + below
            first = int(torch.searchsorted(up_to_K, (1.0 - p.top_p) * up_to_K[-1:], right=True))
        first = min(first, len(ascending_K) - 1)
        least, most = max(least, float(ascending_K[first])), len(ascending_K) - first
    below_least = np.nextafter(np.float32(least), np.float32(0))
    torch.threshold_(weights_V, float(below_least), 0.0)  # a tenth of what filling by a mask of bools takes
    surplus = int(weights_V.count_nonzero()) - most
    if surplus > 0:
        weights_V[(weights_V == least).nonzero()[-surplus:]] = 0.0


def _largest(weights_V: Tensor, p: SamplingParams) -> tuple[Tensor, float]:
    """The `top_k` largest in ascending order, or all that may be in the nucleus and the sum of those below them.

    Tokens with less than `(1 - top_p) / V` each have less than `1 - top_p` together, so none of them is in it; a
    hundredth is for what is rounded. Sorting the others takes little. numpy's sort is vectorised, torch's own on a CPU
    takes 25 times as long.
    """
    if not weights_V.is_cpu:
        return weights_V.sort().values[-p.top_k :], 0.0
    values = weights_V.numpy()
    if p.top_k:
        others = max(0, len(values) - p.top_k)
        return torch.from_numpy(np.sort(np.partition(values, others)[others:])), 0.0
    largest = values[values >= 0.99 * (1.0 - p.top_p) / len(values)]
    return torch.from_numpy(np.sort(largest)), float(values.sum(dtype=np.float64) - largest.sum(dtype=np.float64))
