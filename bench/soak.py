"""`rootstock bench soak`: random uploads, alias moves, deletions, streams and hang-ups, and what the server leaks.

Owns the traffic and the verdict. Starts a server over a tiny base and knows it by HTTP, and by what the kernel reports
of its process. Every answer must be one that the traffic explains: a 5xx fails the run.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import typer
from rich.console import Console

from bench import bytes_base, launch, make_adapters, memory, options, report
from bench.scrape import total

FLAGS = (
    "--dtype float32 --max-sequences 16 --kv-cache-memory 16MiB --adapter-device-memory 1MiB --adapter-host-memory 2MiB"
)
NAMES = tuple(f"soak-{number}" for number in range(6))
CONTENTS = 12
PERIOD_S = 1.0
QUIET_S = 60.0
"""Within this time of the last request the server must have released everything."""
FILES_SLACK = 8
"""Open files more than an idle server had after the warm-up: each connection that a database's pool adds is two."""
WARM_UP = 0.25
"""The part of the traffic that comes before anything is compared: pools of connections and threads fill up first."""
MIBI = 1 << 20


@dataclass(slots=True)
class Samples:
    """The server's process over time: seconds and resident bytes."""

    at: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    def slope(self) -> float:
        """Resident bytes gained a minute: the least-squares line through the second half, after everything is warm."""
        half = len(self.at) // 2  # the warm-up is well over
        if len(self.at) - half < 2:
            return 0.0
        return float(np.polyfit(self.at[half:], self.resident[half:], 1)[0]) * 60


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result. `held` is what the idle server still holds at the end, by name: everything should be 0."""

    minutes: float
    answers: dict[str, int]
    resident_first: int
    resident_last: int
    growth_mib_per_minute: float
    files_warm: int
    files_last: int
    held: dict[str, float]
    leaks: tuple[str, ...]


class Soak:
    """Random clients of one server. The same seed makes the same choices; their order in time is the machine's."""

    def __init__(self, client: httpx.AsyncClient, base_id: str, adapters: Sequence[Path], seed: int) -> None:
        self.answers: Counter[str] = Counter()
        self._client, self._base_id, self._adapters = client, base_id, adapters
        self._random = random.Random(seed)
        self._actions: tuple[tuple[Callable[[], Awaitable[None]], int], ...] = (
            (self._upload, 3),
            (self._move_alias, 2),
            (self._delete, 1),
            (self._complete, 6),
            (self._stream, 6),
            (self._hang_up, 4),
            (self._give_up, 3),
        )

    async def client(self, until: float) -> None:
        actions, weights = zip(*self._actions, strict=True)
        while time.monotonic() < until:
            await self._random.choices(actions, weights)[0]()

    async def clear(self) -> None:
        for name in NAMES:
            self._note("delete", await self._client.delete(f"/v1/adapters/{name}"))

    async def _upload(self) -> None:
        folder = self._random.choice(self._adapters)
        files = {
            "config": (folder / "adapter_config.json").read_bytes(),
            "weights": (folder / "adapter_model.safetensors").read_bytes(),
        }
        form = {"name": self._random.choice(NAMES)} | ({"alias": "prod"} if self._random.random() < 0.5 else {})
        self._note("upload", await self._client.post("/v1/adapters", data=form, files=files))

    async def _move_alias(self) -> None:
        path = f"/v1/adapters/{self._random.choice(NAMES)}/aliases/prod"
        self._note("alias", await self._client.put(path, json={"version": self._random.randint(1, 3)}))

    async def _delete(self) -> None:
        self._note("delete", await self._client.delete(f"/v1/adapters/{self._random.choice(NAMES)}"))

    async def _complete(self) -> None:
        self._note("complete", await self._client.post("/v1/completions", json=self._body(stream=False)))

    async def _stream(self) -> None:
        async with self._client.stream("POST", "/v1/completions", json=self._body(stream=True)) as reply:
            text = (await reply.aread()).decode()
        ended = reply.status_code != 200 or text.endswith("data: [DONE]\n\n")
        self._note("stream" if ended else "stream without an end", reply)

    async def _hang_up(self) -> None:
        """In the middle of a stream."""
        async with self._client.stream("POST", "/v1/completions", json=self._body(stream=True)) as reply:
            lines = reply.aiter_lines()
            for _ in range(self._random.randint(0, 8)):
                if await anext(lines, None) is None:
                    break
        self._note("hang up", reply)

    async def _give_up(self) -> None:
        """Before a whole answer is there."""
        with suppress(httpx.TimeoutException):
            patience = self._random.uniform(0.002, 0.05)
            reply = await self._client.post("/v1/completions", json=self._body(stream=False), timeout=patience)
            self._note("give up", reply)

    def _body(self, stream: bool) -> dict[str, Any]:
        suffix = self._random.choice(("", "@prod", "@1"))
        model = self._base_id if self._random.random() < 0.2 else self._random.choice(NAMES) + suffix
        prompt = [self._random.randrange(bytes_base.BYTES) for _ in range(self._random.randint(1, 60))]
        return {"model": model, "prompt": prompt, "max_tokens": self._random.randint(1, 48), "stream": stream}

    def _note(self, action: str, reply: httpx.Response) -> None:
        self.answers[f"{action}: {reply.status_code}"] += 1


async def soak(server: launch.Server, adapters: Sequence[Path], minutes: float, clients: int, seed: int) -> Soak:
    """Run the clients for `minutes`, then delete every adapter."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits, trust_env=False) as client:
        made = Soak(client, server.base_id, adapters, seed)
        until = time.monotonic() + 60 * minutes
        await asyncio.gather(*(made.client(until) for _ in range(clients)))
        await made.clear()
    return made


async def sample_memory(pid: int, samples: Samples) -> None:
    """Append to `samples` every PERIOD_S, until cancelled."""
    while True:
        samples.at.append(time.monotonic())
        samples.resident.append(memory.resident_bytes(pid))
        await asyncio.sleep(PERIOD_S)


async def _while_sampling(pid: int, samples: Samples, traffic: Awaitable[Soak]) -> Soak:
    watching = asyncio.create_task(sample_memory(pid, samples))
    try:
        return await traffic
    finally:
        watching.cancel()


def held(url: str) -> dict[str, float]:
    """What the server holds for requests and adapters, by its metrics: all of it is 0 when it has long been idle."""
    used = 'state="used"'
    return {
        "requests": total(url, "rootstock_sequences"),
        "answers in progress": total(url, "rootstock_answers_in_progress"),
        "KV blocks": total(url, "rootstock_kv_blocks", used),
        "adapter bytes": total(url, "rootstock_adapter_pool_bytes", used),
        "resident adapters": total(url, "rootstock_adapters_resident"),
    }


def on_disk(data: Path) -> dict[str, float]:
    """The number of files of adapters and uploads in the data directory: 0 once every adapter is deleted."""
    return {
        "blobs on disk": len(list(data.glob("adapters/sha256/??/*"))),
        "files of uploads": sum(path.is_file() for path in data.glob("uploads/**/*")),
    }


def settle(
    look: Callable[[], dict[str, float]], within_s: float = QUIET_S, every_s: float = PERIOD_S
) -> dict[str, float]:
    """Poll `look` until all of its values are 0 or time is up; returns the last ones."""
    deadline = time.monotonic() + within_s
    while any((left := look()).values()) and time.monotonic() < deadline:
        time.sleep(every_s)
    return left


def judge(
    answers: Counter[str],
    samples: Samples,
    files: tuple[int, int],
    minutes: float,
    left: dict[str, float],
    growth: float,
) -> Verdict:
    """`files` are open in an idle server after the warm-up and at the end; `growth` MiB a minute are allowed."""
    gained = samples.slope() / MIBI
    leaks = [f"{name}: {value:g} still held" for name, value in left.items() if value]
    leaks += [f"memory: {gained:.1f} MiB a minute"] if gained > growth else []
    more = files[1] - files[0]
    leaks += [f"open files: {more} more"] if more > FILES_SLACK else []
    leaks += [
        f"{answer} ({count} times)" for answer, count in answers.items() if ": 5" in answer or "without" in answer
    ]
    return Verdict(
        minutes,
        dict(sorted(answers.items())),
        samples.resident[0],
        samples.resident[-1],
        gained,
        *files,
        left,
        tuple(leaks),
    )


def main(
    minutes: Annotated[float, typer.Option(min=0.05, help="Minutes of traffic.")] = 2.0,
    concurrency: options.Clients = 12,
    seed: Annotated[int, typer.Option(min=0, help="Of the clients' random choices.")] = 0,
    growth: Annotated[float, typer.Option(min=0, help="Fail where memory grows by more MiB a minute.")] = 8.0,
    work_dir: options.WorkDir = options.WORK_DIR,
    serve_flags: options.ServeFlags = "",
) -> None:
    """Load a server with changes and hang-ups at random. Fails when it keeps any of them, or answers with a 5xx."""
    base = bytes_base.write(work_dir / "bytes-base")
    adapters = make_adapters.write(base, work_dir / "soak-adapters", count=CONTENTS, rank=8)
    samples = Samples()
    data = work_dir / "soak"
    with launch.serve(data, launch.flags(str(base), f"{FLAGS} {serve_flags}")) as server:
        assert server.pid is not None
        answers: Counter[str] = Counter()
        files = []
        for part, its_seed in ((WARM_UP, seed), (1 - WARM_UP, seed + 1)):
            traffic = soak(server, adapters, part * minutes, concurrency, its_seed)
            answers += asyncio.run(_while_sampling(server.pid, samples, traffic)).answers
            left = settle(lambda: held(server.url) | on_disk(data))
            files.append(psutil.Process(server.pid).num_fds())
    verdict = judge(answers, samples, (files[0], files[1]), minutes, left, growth)
    report.print_and_save(Console(), work_dir / "soak.json", {"setting": report.machine(), "verdict": asdict(verdict)})
    if verdict.leaks:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
