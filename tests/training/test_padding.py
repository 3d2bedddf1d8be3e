"""Rows of different lengths as one tensor, on either side."""

import torch

from training.padding import pad

ROWS = [[5, 6, 7], [8], [9, 9]]


def test_short_rows_are_filled_on_the_right() -> None:
    ids, mask = pad(ROWS, -100, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, -100, -100], [9, 9, -100]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert ids.dtype == mask.dtype == torch.int64


def test_or_on_the_left() -> None:
    ids, mask = pad(ROWS, 3, torch.device("cpu"), on_the_left=True)
    assert ids.tolist() == [[5, 6, 7], [3, 3, 8], [3, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
