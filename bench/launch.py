"""Starts a `rootstock serve` for the time of a measurement.

Owns the process and its log. Knows the `rootstock` command and the HTTP API, and imports nothing of either.
"""

import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import orjson

from bench.errors import BenchError
from bench.measure import HttpTarget

START_S = 600.0
STOP_S = 30.0
LIST_S = 30.0
UPLOADS = 4
"""At once: each waits for the disk several times, and for a process that reads it."""
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `base` is the directory of its base, if known; `pid` its process, if it is ours."""

    url: str
    base_id: str
    base: Path | None
    pid: int | None = None


@contextmanager
def serve(
    data_dir: Path, flags: Sequence[str], command: Sequence[str] = (), headers: Mapping[str, str] = NO_HEADERS
) -> Iterator[Server]:
    """Run `rootstock serve` on a free port of this machine until the block ends; its log is `data_dir/bench.log`.

    `command`, if given, replaces `rootstock`; `headers` carry the key of a server that asks for one.
    Raises BenchError with the end of the log when the server does not become ready.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "bench.log"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["serve", "--data-dir", str(data_dir), "--port", str(port), *flags]
    with log.open("wb") as output:
        process = subprocess.Popen([*(command or [rootstock()]), *arguments], stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_ready(f"{url}/readyz", process, log)
        yield Server(url, base_id(url, headers), _base_directory(data_dir, flags), process.pid)
    finally:
        stop(process)


def flags(base: str, more: str) -> list[str]:
    """The flags that serve `base`, with those that were typed as one string."""
    return ["--base", base, *shlex.split(more)]


def base_id(url: str, headers: Mapping[str, str] = NO_HEADERS) -> str:
    """The id of the base that `url` serves: the one model without a parent. Raises as `models`."""
    return next(str(model["id"]) for model in models(url, headers) if not model.get("parent"))


def models(url: str, headers: Mapping[str, str] = NO_HEADERS) -> list[dict[str, Any]]:
    """The models that `url` lists, a base among them. Raises httpx.HTTPError, and BenchError for another list."""
    reply = httpx.get(f"{url}/v1/models", headers=dict(headers), timeout=LIST_S).raise_for_status()
    try:
        listed = [dict(model) for model in reply.json()["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{url}/v1/models is no list of models. Is that a server of the kind in --api?") from error
    if not any("id" in model and not model.get("parent") for model in listed):
        raise BenchError(f"{url} lists no base: no model without a parent.")
    return listed


def target(name: str, server: Server, adapters: Sequence[Path] = ()) -> HttpTarget:
    """Upload `adapters`, each under its directory's name; gives `server` as one that has them."""
    clear(server, adapters)
    upload_all(server.url, {adapter.name: adapter for adapter in adapters})
    names = frozenset(adapter.name for adapter in adapters)
    return HttpTarget(name, server.url, server.base_id, names, pid=server.pid)


def clear(server: Server, adapters: Sequence[Path]) -> None:
    """Delete what an earlier run left under the names of `adapters`, on a server of ours.

    That might be served otherwise: bytes that a name has had before make no new version of it.
    """
    if server.pid is None:
        return
    with httpx.Client(base_url=server.url, timeout=START_S) as client:
        for adapter in adapters:
            reply = client.delete(f"/v1/adapters/{adapter.name}")
            if reply.status_code != httpx.codes.NOT_FOUND:
                reply.raise_for_status()


def upload_all(url: str, adapters: Mapping[str, Path], progress: Callable[[int], None] = lambda _: None) -> None:
    """Upload directories by name, a few at a time; `progress` is called with how many are done. Raises as `upload`."""
    with httpx.Client(base_url=url, timeout=START_S) as client, ThreadPoolExecutor(UPLOADS) as threads:
        for done, _ in enumerate(threads.map(lambda named: upload(client, *named), adapters.items())):
            progress(done + 1)


def upload(client: httpx.Client, name: str, directory: Path) -> None:
    """Upload the adapter in `directory` as `name`. Raises BenchError with the server's reason when it is refused."""
    config, weights = directory / "adapter_config.json", directory / "adapter_model.safetensors"
    with config.open("rb") as config_file, weights.open("rb") as weights_file:
        reply = client.post(
            "/v1/adapters",
            data={"name": name},
            files={"config": (config.name, config_file), "weights": (weights.name, weights_file)},
        )
    if reply.is_error:
        raise BenchError(f"Uploading {name} answered {reply.status_code}: {reply.text}")


def make_key(data_dir: Path, tenant: str) -> str:
    """A new key of `tenant`, valid for a day, for a server on `data_dir`. Raises BenchError."""
    arguments = ["keys", "create", "--tenant", tenant, "--expires", "1d", "--data-dir", str(data_dir), "--json"]
    ended = subprocess.run([rootstock(), *arguments], capture_output=True, text=True)
    if ended.returncode:
        raise BenchError(f"Making a key of {tenant} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return str(orjson.loads(ended.stdout)["key"])


def rootstock() -> str:
    """The path of this environment's `rootstock` command. Raises BenchError where it is not installed."""
    beside = Path(sys.executable).with_name("rootstock")
    found = str(beside) if beside.exists() else shutil.which("rootstock")
    if found is None:
        raise BenchError("The command `rootstock` is not installed. Run `make setup`.")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path, within_s: float = START_S) -> None:
    """Wait until `url` answers with success.

    Raises BenchError with the end of `log` if the process ends or `within_s` is over.
    """
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass  # Nobody listens yet.
        time.sleep(0.2)
    tail = log.read_text(errors="replace")[-2000:]
    ended = process.poll()
    how = f"still starts after {within_s:.0f} s" if ended is None else f"ended with {ended}"
    raise BenchError(f"The server {how}. The end of {log}:\n{tail}")


def _base_directory(data_dir: Path, flags: Sequence[str]) -> Path | None:
    """The directory behind `--base`, or the one that the server converted under its data directory."""
    if "--base" in flags and (given := Path(flags[flags.index("--base") + 1])).is_dir():
        return given
    return next((path for path in sorted(data_dir.glob("bases/*")) if any(path.glob("*.safetensors"))), None)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
