"""`rootstock keys`: create, ls, revoke, rotate.

Owns those commands. They work on the data directory itself, so that whoever may read it, and nobody else, makes keys;
a running server notices at the next request. They say which directory that is: a key in another one than the server's
guards nothing.
"""

import getpass
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.errors import CommandFailed
from server.commands.options import Json, print_json
from server.principal import Scope

if TYPE_CHECKING:
    from server import datadir
    from server.keys.store import Key, KeyStore

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the API keys of a data directory.")

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="ROOTSTOCK_DATA_DIR", help="The server's data directory.")
]
Pepper = Annotated[
    Path | None,
    typer.Option(
        "--keys-pepper-file",
        envvar="ROOTSTOCK_KEYS_PEPPER_FILE",
        help="The file of the keys' pepper; keys.pepper in the data directory by default.",
    ),
]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="The part between `sk-` and `_`; a whole key will do.")]

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@app.command()
def create(
    tenant: Annotated[str, typer.Option("--tenant", help="Who owns what this key uploads.")],
    project: Annotated[
        str, typer.Option("--project", help="A part of the tenant, told apart in `rootstock usage`.")
    ] = "default",
    scopes: Annotated[
        list[Scope] | None, typer.Option("--scope", help="Give it once for each; infer and read by default.")
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="90d", help="When it ends: 30m, 12h or 90d from now; never by default."),
    ] = None,
    data_dir: DataDir = None,
    pepper: Pepper = None,
    as_json: Json = False,
) -> None:
    """Make a key. Its text is printed now and never again."""
    owner = _slug(tenant, "a tenant's name", "--tenant")
    part = _slug(project, "a project's name", "--project")
    lifetime = None if expires is None else _lifetime(expires, "--expires")
    data = _folder(data_dir)
    with _store(data, pepper) as store:
        key, text = store.create(owner, part, scopes or [Scope.INFER, Scope.READ], lifetime)
    _say_where(data)
    _show_new(key, text, as_json)


@app.command()
def ls(data_dir: DataDir = None, pepper: Pepper = None, as_json: Json = False) -> None:
    """List all keys that were ever made, without their secrets."""
    with _store(_with_keys(data_dir), pepper) as store:
        keys = [_card(key) for key in store.every()]
    print_json(keys) if as_json else _print(keys)


@app.command()
def revoke(id: KeyId, data_dir: DataDir = None, pepper: Pepper = None, as_json: Json = False) -> None:
    """Refuse a key from now on, in a running server too. Answers that have begun are finished."""
    with _store(_with_keys(data_dir), pepper) as store:
        key = store.revoke(_id(id))
    print_json(_card(key)) if as_json else typer.echo(f"{key.id} revoked")


@app.command()
def rotate(
    id: KeyId,
    grace: Annotated[
        str, typer.Option("--grace", metavar="1d", help="How long the old key stays valid: 30m, 12h or 1d.")
    ] = "1d",
    data_dir: DataDir = None,
    pepper: Pepper = None,
    as_json: Json = False,
) -> None:
    """Make a key with the same rights; both are valid until the old one's grace is over."""
    with _store(_with_keys(data_dir), pepper) as store:
        key, text = store.rotate(_id(id), _lifetime(grace, "--grace"))
    _show_new(key, text, as_json)


def _folder(data_dir: Path | None) -> "datadir.DataDir":
    from server.commands.options import data_folder
    from server.datadir import DataDir

    return DataDir(data_folder(data_dir).absolute())


def _with_keys(data_dir: Path | None) -> "datadir.DataDir":
    """For what only looks at keys, and makes no directory where there is none."""
    data = _folder(data_dir)
    if not data.keys.exists():
        raise CommandFailed(f"There are no keys in {data.root}. Give the server's --data-dir, or `keys create` one.")
    return data


@contextmanager
def _store(data: "datadir.DataDir", pepper: Path | None) -> "Iterator[KeyStore]":
    from contextlib import closing

    from server import logs
    from server.keys.opening import open_keys
    from server.settings import read_settings

    settings = read_settings({})
    logs.set_up("info", settings.log_format)
    with closing(open_keys(data, pepper or settings.keys_pepper_file, by=getpass.getuser())) as store:
        yield store


def _id(text: str) -> str:
    """Nothing of `text` is told when it is no id: it may be a secret."""
    from server.keys.token import id_in

    if not (id := id_in(text)):
        raise CommandFailed("That is no key's id, which is 16 hexadecimal digits. `rootstock keys ls` lists them.")
    return id


def _slug(text: str, kind: str, option: str) -> str:
    from adapters.errors import NameInvalid
    from adapters.naming import check_slug

    try:
        return check_slug(text, kind)
    except NameInvalid as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _lifetime(text: str, option: str) -> timedelta:
    form = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    if form is None:
        raise typer.BadParameter(f"{text} is no span of time. Write 30m, 12h or 90d.", param_hint=option)
    return timedelta(**{_UNITS[form[2]]: int(form[1])})


def _say_where(data: "datadir.DataDir") -> None:
    typer.echo(f"A key for servers on {data.root}", err=True)
    if not data.served:
        typer.secho(
            f"No server has used {data.root} yet. A server with another --data-dir does not see this key, and may ask"
            " nobody for one: make keys with its --data-dir.",
            err=True,
            fg=typer.colors.YELLOW,
        )


def _show_new(key: "Key", text: str, as_json: bool) -> None:
    if as_json:
        print_json(_card(key) | {"key": text})
        return
    typer.secho("Keep it now; it is stored nowhere and cannot be shown again:", err=True)
    typer.echo(text)


def _card(key: "Key") -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "project": key.project,
        "scopes": sorted(key.scopes),
        "state": key.state(datetime.now(UTC)),
        "created": _iso(key.created),
        "expires": _iso(key.expires),
        "revoked": _iso(key.revoked),
        "replaces": key.replaces,
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def _print(keys: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("id", "tenant", "project", "scopes", "state", "created", "expires", "replaces")
    for column in columns:
        table.add_column(column, overflow="fold")
    for key in keys:
        shown = key | {"scopes": " ".join(key["scopes"])}
        table.add_row(*(str(shown[column] or "") for column in columns))
    console = Console()
    console.print(table) if console.is_terminal else Console(width=240).print(table)
