"""Sending an adapter to a server: not at all if it is there, in pieces that survive a cut, and to the end.

Owns the order of the requests and the pauses between them. Draws nothing: a watcher is told how far it has come.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from loader.digests import file_digest
from server.commands.client import Client
from server.commands.errors import CommandFailed, Refused, Unreachable
from server.commands.paths import adapter_path

if TYPE_CHECKING:
    from adapters.manifest import TrainedOn

T = TypeVar("T")
Watch = Callable[[int], None]

CHUNK_BYTES = 16 << 20
_PIECE_BYTES = 256 << 10
_LONGEST_WAIT_S = 8.0


@dataclass(slots=True)
class Backoff:
    """Between attempts: half a second, doubled each time, until `most_s` seconds have passed without progress."""

    most_s: float = 120.0
    sleep: Callable[[float], None] = time.sleep
    _spent: float = field(default=0.0, init=False)
    _next: float = field(default=0.5, init=False)

    def progress(self) -> None:
        self._spent, self._next = 0.0, 0.5

    def wait(self, error: CommandFailed) -> None:
        """Before the next attempt. Raises `error` when it will not change by itself, or has lasted too long."""
        passing = isinstance(error, Unreachable) or (isinstance(error, Refused) and error.passing)
        if not passing or self._spent >= self.most_s:
            raise error
        pause = self._next * random.uniform(0.5, 1.0)  # so that many who were cut off together do not come together
        self.sleep(pause)
        self._spent += pause
        self._next = min(self._next * 2, _LONGEST_WAIT_S)

    def until_answered(self, attempt: Callable[[], T]) -> T:
        while True:
            try:
                return attempt()
            except CommandFailed as error:
                self.wait(error)


def push(
    client: Client, folder: Path, name: str, alias: str | None, watch: Watch, backoff: Backoff | None = None
) -> tuple[Any, bool]:
    """The adapter's card, and whether it is new. `watch` is called with how many bytes the server has.

    Raises CommandFailed with the server's own words, Unreachable when it stays away.
    """
    backoff = backoff or Backoff()
    order = _order(folder, name, alias)
    present = backoff.until_answered(lambda: _present(client, folder, name, alias))
    if present is not None:
        card, created = present
        if "eval" in order:
            path = adapter_path(f"{name}@{card['version']}", "eval")
            backoff.until_answered(lambda: client.put(path, str(order["eval"]).encode()))
        return card, created
    begun = backoff.until_answered(lambda: client.call("POST", "/v1/adapters/uploads", order))
    at = f"/v1/adapters/uploads/{begun['id']}"
    _send(client, at, folder / "adapter_model.safetensors", begun["offset"], watch, backoff)
    return _finish(client, at, name, str(order["digest"]), backoff)


def _present(client: Client, folder: Path, name: str, alias: str | None) -> tuple[Any, bool] | None:
    """The card of this content under this name, and whether the name is new to it, if the caller has the content
    under any name, with the same record of its base.
    """
    from adapters.content_id import manifest_of

    manifest = manifest_of(folder)
    if manifest is None:
        return None  # the server says what is wrong with it
    record = manifest.trained_on
    found = client.call("GET", f"/v1/adapters?id={manifest.id}")["data"]
    same = [card for card in found if card["state"] != "corrupt" and _was_trained_on(card, record)]
    if not same:
        return None
    here = next((card for card in same if card["name"] == name), None)
    if here is None:
        body = {"source": f"{same[0]['name']}@{same[0]['version']}", "alias": alias}
        return client.make("POST", adapter_path(name, "versions"), body)
    if alias is not None and alias not in here["aliases"]:
        path = adapter_path(name, "aliases", alias)
        here = client.call("PUT", path, {"version": here["version"]})
    return here, False


def _was_trained_on(card: Any, record: "TrainedOn | None") -> bool:
    """Whether the record of its base, if there is one, is the one that the card shows."""
    return record is None or (card["base_weights"], card["base_quantization"]) == (record.weights, record.quantization)


def _order(folder: Path, name: str, alias: str | None) -> Mapping[str, object]:
    """What is announced. A folder's `eval.jsonl` goes with it."""
    weights, rows = folder / "adapter_model.safetensors", folder / "eval.jsonl"
    order = {"name": name, "alias": alias, "size": weights.stat().st_size, "digest": file_digest(weights)}
    order |= {"config": _text(folder / "adapter_config.json")}
    return order | ({"eval": _text(rows)} if rows.is_file() else {})


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise CommandFailed(f"{file} is not UTF-8.") from None


def _send(client: Client, at: str, weights: Path, offset: int, watch: Watch, backoff: Backoff) -> None:
    """From `offset` to the end; after a failure, from where the server says it is."""
    size = weights.stat().st_size
    watch(offset)
    while offset < size:
        try:
            length = min(CHUNK_BYTES, size - offset)
            headers = {"upload-offset": str(offset), "content-length": str(length)}
            reached = client.send(at, _pieces(weights, offset, length, watch), headers)["offset"]
        except CommandFailed as error:
            if not (isinstance(error, Refused) and error.status == 416):
                backoff.wait(error)
            reached = backoff.until_answered(lambda: client.call("GET", at))["offset"]
        if reached > offset:
            backoff.progress()
        offset = reached
        watch(offset)


def _pieces(weights: Path, offset: int, length: int, watch: Watch) -> Iterator[bytes]:
    with weights.open("rb") as file:
        file.seek(offset)
        end = offset + length
        while offset < end:
            piece = file.read(min(_PIECE_BYTES, end - offset))
            if not piece:
                raise CommandFailed(f"{weights} became shorter while it was being sent.")
            yield piece
            offset += len(piece)
            watch(offset)


def _finish(client: Client, at: str, name: str, digest: str, backoff: Backoff) -> tuple[Any, bool]:
    """The server reads it now. An answer that was lost is found at the upload."""

    def attempt() -> tuple[Any, bool]:
        try:
            return client.finish(f"{at}?digest={digest}")
        except Refused as error:
            if error.code != "upload_over":
                raise
        upload = client.call("GET", at)
        if upload["state"] == "failed":
            raise CommandFailed(upload["reason"])
        return client.call("GET", adapter_path(f"{name}@{upload['version']}")), True

    return backoff.until_answered(attempt)
