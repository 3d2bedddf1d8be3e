"""Users that stream completions from a mix of adapters: `locust -f bench/locustfile.py --host http://127.0.0.1:8000`.

Owns the traffic and its numbers: beside each request it reports the time to its first token, and at the end output
tokens per second. Drives any server that speaks the OpenAI API.
"""

import random
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from locust import HttpUser, constant, events, task
from locust.clients import ResponseContextManager
from locust.env import Environment

from bench.workload import Popularity, weights

WORDS = ("river", "stone", "lantern", "quiet", "market", "copper", "winter", "garden", "engine", "letter", "bridge")


@dataclass(slots=True)
class Tally:
    """Output tokens and the time in which they came, over all users of one process."""

    started: float
    tokens: int = 0


@events.init_command_line_parser.add_listener
def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("Rootstock")
    group.add_argument("--popularity", choices=[str(kind) for kind in Popularity], default=Popularity.ZIPF.value)
    group.add_argument("--base-share", type=float, default=0.1, help="Share of requests without an adapter, 0 to 1.")
    group.add_argument("--prompt-words", type=int, default=64)
    group.add_argument("--output-tokens", type=int, default=64)


@events.test_start.add_listener
def start_tally(environment: Environment, **_: Any) -> None:
    environment.tally = Tally(time.perf_counter())  # type: ignore[attr-defined]


@events.test_stop.add_listener
def report_tally(environment: Environment, **_: Any) -> None:
    tally: Tally = environment.tally  # type: ignore[attr-defined]
    seconds = time.perf_counter() - tally.started
    print(f"Output tokens: {tally.tokens}, {tally.tokens / seconds:.1f} tokens/s over {seconds:.1f} s")


class AdapterUser(HttpUser):
    """One client in a closed loop: it asks, reads the whole stream, and asks again."""

    wait_time = constant(0)

    def on_start(self) -> None:
        models = self.client.get("/v1/models").json()["data"]
        self.base = next(model["id"] for model in models if not model.get("parent"))
        self.adapters = sorted(model["id"] for model in models if model.get("parent"))

    @task
    def complete(self) -> None:
        options = self.environment.parsed_options
        body = {
            "model": self._model(),
            "prompt": " ".join(random.choices(WORDS, k=options.prompt_words)),
            "max_tokens": options.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started = time.perf_counter()
        with self.client.post("/v1/completions", json=body, stream=True, catch_response=True) as response:
            if not response.ok:
                response.failure(f"{response.status_code}: {response.text}")
                return
            self._read(response, started)

    def _model(self) -> str:
        """The base, or an adapter by the popularity asked for."""
        options = self.environment.parsed_options
        if not self.adapters or random.random() < options.base_share:
            return str(self.base)
        if options.popularity == Popularity.DISTINCT:
            self.adapters.append(self.adapters.pop(0))
            return str(self.adapters[0])
        frequencies = weights(Popularity(options.popularity), len(self.adapters))
        return str(random.choices(self.adapters, frequencies)[0])

    def _read(self, response: ResponseContextManager, started: float) -> None:
        """Read the stream to its end, and report when its first token came and how many came in all."""
        first, tokens = 0.0, 0
        for event in _events(response):
            if "error" in event:
                response.failure(str(event["error"]))
                return
            if event["choices"] and not first:
                first = time.perf_counter() - started
            if usage := event.get("usage"):
                tokens = usage["completion_tokens"]
        self._report("TTFT", 1e3 * first)
        self.environment.tally.tokens += tokens
        if tokens > 1:
            self._report("ITL", 1e3 * (time.perf_counter() - started - first) / (tokens - 1))

    def _report(self, name: str, milliseconds: float) -> None:
        self.environment.events.request.fire(
            request_type="SSE",
            name=name,
            response_time=milliseconds,
            response_length=0,
            exception=None,
            context={},
        )


def _events(response: ResponseContextManager) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            yield orjson.loads(line[len(b"data: ") :])
