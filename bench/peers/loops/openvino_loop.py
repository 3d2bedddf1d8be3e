"""OpenVINO GenAI's continuous batching, one adapter a call: requests of one call cannot have different ones.

Owns one pipeline. Runs in a peer's environment; imports OpenVINO when it starts. Asks through `generate`, since what
`add_request` and `step` answer is the base's, whichever adapter the request names.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers.loops.protocol import Answer, Request, claim_output, serve

CACHE_GB = 2
WEIGHTS = "adapter_model.safetensors"


class OpenVino:
    mixes = False

    def __init__(self, base: Path, adapters: Sequence[Path]) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._numpy, self._openvino, self._genai = numpy, openvino, openvino_genai
        self._adapters = {path.name: (self._genai.Adapter(str(path / WEIGHTS)), scale(path)) for path in adapters}
        scheduler = self._genai.SchedulerConfig()
        scheduler.cache_size, scheduler.enable_prefix_caching = CACHE_GB, False
        grafted = {"adapters": self._config(*self._adapters)} if adapters else {}
        self._pipeline: Any = self._genai.ContinuousBatchingPipeline(str(base), scheduler, "CPU", grafted)

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Its clock of tokens is Python's `perf_counter`, in milliseconds."""
        prompts = [
            self._openvino.Tensor(self._numpy.array([request.prompt], self._numpy.int64)) for request in requests
        ]
        results = self._pipeline.generate(prompts, [self._generation(request) for request in requests])
        return [
            _answer(list(one.m_generation_ids[0]), one.perf_metrics.raw_metrics.m_new_token_times) for one in results
        ]

    def _generation(self, request: Request) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = request.output_tokens, True, False
        if self._adapters:
            config.adapters = self._config(request.model) if request.model else self._config()
        return config

    def _config(self, *names: str) -> Any:
        config = self._genai.AdapterConfig()
        for name in names:
            config.add(*self._adapters[name])
        return config


def _answer(ids: list[int], times_ms: Sequence[float]) -> Answer:
    """With several prompts in a call there are fewer times than tokens, or more: the last are the last prompt's."""
    last = [1e-3 * at for at in times_ms][-len(ids) :]
    return Answer([*[last[0]] * (len(ids) - len(last)), *last], ids)


def scale(adapter: Path) -> float:
    """The scaling in PEFT's configuration. OpenVINO reads only the weights and would take it for 1."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    return float(config["lora_alpha"] / config["r"])


if __name__ == "__main__":
    out = claim_output()
    base, *adapters = (Path(argument) for argument in sys.argv[1:])
    serve(OpenVino(base, adapters), out)
