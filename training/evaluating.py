"""A model as it is asked, not trained: eval mode, and back to what it was before.

Owns that one switch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode: without dropout and without checkpointing."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
