"""The loss of a base, with or without an adapter, on a held-out file, as the serving path computes it.

Owns that number. Reading and encoding are training's (training/data), the forward passes are offline_engine.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loader.base import tokenizer_of
from loader.progress import Progress, ignore
from loader.source import resolve
from server.offline_engine import OfflineEngine
from training.config import Data, TrainConfig
from training.data.examples import Example
from training.data.prepare import prepare
from training.errors import DataInvalid


@dataclass(frozen=True, slots=True)
class Heldout:
    """Rows of token ids; `counted[i][j]` says whether token j of row i counts in the loss."""

    rows: Sequence[Sequence[int]]
    counted: Sequence[Sequence[bool]]
    data_dir: Path
    progress: Progress = ignore

    @classmethod
    def read(cls, file: Path, base: str, data_dir: Path, progress: Progress = ignore) -> "Heldout":
        """Every example of a JSONL file that supervised fine-tuning takes. Raises DataInvalid with every fault."""
        config = TrainConfig(output=file, base=base, data=Data(train=file, heldout_share=0.0))
        split = prepare(config, tokenizer_of(resolve(base, data_dir, progress))).train
        examples = [one for one in split.examples if isinstance(one, Example) and any(one.counted[1:])]
        if not examples:
            raise DataInvalid([f"{file}: no token of it counts in a loss. Give examples with answers."])
        return cls([one.ids for one in examples], [one.counted for one in examples], data_dir, progress)

    def loss(self, base: str, adapter: Path | None, dtype: str, quantization: str | None) -> float:
        """In nats per token that counts, for `base` served so. Raises what `OfflineEngine` raises."""
        serving = OfflineEngine(base, self.data_dir, progress=self.progress)
        served = serving.logprobs(adapter, self.rows, dtype=dtype, quantization=quantization)
        pairs = zip(served, self.counted, strict=True)
        counting = [value for row, flags in pairs for value, flag in zip(row, flags[1:], strict=True) if flag]
        return -sum(counting) / len(counting)
