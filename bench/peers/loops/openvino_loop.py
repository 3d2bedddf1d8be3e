"""OpenVINO GenAI's continuous batching, one adapter a call: requests of one call cannot have different ones.

Owns one pipeline. Runs in a peer's environment; imports OpenVINO when it starts.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers.loops.line import Ask, claim_output, serve

CACHE_GB = 2


class OpenVino:
    mixes = False

    def __init__(self, base: Path, adapters: Sequence[Path]) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._numpy, self._openvino, self._genai = numpy, openvino, openvino_genai
        self._adapters = {path.name: self._genai.Adapter(str(path / "adapter_model.safetensors")) for path in adapters}
        scheduler = self._genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        grafted = {"adapters": self._config(*self._adapters.values())} if adapters else {}
        self._pipeline: Any = self._genai.ContinuousBatchingPipeline(str(base), scheduler, "CPU", grafted)
        self._requests = 0

    def generate(self, asks: Sequence[Ask]) -> list[list[float]]:
        came: list[list[float]] = [[] for _ in asks]
        handles = [self._add(ask) for ask in asks]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter()
            for own, handle in zip(came, handles, strict=True):
                if handle.can_read():
                    outputs = handle.read()
                    own += [now] * sum(len(output.generated_ids) for output in outputs.values())
        return came

    def _add(self, ask: Ask) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = ask.output_tokens, True, False
        if self._adapters:
            config.adapters = self._config(self._adapters[ask.model]) if ask.model else self._config()
        ids = self._openvino.Tensor(self._numpy.array([ask.prompt], self._numpy.int64))
        self._requests += 1
        return self._pipeline.add_request(self._requests, ids, config)

    def _config(self, *adapters: Any) -> Any:
        config = self._genai.AdapterConfig()
        for adapter in adapters:
            config.add(adapter, 1.0)
        return config


if __name__ == "__main__":
    out = claim_output()
    base, *adapters = (Path(argument) for argument in sys.argv[1:])
    serve(OpenVino(base, adapters), out)
