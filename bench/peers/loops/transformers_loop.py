"""transformers' continuous batching, with adapters switched between calls: it has no batches that mix them.

Owns one manager that stays. Runs in a peer's environment; imports torch when it starts.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers.loops.protocol import Answer, Request, claim_output, serve

TIMEOUT_S = 600.0


class ContinuousBatching:
    mixes = False

    def __init__(self, base: Path, adapters: Sequence[Path]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

        self._model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
        for path in adapters:
            self._model.load_adapter(str(path), adapter_name=path.name)
        self._model.to("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)
        self._adapters = bool(adapters)
        self._manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=512, page_size=32, max_batch_tokens=512, allow_block_sharing=False
            ),
        )
        self._manager.start()

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        self._switch(requests[0].model)
        ids = [
            self._manager.add_request(
                request.prompt, max_new_tokens=request.output_tokens, record_timestamps=True, eos_token_id=-1
            )
            for request in requests
        ]
        answers: dict[str, Answer] = {}
        while len(answers) < len(ids):
            result = self._manager.get_result(timeout=TIMEOUT_S)
            if result is None or result.error:
                raise RuntimeError(f"continuous batching stopped: {result and result.error}")
            answers[result.request_id] = Answer(list(result.timestamps), list(result.generated_tokens))
        return [answers[id] for id in ids]

    def _switch(self, adapter: str) -> None:
        if adapter:
            self._model.enable_adapters()
            self._model.set_adapter(adapter)
        elif self._adapters:
            self._model.disable_adapters()


if __name__ == "__main__":
    out = claim_output()
    base, *adapters = (Path(argument) for argument in sys.argv[1:])
    serve(ContinuousBatching(base, adapters), out)
