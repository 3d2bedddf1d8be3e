"""PEFT's own mixed batch: `generate` with a name of an adapter for each row.

Owns one static batch of rows of equal length. Runs in a peer's environment; imports torch when it starts.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from bench.peers.loops.protocol import Answer, Request, claim_output, serve

BASE_ROW = "__base__"


class Peft:
    """Rows of one model run as PEFT runs one adapter, or none; others go through its mixed batches."""

    mixes = True

    def __init__(self, base: Path, adapters: Sequence[Path]) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        for path in adapters:
            if isinstance(model, PeftModel):
                model.load_adapter(str(path), adapter_name=path.name)
            else:
                model = PeftModel.from_pretrained(model, str(path), adapter_name=path.name)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(self._device, torch.bfloat16).eval()
        self._model.generation_config.eos_token_id = None  # answers end by their length alone
        self._has_adapters = bool(adapters)
        self._torch = torch

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        came: list[float] = []

        def clock(ids: Any, scores: Any, **_: Any) -> Any:
            came.append(time.perf_counter())
            return self._torch.zeros(len(requests), dtype=self._torch.bool, device=self._device)

        ids = self._torch.tensor([request.prompt for request in requests], device=self._device)
        grafted, names = self._grafted([request.model for request in requests])
        with self._torch.inference_mode(), grafted:
            rows = self._model.generate(
                input_ids=ids,
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=requests[0].output_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[clock],
                **names,
            )
        return [Answer(list(came), row[ids.shape[1] :].tolist()) for row in rows]

    def _grafted(self, models: Sequence[str]) -> tuple[AbstractContextManager[Any], dict[str, Any]]:
        """How to run rows of `models`: inside of which context, and with which names."""
        if len(set(models)) > 1:
            return nullcontext(), {"adapter_names": [model or BASE_ROW for model in models]}
        if models[0]:
            self._model.set_adapter(models[0])
        bare = not models[0] and self._has_adapters
        return (self._model.disable_adapter() if bare else nullcontext()), {}


if __name__ == "__main__":
    out = claim_output()
    base, *adapters = (Path(argument) for argument in sys.argv[1:])
    serve(Peft(base, adapters), out)
