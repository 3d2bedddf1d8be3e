"""`rootstock serve`: from settings to a listening server, and back to nothing left running.

Owns the order of the start and of the end. The pieces are made in `assembly.py`; the signals are
`shutdown.py`'s.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from functools import partial
from time import time

import structlog
import uvicorn
import uvloop
from rich.console import Console

from server import logs
from server.app import create_app
from server.assembly import Runtime, assemble, open_catalog
from server.connections import Bounds, affordable, bounded, raise_file_limit
from server.datadir import DataDir
from server.deps import in_thread
from server.garbage import Garbage
from server.host_check import HostCheck
from server.keys.errors import Unguarded
from server.keys.opening import open_keys
from server.keys.ring import KeyRing, NoKeys
from server.listen import bind, is_reachable_by_others
from server.loop_lag import watch_loop_lag
from server.meter import Meter
from server.periodic import PeriodicTask, repeat
from server.pins import restore_pins
from server.ports import Authenticator, Services
from server.quotas.tenant_quotas import Quotas
from server.screen import loading
from server.settings import Settings, SettingsError
from server.shutdown import Server, Shutdown, Signals
from server.usage.ledger import Ledger
from server.usage.writer import LedgerWriter
from server.version import version
from server.warm_start import ResidentRecorder

_log = structlog.get_logger(__name__)
_GRACE_S = 5  # for connections that still hold unread bytes after their answers were made


def serve(settings: Settings) -> int:
    """Serve until told to stop; the exit code. Raises LoaderError and its kin, before it listens.

    A second signal leaves the engine's thread in the middle of a step. All is put away by then, so the process ends
    here: the interpreter's own end would cut that thread off within torch, which aborts at times.
    """
    signals = Signals()
    code = signals.end(_serve(settings, signals))
    if signals.forced:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _check_adapters(settings: Settings) -> None:
    """Before a base is loaded. Raises SettingsError for an adapter that is no directory."""
    for name, folder in settings.adapters.items():
        if not folder.is_dir():
            raise SettingsError(f"--adapter {name}={folder}: there is no such directory.")


def _serve(settings: Settings, signals: Signals) -> int:
    _check_adapters(settings)
    raise_file_limit()
    logs.set_up(settings.log_level, settings.log_format)
    console = Console()
    data = DataDir(settings.data_dir)
    lock = data.lock()
    try:
        data.clear_uploads()
        with (
            bind(settings.host, settings.port) as sock,
            _authenticator(settings, data) as authenticator,
            _meter(settings, data) as meter,
        ):
            _check_guarded(sock, settings, authenticator)
            with loading(console) as progress:
                host_check = HostCheck(settings.host, settings.trusted_hosts, any_host=is_reachable_by_others(sock))
                runtime = assemble(settings, data, authenticator, host_check, meter, progress, console)
            with contextlib.closing(runtime.registry), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_run(settings, runtime, sock, console, signals))
    finally:
        os.close(lock)


@contextlib.contextmanager
def _authenticator(settings: Settings, data: DataDir) -> Iterator[Authenticator]:
    """With `--keys off` the data directory's keys are not even opened. Raises PepperUnusable, DatabaseUnusable."""
    if settings.keys == "off":
        yield NoKeys()
        return
    with contextlib.closing(open_keys(data, settings.keys_pepper_file)) as store:
        yield KeyRing(store, settings.keys)


@contextlib.contextmanager
def _meter(settings: Settings, data: DataDir) -> Iterator[Meter]:
    """What a killed server left under way ends here; at the end what was recorded is on disk.

    Raises DatabaseUnusable for a damaged ledger.
    """
    quotas = Quotas(settings.quota, settings.tenant_quotas())
    if settings.usage_ledger == "off":
        yield Meter(quotas)
        return
    with (
        contextlib.closing(Ledger(data.usage_url)) as ledger,
        contextlib.closing(LedgerWriter(ledger)) as writer,
    ):
        if lost := ledger.lost(time()):
            _log.warning("requests_lost", requests=len(lost), cause="the server before this one was killed")
        for row in lost:
            writer.record(row)
        yield Meter(quotas, writer)


def _check_guarded(sock: socket.socket, settings: Settings, authenticator: Authenticator) -> None:
    """Raises Unguarded for an address that other machines reach while nobody is asked for a key, unless told to."""
    if settings.keys == "off" or authenticator.required or not is_reachable_by_others(sock):
        return
    raise Unguarded(
        f"--host {settings.host} lets other machines in, and this server would ask nobody for a key. Make one with "
        f"`rootstock keys create --data-dir {settings.data_dir}`, or start with --keys on and make them "
        "later; --keys off lets everybody in."
    )


async def _run(settings: Settings, runtime: Runtime, sock: socket.socket, console: Console, signals: Signals) -> int:
    services, worker = runtime.services, runtime.worker
    worker.start()
    open_catalog(runtime, asyncio.get_running_loop(), settings.adapters)
    await worker.prefetch(services.server_catalog.residents())
    await restore_pins(services)
    garbage = Garbage(lambda: services.lifecycle.in_flight > 0)
    garbage.settle()
    most = affordable(settings.max_connections)
    if most < settings.max_connections:
        _log.warning("fewer_connections", max_connections=most, fix="raise the limit on open files (ulimit -n)")
    bounds = Bounds(most, head_s=settings.idle_timeout, read_s=settings.idle_timeout)
    server = Server(_config(runtime, bounds))
    shutdown = Shutdown(server, services.lifecycle, settings.drain_timeout, lambda: worker.stop(0))
    signals.take(asyncio.get_running_loop(), shutdown.on_signal)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    if not server.started:
        await worker.stop(0)
        await serving
        return 1
    services.lifecycle.ready()
    _say_where(console, sock, services.base_id)
    lag_watch = asyncio.create_task(watch_loop_lag(services.metrics.loop_lag))
    await _until_stopped(serving, services, garbage)
    lag_watch.cancel()
    if signals.forced:
        await shutdown.hang_up()
        return 1
    await worker.stop(0)
    if services.traces is not None:
        await in_thread(services.traces.close)
    _log.info("stopped")
    return 0


async def _until_stopped(serving: asyncio.Task[None], services: Services, garbage: Garbage) -> None:
    """Serve; meanwhile run the periodic tasks. At the end, remember what is resident."""
    residents = ResidentRecorder(services.worker, services.server_catalog)
    keeping = asyncio.create_task(repeat(periodic_tasks(services, residents, garbage)))
    try:
        await serving
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await residents.save()


def periodic_tasks(services: Services, residents: ResidentRecorder, garbage: Garbage) -> dict[str, PeriodicTask]:
    """What is done now and then: remember what is resident, forget uploads that have expired, look for garbage."""
    return {
        "residents_not_remembered": residents.save,
        "uploads_not_collected": partial(in_thread, services.uploads.collect),
        "garbage_not_collected": garbage.collect,
    }


def _config(runtime: Runtime, bounds: Bounds) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(runtime.services),
        http=bounded(bounds),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )


def _say_where(console: Console, sock: socket.socket, base_id: str) -> None:
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    console.print(f"rootstock {version()} serves {base_id} at http://{shown}:{port}", highlight=False)
