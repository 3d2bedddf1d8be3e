"""The protocol by which training asks for the log-probabilities that a server would compute.

Owns the protocol alone. The server implements it on its engine (server/offline_engine.py), so that training need not
know the engine, and the engine not training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class ServingPath(Protocol):
    """One base, served in this process. It loads the base for each call: drop the trainer's model first."""

    def logprobs(
        self, adapter: Path | None, rows: Sequence[Sequence[int]], *, dtype: str, quantization: str | None
    ) -> list[list[float]]:
        """For each row of token ids, the log-probability of its tokens 1.. given the ones before them, in nats.

        `adapter` is a directory with PEFT's two files, or None for the base alone. `dtype` and `quantization` are
        `rootstock serve`'s. Raises AdapterError when the server's reader refuses the adapter, LoaderError when the
        base cannot be loaded so.
        """
        ...
