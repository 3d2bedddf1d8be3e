"""An adapter's way from the folder where it was trained to a server that answers with it.

Owns the order: read it as the server will, upload, wait until a request runs on it, and only then move the alias.
"""

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from server.commands.errors import CommandFailed, Unreachable

if TYPE_CHECKING:
    from server.commands.client import Client

READY_S = 300.0
_POLL_S = 0.5


def check(folder: Path, base: str, data: Path, quantization: str | None) -> None:
    """Read the adapter with the server's own reader. Raises InvalidAdapter or BaseMismatch, before anything is sent."""
    from adapters.checkpoint import read_directory
    from adapters.provenance import ServedBase
    from loader import skeleton
    from loader.fingerprint import fingerprint
    from loader.source import resolve

    source = resolve(base, data)
    served = ServedBase(skeleton.shape(source), lambda: fingerprint(source.path, data), quantization)
    served.check(read_directory(folder, served.shape).manifest)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an adapter goes: a server's `url`, its `name` and perhaps `alias` there, and the `key` that opens it.

    The key is never printed, and stands in no config: cards tell configs.
    """

    url: str
    name: str
    alias: str | None
    key: str | None = field(default=None, repr=False)

    def check_address(self, quantization: str | None) -> None:
        """What can be known before hours are spent on training: that the names are valid and a server answers, which
        takes adapters that were trained on a base in this `quantization`.

        Raises NameInvalid, AliasInvalid, Unreachable, CommandFailed.
        """
        from adapters.naming import check_alias, check_name
        from server.commands.client import Client

        check_name(self.name)
        if self.alias is not None:
            check_alias(self.alias)
        try:
            client = Client(self.url, self.key)
            about = client.call("GET", "/version")
            client.call("GET", "/v1/models")  # tells whether the key is valid
        except Unreachable as error:
            raise Unreachable(
                f"{error} Or train without --push, and upload later: rootstock adapters push DIR."
            ) from None
        served = about.get("quantization")
        if served != quantization and not about.get("allows_other_quantization"):
            raise CommandFailed(
                f"The server at {self.url} serves {about.get('base')} with quantization {served or 'none'}, but this "
                f"trains on quantization {quantization or 'none'}, so it would refuse the adapter. Train on the same, "
                "or start the server with --allow-quantization-mismatch."
            )

    def deliver(self, folder: Path) -> str:
        """Upload and wait; the words for the user. Raises CommandFailed with the command that tries again."""
        try:
            return self._deliver(folder)
        except CommandFailed as error:
            words = ["rootstock", "adapters", "push", str(folder), "--name", self.name, "--url", self.url]
            again = shlex.join([*words, *(["--alias", self.alias] if self.alias else [])])
            error.args = (f"{error}\nThe adapter is in {folder}. To push it again: {again}",)
            raise

    def _deliver(self, folder: Path) -> str:
        from server.commands.client import Client
        from server.commands.push import push

        client = Client(self.url, self.key)
        _wait_until_ready(client, READY_S)
        card, created = push(client, folder, self.name, None, _unwatched)
        version = f"{card['name']}@{card['version']}"
        # The first request loads it: once that is answered, the alias cannot lead anybody to a version that fails.
        client.call("POST", "/v1/completions", {"model": version, "prompt": "Hello", "max_tokens": 1})
        if self.alias is not None:
            path = f"/v1/adapters/{self.name}/aliases/{self.alias}"
            client.call("PUT", path, {"version": card["version"]})
        model = f"{self.name}@{self.alias}" if self.alias else self.name
        state = f"{version} {'added' if created else 'was there already'}, and answers at {self.url}"
        return f"{state}. Try it:\n{curl(self.url, model, keyed=self.key is not None)}"


def curl(url: str, model: str, keyed: bool = False) -> str:
    """The shortest line that talks to an adapter; a key is taken from the environment, where it is not shown."""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    key = ' -H "authorization: Bearer $ROOTSTOCK_API_KEY"' if keyed else ""
    return f"curl {url.rstrip('/')}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'"


def _wait_until_ready(client: "Client", most_s: float) -> None:
    """A server that loads refuses connections, one that drains says so. Raises CommandFailed after `most_s` seconds."""
    deadline = time.monotonic() + most_s
    while True:
        try:
            status = client.call("GET", "/readyz").get("status")
        except Unreachable:
            if time.monotonic() > deadline:
                raise
        else:
            if status == "ready":
                return
            if time.monotonic() > deadline:
                raise CommandFailed(f"The server is {status} and takes no uploads.")
        time.sleep(_POLL_S)


def _unwatched(count: int) -> None:
    """An adapter is small beside its training: no bar is drawn."""
