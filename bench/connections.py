"""`rootstock bench connections`: very many streams at once: their answers, the server's memory and its health.

Owns the clients and the verdict. Starts a server over a tiny base unless it is given one, and knows it by HTTP only.
"""

import asyncio
import resource
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import aiohttp
import numpy as np
import orjson
import typer
from rich.console import Console

from bench import bytes_base, launch, memory, options, report
from bench.api import CompletionRequest
from bench.load import TIMEOUT_S, VLLM, RequestShape, make_requests
from bench.probe import HealthLog, probe_health

MIB = 1 << 20
PROMPTS = 8
"""How many different prompts there are: each is answered alone first, and every stream must repeat that answer."""

HEALTH_P99_MS = 100.0
"""For the 99th percentile of health answers. Orchestrators wait a second; a loop that is held up shows long before."""
GROWTH_MIB = 512.0
"""For what the streams add to the server's memory. A thousand of them took 105 to 150."""

FLAGS = (
    "--dtype float32 --max-sequences {n} --max-waiting {n} --max-batch-tokens 2048 --kv-cache-memory 256MiB "
    "--adapter-device-memory 8MiB --adapter-host-memory 8MiB"
)


@dataclass(slots=True)
class OpenStreams:
    """Counts the streams that are open now, and the most that were open at once."""

    open: int = 0
    most: int = 0

    def add(self) -> None:
        self.open += 1
        self.most = max(self.most, self.open)


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer: its token ids, and the seconds to the first of them."""

    tokens: tuple[int, ...]
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """What one run saw. `most_open` streams had begun and not ended at one time; memory is the server's, in bytes."""

    connections: int
    most_open: int
    wrong: int
    wall_s: float
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    health_asked: int
    health_failures: int
    health_p50_ms: float
    health_p99_ms: float
    health_max_ms: float
    resident_before: int | None
    resident_peak: int | None


async def measure(url: str, model: str, connections: int, shape: RequestShape, pid: int | None) -> Result:
    """Answer each prompt alone, then open all streams together. Raises RuntimeError for an answer that is refused."""
    asked = make_requests([model] * PROMPTS, shape, seed=5)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # a kept one may be closed before it is used again
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        alone = [await _stream(session, request, OpenStreams()) for request in asked]
        open_streams = OpenStreams()
        with probe_health(url, pid) as health:
            began = time.perf_counter()
            streams = await asyncio.gather(
                *(_stream(session, asked[number % PROMPTS], open_streams) for number in range(connections))
            )
            wall_s = time.perf_counter() - began
    wrong = sum(stream.tokens != alone[number % PROMPTS].tokens for number, stream in enumerate(streams))
    return _result(streams, wrong, open_streams, wall_s, health)


async def _stream(session: aiohttp.ClientSession, request: CompletionRequest, open_streams: OpenStreams) -> Stream:
    """One streaming completion, to its end."""
    began, first, tokens = time.perf_counter(), 0.0, list[int]()
    async with session.post(VLLM.path, json=VLLM.body(request)) as reply:
        if reply.status != 200:
            raise RuntimeError(f"A stream answered {reply.status}: {await reply.text()}")
        open_streams.add()
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            event = orjson.loads(line[len("data: ") :])
            if "error" in event:
                raise RuntimeError(f"A stream ended with an error: {event['error']}")
            tokens += [token for choice in event["choices"] for token in choice.get("token_ids") or ()]
            first = first or time.perf_counter() - began
        open_streams.open -= 1
    return Stream(tuple(tokens), first)


def _result(
    streams: Sequence[Stream], wrong: int, open_streams: OpenStreams, wall_s: float, health: HealthLog
) -> Result:
    ttft_ms = [1e3 * stream.ttft_s for stream in streams]
    health_ms = health.latencies_ms or [float("nan")]
    return Result(
        connections=len(streams),
        most_open=open_streams.most,
        wrong=wrong,
        wall_s=wall_s,
        tokens_per_s=sum(len(stream.tokens) for stream in streams) / wall_s,
        ttft_p50_ms=float(np.percentile(ttft_ms, 50)),
        ttft_p99_ms=float(np.percentile(ttft_ms, 99)),
        health_asked=len(health.latencies_ms),
        health_failures=health.failures,
        health_p50_ms=float(np.percentile(health_ms, 50)),
        health_p99_ms=float(np.percentile(health_ms, 99)),
        health_max_ms=max(health_ms),
        resident_before=min(health.resident[:1], default=None),
        resident_peak=max(health.resident, default=None),
    )


def violations(result: Result, health_p99_ms: float, growth_mib: float) -> list[str]:
    """Each limit that `result` violates, in one sentence. Memory is judged only where the server's process is known."""
    sentences = []
    if result.wrong:
        sentences.append(f"{result.wrong} of {result.connections} streams answered otherwise than when asked alone.")
    if result.most_open < result.connections:
        sentences.append(f"At most {result.most_open} of {result.connections} streams were open at once.")
    if result.health_failures:
        sentences.append(f"{result.health_failures} of {result.health_asked} health answers were no 200.")
    if not result.health_p99_ms <= health_p99_ms:  # nor is it when nothing was answered
        sentences.append(
            f"The 99th percentile of health answers was {result.health_p99_ms:.0f} ms, which is over the "
            f"{health_p99_ms:g} ms of --health-p99-ms."
        )
    if result.resident_before is not None and result.resident_peak is not None:
        grown = (result.resident_peak - result.resident_before) / MIB
        if grown > growth_mib:
            sentences.append(
                f"The server's memory grew by {grown:.0f} MiB, over the {growth_mib:g} MiB of --growth-mib."
            )
    return sentences


def main(
    url: options.Url = None,
    connections: Annotated[int, typer.Option(min=1, help="Streams that are open at once.")] = 1000,
    prompt_tokens: options.PromptTokens = 16,
    output_tokens: options.OutputTokens = 64,
    vocab: Annotated[
        int, typer.Option(min=2, help="Prompts' token ids are drawn below it: at most the base's vocabulary.")
    ] = bytes_base.BYTES,
    health_p99_ms: Annotated[
        float, typer.Option(min=0, help="Fail where the 99th percentile of health answers takes more milliseconds.")
    ] = HEALTH_P99_MS,
    growth_mib: Annotated[
        float, typer.Option(min=0, help="Fail where the server's memory grows by more MiB.")
    ] = GROWTH_MIB,
    work_dir: options.WorkDir = options.WORK_DIR,
    serve_flags: options.ServeFlags = "",
) -> None:
    """Open very many streams together. Fails when one answers wrongly, when they were not open at once, and when the
    server's health or memory was beyond its limit meanwhile."""
    _raise_file_limit()
    shape = RequestShape(vocab, prompt_tokens, output_tokens)
    setting = report.machine()
    with ExitStack() as stack:
        flags = f"{FLAGS.format(n=connections)} {serve_flags}"
        server = _given(url) if url else stack.enter_context(_ours(work_dir, flags))
        result = asyncio.run(measure(server.url, server.base_id, connections, shape, server.pid))
    sentences = violations(result, health_p99_ms, growth_mib)
    document = {"setting": setting, "shape": asdict(shape), "result": asdict(result), "broken": sentences}
    report.print_and_save(Console(), work_dir / "connections.json", document)
    for sentence in sentences:
        typer.secho(sentence, err=True, fg="red")
    if sentences:
        raise typer.Exit(1)


def _given(url: str) -> launch.Server:
    return launch.Server(url, launch.base_id(url), None, memory.listener(url))


def _ours(work_dir: Path, flags: str) -> AbstractContextManager[launch.Server]:
    base = bytes_base.write(work_dir / "bytes-base")
    return launch.serve(work_dir / "connections", launch.flags(str(base), flags))


def _raise_file_limit() -> None:
    """A connection is a file on both sides; the server that is started inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    typer.run(main)
