"""Receiving one chunk of a resumable upload: where it belongs, how long it may be, and its bytes, straight to the file.

Owns the headers that say where a chunk begins. What may be written is the uploads' affair.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from adapters.upload_files import UploadWriter
from adapters.uploads import Uploads
from server.body import Chunks
from server.deps import in_thread
from server.errors import BadRequest, ClientGone

_RANGE = re.compile(r"(?:bytes )?([0-9]{1,18})-([0-9]{1,18})(?:/(?:[0-9]{1,18}|\*))?")
_WRITE_BYTES = 1 << 20


def declared_offset(http: HttpRequest) -> int:
    """Where the chunk begins, by Upload-Offset or Content-Range. Raises BadRequest when neither says so, or both do."""
    offset, span = http.headers.get("upload-offset"), http.headers.get("content-range")
    if (offset is None) == (span is None):
        raise BadRequest("Say where the chunk begins, by Upload-Offset or by Content-Range.", code="offset_missing")
    if offset is not None:
        if not (offset.isascii() and offset.isdecimal() and len(offset) <= 18):
            raise BadRequest("Upload-Offset is a number of bytes, such as 1024.", code="offset_missing")
        return int(offset)
    assert span is not None
    match = _RANGE.fullmatch(span.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise BadRequest("Content-Range is first-last, such as 0-1023.", code="offset_missing")
    length = http.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) != int(match[2]) - int(match[1]) + 1:
        raise BadRequest("Content-Range and Content-Length disagree.", code="offset_missing")
    return int(match[1])


@asynccontextmanager
async def appending(uploads: Uploads, tenant: str, id: str, offset: int) -> AsyncIterator[UploadWriter]:
    """`Uploads.writing`, with the disk's work in threads."""
    writing = uploads.writing(tenant, id, offset)
    writer = await in_thread(writing.__enter__)
    try:
        yield writer
    finally:
        await in_thread(writing.__exit__, None, None, None)


async def pour(http: HttpRequest, writer: UploadWriter, idle_s: float) -> None:
    """All of the body that arrives is kept, whatever ends it, so that a peer that was cut off can go on from there.

    Raises UploadOverflow, 408, ClientGone.
    """
    chunks = Chunks(http, idle_s)
    pending = bytearray()
    try:
        while (chunk := await chunks.next()) is not None:
            pending += chunk
            if len(pending) >= _WRITE_BYTES:
                await in_thread(writer.write, bytes(pending))
                pending.clear()
    except ClientDisconnect:
        raise ClientGone() from None
    finally:
        if pending:
            await in_thread(writer.write, bytes(pending))
