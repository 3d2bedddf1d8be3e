"""`rootstock bench sampling`: what sampling parameters and structured output cost.

Owns the kinds of requests, each a few fields of the body, and their throughput against greedy answers' of the same
size. A black box over HTTP.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from types import MappingProxyType
from typing import Any

from bench import launch, options, report, weight_shapes
from bench.api import OpenAI
from bench.errors import BenchError
from bench.load import VLLM, RequestShape, closed_loop, make_requests
from bench.terminal import terminal

PROMPT_TOKENS = 32
LONG = {"type": "array", "items": {"type": "string"}, "minItems": 100}
"""A schema that an answer of the benchmark's size is not done with, so that all have that size."""
KINDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "greedy": {},
        "temperature": {"temperature": 1.0},
        "top-p": {"temperature": 0.7, "top_p": 0.95},
        "top-k": {"temperature": 0.7, "top_k": 50},
        "min-p": {"temperature": 0.7, "min_p": 0.05},
        "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
        "logprobs": {"logprobs": 5},
        "schema": {
            "temperature": 1.0,
            "response_format": {"type": "json_schema", "json_schema": {"name": "long", "schema": LONG}},
        },
    }
)


def rates(url: str, model: str, shape: RequestShape, rounds: int, concurrency: int) -> dict[str, list[float]]:
    """Output tokens per second of every kind, in turn, and in every other round in the other order.

    A round that warms up comes first and is left out. Raises BenchError where answers differ in size.
    """
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round_ in range(rounds + 1):
        for turn, (kind, own) in enumerate(list(found.items())[:: (-1) ** round_]):
            plain = make_requests([model] * 2 * concurrency, shape, seed=round_ * len(found) + turn)
            requests = [replace(request, extra_body=KINDS[kind]) for request in plain]
            api = OpenAI() if kind == "schema" else VLLM  # a form and `ignore_eos` do not go together
            run = asyncio.run(closed_loop(url, requests, concurrency, api))
            if run.tokens != len(requests) * shape.output_tokens:
                raise BenchError(f"{kind}: some answers ended early, so that they compare with none. Ask for less.")
            if round_ > 0:
                own.append(run.tokens_per_s)
    return found


def of_greedy(found: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each kind's rate over the greedy one of its round."""
    pairs = {kind: zip(own, found["greedy"], strict=True) for kind, own in found.items()}
    return {kind: median(own / greedy for own, greedy in pair) for kind, pair in pairs.items()}


def main(
    rounds: options.Rounds = 3,
    concurrency: options.Clients = 8,
    output_tokens: options.OutputTokens = 64,
    work_dir: options.WorkDir = options.WORK_DIR,
    base: options.Base = "embedded",
    serve_flags: options.ServeFlags = "",
) -> None:
    """Measure how fast answers come that are drawn, filtered, penalised or held to a schema, against greedy ones."""
    setting = report.machine() | {"base": base, "concurrency": concurrency, "output_tokens": output_tokens}
    with launch.serve(work_dir / "sampling", launch.flags(base, serve_flags)) as server:
        vocab = weight_shapes.vocab_size(options.known_base(server.base, options.FOR_PROMPTS))
        shape = RequestShape(vocab, PROMPT_TOKENS, output_tokens)
        found = rates(server.url, server.base_id, shape, rounds, concurrency)
    medians = {kind: median(own) for kind, own in found.items()}
    document = {"setting": setting, "tokens_per_s": medians, "of_greedy": of_greedy(found)}
    report.print_and_save(terminal(), work_dir / "sampling.json", document)
