"""`rootstock bench overhead`: what HTTP, scheduling and streaming cost, on a model so small that it shows.

Owns three shares. Of a closed loop's time, what lies outside of the engine's steps by the server's own metrics; and
what it takes longer than as many steps do in an engine without a server. The second has in it what the first cannot
see: steps that become slower because others use the interpreter and the processors, the client on the same machine
among them. The third leaves the client out: of the server's processor time, what its event loop takes.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Annotated, Any

import orjson
import psutil
import typer

from bench import launch, options, report, scrape, weight_shapes
from bench.errors import BenchError
from bench.load import RequestShape, closed_loop, make_requests
from bench.terminal import terminal

PROMPT_TOKENS = 8
SUM, COUNT = "rootstock_step_seconds_sum", "rootstock_step_seconds_count"


def over_http(
    url: str, base_id: str, shape: RequestShape, concurrency: int, rounds: int, pid: int
) -> Iterator[dict[str, float]]:
    """For each round the seconds inside steps, the number of steps and the wall time of one closed loop.

    Beside them the seconds of processor time of the server, whose process is `pid`, and of its event loop.
    """
    for round_ in range(rounds + 1):
        before, begun = {name: scrape.total(url, name) for name in (SUM, COUNT)}, processor_s(pid)
        run = asyncio.run(closed_loop(url, make_requests([base_id] * concurrency, shape, seed=round_), concurrency))
        used = {name: seconds - begun[name] for name, seconds in processor_s(pid).items()}
        seconds, steps = (scrape.total(url, name) - before[name] for name in (SUM, COUNT))
        if round_ > 0:
            yield {"inside_s": seconds, "steps": steps, "wall_s": run.wall_s, **used}


def processor_s(pid: int) -> dict[str, float]:
    """Processor seconds that the process has used, and its first thread, which runs the event loop."""
    process = psutil.Process(pid)
    (loop_s,) = (one.user_time + one.system_time for one in process.threads() if one.id == pid)
    whole = process.cpu_times()  # with that of threads that have ended
    return {"server_s": whole.user + whole.system, "event_loop_s": loop_s}


def shares(rounds: list[dict[str, float]], bare_step_s: float) -> dict[str, float]:
    """Medians over rounds. `bare_step_s` is the engine's own step for as many sequences."""
    return {
        "step_ms": 1e3 * median(one["inside_s"] / one["steps"] for one in rounds),
        "bare_step_ms": 1e3 * bare_step_s,
        "outside_of_steps": median(1 - one["inside_s"] / one["wall_s"] for one in rounds),
        "event_loop_of_server": median(one["event_loop_s"] / one["server_s"] for one in rounds),
        "beyond_bare_steps": median(1 - bare_step_s * one["steps"] / one["wall_s"] for one in rounds),
    }


def bare_step_s(base: str, rows: int, context: int, steps: int) -> float:
    """The median decode step of `rows` sequences in an engine of its own, by `bench step`, in another process."""
    command = [sys.executable, "-m", "bench", "step", "--json", "--base", base]
    sizes = ["--rows", str(rows), "--context", str(context), "--steps", str(steps)]
    ended = subprocess.run([*command, *sizes], capture_output=True, text=True)
    if ended.returncode:
        raise BenchError(f"bench step ended with {ended.returncode}: {ended.stderr[-2000:]}")
    report: dict[str, Any] = orjson.loads(ended.stdout)
    return float(report["base"]) / 1e3


def main(
    base: Annotated[str, typer.Option(help="As --base of `rootstock serve`; the smaller it is, the more is seen.")],
    concurrency: options.Clients = 32,
    output_tokens: options.OutputTokens = 128,
    rounds: options.Rounds = 5,
    work_dir: options.WorkDir = options.WORK_DIR,
    serve_flags: options.ServeFlags = "",
) -> None:
    """Measure what part of the time goes into everything around the engine's steps."""
    setting = report.machine() | {"base": base, "concurrency": concurrency, "output_tokens": output_tokens}
    half_way = PROMPT_TOKENS + output_tokens // 4  # its steps then lie around the middle of an answer
    bare = partial(bare_step_s, base, concurrency, half_way, output_tokens // 2)
    first = bare()
    with launch.serve(work_dir / "overhead", launch.flags(base, serve_flags)) as server:
        directory = options.known_base(server.base, options.FOR_PROMPTS)
        assert server.pid is not None, "the server is ours"
        shape = RequestShape(weight_shapes.vocab_size(directory), PROMPT_TOKENS, output_tokens)
        rounds_ = list(over_http(server.url, server.base_id, shape, concurrency, rounds, server.pid))
    found = shares(rounds_, median((first, bare())))
    report.print_and_save(
        terminal(), work_dir / "overhead.json", {"setting": setting, "shares": found, "rounds": rounds_}
    )
