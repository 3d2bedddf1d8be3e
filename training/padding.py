"""Token rows of different lengths as one tensor, with the mask that tells tokens from padding.

Owns that one conversion.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def pad(
    rows: Sequence[Sequence[int]], padding: int, device: torch.device, *, on_the_left: bool = False
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of `rows`, both int64 `[rows, longest]`; `padding` fills what is short."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        fill, ones = [padding] * (width - len(row)), [1] * len(row)
        zeros = [0] * len(fill)
        ids.append([*fill, *row] if on_the_left else [*row, *fill])
        mask.append([*zeros, *ones] if on_the_left else [*ones, *zeros])
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
