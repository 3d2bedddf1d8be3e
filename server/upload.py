"""Receiving one adapter as multipart/form-data (RFC 7578), straight to a file and never past a limit.

Owns the temporary file and removes it, whatever happens. Knows the form; whether the bytes are an
adapter is judged by the catalog.
"""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from adapters.uploads import FormReservation, Uploads
from server.body import Chunks, check_declared, check_encoding
from server.deps import in_thread
from server.errors import ApiError, BadRequest, ClientGone, TooLarge
from server.form import CONFIG_BYTES, FIELDS, Form
from server.ports import Limits

FORM: dict[str, Any] = {
    "type": "object",
    "required": ["name", "config", "weights"],
    "properties": {
        "name": {"type": "string", "description": "1 to 64 of a-z A-Z 0-9 . _ -"},
        "alias": {"type": "string", "description": "A word to point at the new version, such as `prod`."},
        "config": {"type": "string", "format": "binary", "description": "adapter_config.json"},
        "weights": {"type": "string", "format": "binary", "description": "adapter_model.safetensors"},
        "eval": {"type": "string", "format": "binary", "description": "eval.jsonl: rows that `promote` measures on."},
    },
}
_log = structlog.get_logger(__name__)
_FLAG = "--max-upload-bytes"
_WRITE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Upload:
    """A complete form: `config` is adapter_config.json, `weights` a temporary file that goes when the block ends.

    `eval` is eval.jsonl, if the form has one.
    """

    name: str
    alias: str | None
    config: bytes
    weights: Path
    eval: bytes | None = None


@asynccontextmanager
async def reserving(uploads: Uploads, tenant: str, size: int) -> AsyncIterator[FormReservation]:
    """`Uploads.reserve`, which looks at the disk, in a thread."""
    held = uploads.reserve(tenant, size)
    reservation = await in_thread(held.__enter__)
    try:
        yield reservation
    finally:
        held.__exit__(None, None, None)


@asynccontextmanager
async def receive_upload(
    http: HttpRequest, folder: Path, limits: Limits, reservation: FormReservation
) -> AsyncIterator[Upload]:
    """Read the form. Raises 400, 408, 413 or 415 and leaves nothing behind."""
    check_encoding(http)
    check_declared(http, limits.max_upload_bytes + CONFIG_BYTES, _FLAG)
    form = _form(http, limits)
    path = await in_thread(_temporary, folder)
    try:
        with path.open("wb") as file:
            await _pour(http, form, file, limits, reservation)
        yield _complete(form, path)
    finally:
        await in_thread(_remove, path)


def _form(http: HttpRequest, limits: Limits) -> Form:
    try:
        return Form(_boundary(http), limits.max_upload_bytes, _FLAG)
    except FormParserError:
        raise BadRequest("The multipart boundary is not valid.", code="form_invalid") from None


async def _pour(http: HttpRequest, form: Form, file: BinaryIO, limits: Limits, reservation: FormReservation) -> None:
    """Whatever a body holds, between its parts too, counts against the limit."""
    chunks = Chunks(http, limits.idle_s)
    pending = bytearray()
    received = 0
    try:
        while (chunk := await chunks.next()) is not None:
            received += len(chunk)
            if received > limits.max_upload_bytes + CONFIG_BYTES + _WRITE_BYTES:
                raise TooLarge(limits.max_upload_bytes, _FLAG)
            form.write(chunk)
            pending += form.take_weights()
            if len(pending) >= _WRITE_BYTES:
                await in_thread(file.write, bytes(pending))
                reservation.received += len(pending)
                pending.clear()
    except ClientDisconnect:
        raise ClientGone() from None
    except FormParserError:
        raise BadRequest("The body is not well-formed multipart/form-data.", code="form_invalid") from None
    await in_thread(file.write, bytes(pending))
    reservation.received = received


def _complete(form: Form, path: Path) -> Upload:
    if not form.ended:
        raise BadRequest("The form ends before its closing boundary. Send it whole.", code="form_invalid")
    missing = [f"`{field}`" for field in ("name", "config", "weights") if field not in form.seen]
    if missing:
        message = f"The form lacks {', '.join(missing)}. It takes {FIELDS}."
        raise BadRequest(message, missing[0].strip("`"), "form_invalid")
    alias = form.text("alias") if "alias" in form.seen else None
    rows = form.value("eval") if "eval" in form.seen else None
    return Upload(form.text("name"), alias or None, form.value("config"), path, rows)


def _boundary(http: HttpRequest) -> bytes:
    kind, options = parse_options_header(http.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise ApiError(415, f"Send the adapter as multipart/form-data with {FIELDS}.", code="unsupported_media")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise BadRequest("The Content-Type header has no multipart boundary.", code="form_invalid")
    return boundary


def _remove(path: Path) -> None:
    """Trouble with it is not the answer's: what the form held may be stored by now, and the next start removes it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.error("form_not_removed", reason=str(error))


def _temporary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False)) as file:
        return Path(file.name)
