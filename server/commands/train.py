"""`rootstock train CONFIG`: from a config to an adapter that a running server serves.

Owns the command: its flags, what is checked before anything is loaded, and the way to the server when the run is done.
The run itself is training/run.py's; nothing of training is imported before this command is run.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.deliver import Destination, check
from server.commands.options import ApiKey, DataDirOption, checked_url, data_folder, print_json

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.data.prepare import CheckedData


def train(
    path: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; docs/training.md has every key.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key: --set steps.epochs=2.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The folder that appears when the run is done.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="URL", callback=checked_url, help="A running server that gets it.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Its name there; the output folder's by default.")] = None,
    alias: Annotated[str | None, typer.Option("--alias", help="A word to point at it there, as `prod`.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check config and data, show one example, stop.")] = False,
    resume: Annotated[
        bool | None, typer.Option("--resume/--fresh", help="Go on with an interrupted run, or begin anew.")
    ] = None,
    data_dir: DataDirOption = None,
    key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON for scripts.")] = False,
) -> None:
    """Train an adapter, prove that it behaves in the server as in the trainer, and make it callable."""
    from training.config_file import read_config
    from training.data.prepare import check as check_data
    from training.launcher import is_main_process

    config = read_config(path, [*(changes or []), *_overrides(output, push, name, alias)])
    data, checked = data_folder(data_dir), check_data(config)  # bad lines are told before torch is there
    if dry_run:
        _describe(config, checked, data, as_json)
        return
    destination = None
    if config.push is not None:
        destination = Destination(config.push.url, config.push_name, config.push.alias, key)
        destination.check_address(config.quantized)
    folder = _run(config, data, resume)
    if not is_main_process():
        return
    typer.echo(f"written to {folder}")
    if destination is not None:
        check(folder, config.base, data, config.quantized)
        typer.echo(destination.deliver(folder))


def _overrides(output: Path | None, push: str | None, name: str | None, alias: str | None) -> Iterator[str]:
    """Flags as `--set` spells them; JSON strings are YAML, so a name that looks like a number stays a name."""
    keys = (("output", output and str(output)), ("push.url", push), ("push.name", name), ("push.alias", alias))
    for key, value in keys:
        if value:
            yield f"{key}={json.dumps(value)}"


def _describe(config: "TrainConfig", checked: "CheckedData", data: Path, as_json: bool) -> None:
    """What a run would learn from, on one rendered example; no weights are loaded."""
    from rich.console import Console

    from loader.base import tokenizer_of
    from loader.source import resolve
    from training.data.prepare import encode
    from training.dry_run import describe

    tokenizer = tokenizer_of(resolve(config.base, data))
    found = describe(encode(config, checked, tokenizer), config, tokenizer)
    console = Console()
    if as_json:
        print_json(found.as_json())
    elif console.is_terminal:
        console.print(found)
    else:
        typer.echo(str(found))


def _run(config: "TrainConfig", data: Path, resume: bool | None) -> Path:
    from rich.console import Console

    from server.offline_engine import OfflineEngine
    from training.launcher import is_main_process
    from training.observer import TerminalObserver
    from training.run import train as run

    with TerminalObserver(Console(stderr=True, quiet=not is_main_process())) as observer:
        serving = OfflineEngine(config.base, data, config.device)
        return run(
            config, data_dir=data, resume=resume, observer=observer, serve=serving if config.gate.enabled else None
        )
