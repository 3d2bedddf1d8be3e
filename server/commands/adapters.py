"""`rootstock adapters`: push, ls, show, cp, rm, alias, canary, eval, promote, rollback, share, pin, merge, and back.

Owns those commands. All of them are HTTP calls; nothing here touches the disk of the server.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from server.commands.errors import CommandFailed, Refused
from server.commands.options import LOCAL, AdapterName, AliasOption, ApiKey, Json, Url, print_cards, print_json
from server.commands.paths import adapter_path

ToTenant = Annotated[str | None, typer.Option("--with", metavar="TENANT", help="The tenant who may use it.")]
Public = Annotated[bool, typer.Option("--public", help="Every tenant of the server.")]

app = typer.Typer(no_args_is_help=True, help="Upload and manage the adapters of a running server.")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that PEFT saved.")],
    name: Annotated[str | None, typer.Option("--name", help="The adapter's name; the directory's by default.")] = None,
    alias: Annotated[str | None, typer.Option("--alias", help="A word to point at this version, as `prod`.")] = None,
    url: Url = LOCAL,
    key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Upload an adapter, unless the server has it. What is cut off goes on; the same bytes twice are one version."""
    from server.commands.client import Client
    from server.commands.push import push as send

    weights = _weights(folder)
    with _Bar(weights.stat().st_size, quiet=as_json) as reached:
        card, created = send(Client(url, key), folder, name or folder.resolve().name, alias, reached)
    if as_json:
        print_json(card)
        return
    verb = "added" if created else "already there:"
    typer.echo(f"{card['name']}@{card['version']} {verb} {card['kind']}, rank {card['rank']}, {card['id'][:19]}")


@app.command()
def ls(url: Url = LOCAL, key: ApiKey = None, as_json: Json = False) -> None:
    """List the newest version of every adapter."""
    from server.commands.client import Client

    cards = Client(url, key).call("GET", "/v1/adapters")["data"]
    print_json(cards) if as_json else print_cards(cards)


@app.command()
def show(name: AdapterName, url: Url = LOCAL, key: ApiKey = None, as_json: Json = False) -> None:
    """Show every version of an adapter."""
    from server.commands.client import Client

    cards = Client(url, key).call("GET", adapter_path(name, "versions"))["data"]
    print_json(cards) if as_json else print_cards(cards)


@app.command()
def cp(
    source: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="One of yours; its newest without @VERSION.")],
    name: Annotated[str, typer.Argument(metavar="NEW", help="The name that gets a version of it.")],
    alias: Annotated[str | None, typer.Option("--alias", help="A word to point at this version, as `prod`.")] = None,
    url: Url = LOCAL,
    key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Add a version under another name. Nothing is sent, and nothing is stored twice."""
    from server.commands.client import Client

    path = adapter_path(name, "versions")
    card, created = Client(url, key).make("POST", path, {"source": source, "alias": alias})
    message = f"{card['name']}@{card['version']} {'added' if created else 'already there'}"
    print_json(card) if as_json else typer.echo(message)


@app.command()
def rm(name: AdapterName, url: Url = LOCAL, key: ApiKey = None, as_json: Json = False) -> None:
    """Delete an adapter with all its versions, or one, as NAME@2, that no alias points at. Requests on it finish."""
    _act("DELETE", adapter_path(name), url, key, as_json, f"{name} deleted")


@app.command()
def alias(
    name: AdapterName,
    word: Annotated[str, typer.Argument(metavar="ALIAS", help="The word, as `prod`.")],
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The version's number.")],
    url: Url = LOCAL,
    key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Point an alias at a version; requests that run keep theirs."""
    path = adapter_path(name, "aliases", word)
    _act("PUT", path, url, key, as_json, f"{name}@{word} is now {name}@{version}", {"version": version})


@app.command()
def canary(
    name: AdapterName,
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", min=1, help="The version to try.")] = None,
    weight: Annotated[
        float, typer.Option("--weight", min=0, max=1, help="Its share of the alias's traffic, between 0 and 1.")
    ] = 0.1,
    alias: AliasOption = "prod",
    url: Url = LOCAL,
    key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Give a version a share of an alias's traffic, or end that without VERSION. A user keeps to one version."""
    from server.commands.client import Client

    path = adapter_path(name, "aliases", alias)
    stable = Client(url, key).call("GET", path)["version"]
    tried = None if version is None else {"version": version, "weight": weight}
    share = "all traffic" if version is None else f"{1 - weight:.1%} of traffic, {name}@{version} {weight:.1%}"
    message = f"{name}@{alias}: {name}@{stable} has {share}"
    _act("PUT", path, url, key, as_json, message, {"version": stable, "canary": tried})


@app.command()
def promote(
    name: AdapterName,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The version's number.")],
    alias: AliasOption = "prod",
    force: Annotated[bool, typer.Option("--force", help="Measure nothing; move the alias.")] = False,
    url: Url = LOCAL,
    key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Move an alias to a version, unless it does worse on its eval file than the one the alias points at."""
    from server.commands.client import Client

    body = {"version": version, "alias": alias, "force": force}
    try:
        card = Client(url, key).call("POST", adapter_path(name, "promote"), body)
    except Refused as refused:  # it is told in the words of HTTP
        message = str(refused).replace("Send `force: true`", "Give --force")
        raise Refused(message, refused.status, refused.code) from None
    if as_json:
        print_json(card)
        return
    typer.echo(f"{name}@{alias} is now {name}@{version}: {_how(card)}")


@app.command("eval")
def attach_eval(
    name: AdapterName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL with prompt and completion, or messages.")],
    url: Url = LOCAL,
    key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Give an adapter's newest version, or NAME@3, the rows that `promote` measures it on."""
    from server.commands.client import Client

    if not file.is_file():
        raise CommandFailed(f"There is no file {file}.")
    reply = Client(url, key).put(adapter_path(name, "eval"), file.read_bytes())
    message = f"{reply['name']}@{reply['version']} carries {reply['rows']} eval rows"
    print_json(reply) if as_json else typer.echo(message)


@app.command()
def rollback(
    name: AdapterName, alias: AliasOption = "prod", url: Url = LOCAL, key: ApiKey = None, as_json: Json = False
) -> None:
    """End an alias's canary or, where it has none, put the alias back to where it pointed before."""
    from server.commands.client import Client

    card = Client(url, key).call("POST", adapter_path(name, "rollback"), {"alias": alias})
    print_json(card) if as_json else typer.echo(f"{name}@{alias} is {name}@{card['version']} again")


@app.command()
def share(
    name: AdapterName,
    to: ToTenant = None,
    public: Public = False,
    url: Url = LOCAL,
    key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Let another tenant, or all of them, use an adapter of yours. Only you change it."""
    _share("PUT", name, to, public, url, key, as_json)


@app.command()
def unshare(
    name: AdapterName,
    to: ToTenant = None,
    public: Public = False,
    url: Url = LOCAL,
    key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """End what `share` began. Requests that run on it finish."""
    _share("DELETE", name, to, public, url, key, as_json)


@app.command()
def pin(name: AdapterName, url: Url = LOCAL, key: ApiKey = None, as_json: Json = False) -> None:
    """Keep an adapter on the device."""
    _act("POST", adapter_path(name, "pin"), url, key, as_json, f"{name} pinned")


@app.command()
def unpin(name: AdapterName, url: Url = LOCAL, key: ApiKey = None, as_json: Json = False) -> None:
    """Let an adapter be evicted again."""
    _act("DELETE", adapter_path(name, "pin"), url, key, as_json, f"{name} unpinned")


@app.command()
def merge(name: AdapterName, url: Url = LOCAL, key: ApiKey = None, as_json: Json = False) -> None:
    """Serve an adapter from merged weights of its own, at the price of the base."""
    _act("POST", adapter_path(name, "merge"), url, key, as_json, f"{name} merged")


@app.command()
def unmerge(name: AdapterName, url: Url = LOCAL, key: ApiKey = None, as_json: Json = False) -> None:
    """Drop the merged weights; the adapter is served like any other again."""
    _act("DELETE", adapter_path(name, "merge"), url, key, as_json, f"{name} unmerged")


def _how(card: dict[str, Any]) -> str:
    """What the gate found, as `promote` was answered."""
    before, after = card["before"], card["score"]
    if card["gate"] == "forced":
        return "forced, not measured"
    if card["gate"] == "no_eval_file":
        return "not measured, no eval file"
    was = "" if before is None else f"; before {before['mean_logprob']:.3f} and {before['exact']:.0%}"
    return f"{after['mean_logprob']:.3f} nats per token, {after['exact']:.0%} exact{was}"


def _act(
    method: str,
    path: str,
    url: str,
    key: str | None,
    as_json: bool,
    done: str,
    body: dict[str, object] | None = None,
) -> None:
    from server.commands.client import Client

    reply = Client(url, key).call(method, path, body)
    print_json(reply) if as_json else typer.echo(done)


def _share(method: str, name: str, to: str | None, public: bool, url: str, key: str | None, as_json: bool) -> None:
    """Says who has it now: what is unshared with one tenant may still be everybody's."""
    from server.commands.client import Client

    if (to is None) == (not public):
        raise typer.BadParameter("Give either --with TENANT or --public.")
    path = adapter_path(name, "public") if to is None else adapter_path(name, "shares", to)
    shares = Client(url, key).call(method, path)
    with_whom = "every tenant" if shares["public"] else ", ".join(shares["tenants"]) or "nobody"
    print_json(shares) if as_json else typer.echo(f"{name} is shared with {with_whom}")


def _weights(folder: Path) -> Path:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise CommandFailed(f"{folder} has no {name}. Give the directory that PEFT's save_pretrained wrote.")
    return folder / "adapter_model.safetensors"


class _Bar:
    """A progress bar on standard error, gone when the upload ends."""

    def __init__(self, total: int, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
        console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("uploading", total=total)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, offset: int) -> None:
        self._progress.update(self._task, completed=offset)
