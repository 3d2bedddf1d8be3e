"""How the server refuses: one error type, and the one table from every layer's errors to HTTP.

ApiError                     any refusal: status, message, type, param, code, headers
├── BadRequest          400  the request is malformed or asks for what is not there
├── Unauthorized        401  no key, or none that is valid now
├── ModelNotFound       404  no such base, adapter, version or alias
├── TooLarge            413  the body exceeds a byte limit
├── RateLimited         429  this tenant has used up what it may in a minute, or at once
├── QuotaExceeded       403  this tenant may store no more
├── GenerationFailed    5xx  the engine ended an accepted request with an error; 422 where the request is to blame
├── ReaderTooSlow       408  too much of a stream was left unread; its last event
├── StorageFull         507  no room on disk; nothing was changed
├── StorageFailed       503  the disk failed, or file descriptors have run out; a change may have been made
├── NotReady            503  still loading; try again
└── Draining            503  shutting down; another replica may answer
ChatRefused             400  the base has no chat template, or it refuses these roles
ClientGone              ---  nobody is listening any more; nothing is sent

Knows the adapters' and the engine's errors by name; never puts a request's own words into a reply.
"""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from starlette.exceptions import HTTPException

from adapters import errors as adapters
from engine import errors as engine
from loader.errors import DoesNotFit

INVALID = "invalid_request_error"
NO_RETRY = {"x-should-retry": "false"}


class ApiError(HTTPException):
    """A refusal in OpenAI's shape: it always has a code, and a `param` where one field is to blame.

    Subclasses HTTPException so that body parsing and pydantic let it through unchanged.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        param: str | None = None,
        code: str | int,
        headers: Mapping[str, str] | None = None,
        faults: Sequence[Mapping[str, str]] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.message, self.type, self.param, self.code, self.faults = message, type, param, code, faults
        self.details = details

    def envelope(self) -> dict[str, Any]:
        body: dict[str, Any] = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        if self.faults is not None:
            body["faults"] = list(self.faults)
        body |= self.details or {}
        return {"error": body}


class BadRequest(ApiError):
    def __init__(self, message: str, param: str | None = None, code: str = "validation_error") -> None:
        super().__init__(400, message, param=param, code=code)


class Unauthorized(ApiError):
    """One answer whatever is wrong, so that guessing learns nothing (RFC 6750)."""

    def __init__(self) -> None:
        super().__init__(
            401,
            "This server asks for an API key. Send a valid one as `Authorization: Bearer sk-...`.",
            code="invalid_api_key",
            headers={"www-authenticate": 'Bearer realm="rootstock"'} | NO_RETRY,
        )


class ModelNotFound(ApiError):
    def __init__(self, message: str) -> None:
        super().__init__(404, message, param="model", code="model_not_found")


class TooLarge(ApiError):
    """`flag` is the one that raises the limit, if one does."""

    def __init__(self, limit: int, flag: str | None) -> None:
        other = f", or start the server with a larger {flag}" if flag else ""
        super().__init__(
            413,
            f"The request body is larger than {limit} bytes. Send less{other}.",
            code="body_too_large",
        )


class RateLimited(ApiError):
    """`retry_s` is when it may be sent again; None when it never can as it is."""

    def __init__(self, message: str, retry_s: float | None, headers: Mapping[str, str]) -> None:
        again = NO_RETRY if retry_s is None else {"retry-after": str(max(1, ceil(retry_s)))}
        super().__init__(
            429, message, type="rate_limit_error", code="rate_limit_exceeded", headers={**headers, **again}
        )


class QuotaExceeded(ApiError):
    def __init__(self, message: str) -> None:
        super().__init__(
            403,
            f"{message} Delete adapters or versions, or ask the operator for a larger quota.",
            type="insufficient_quota",
            code="quota_exceeded",
            headers=NO_RETRY,
        )


_REQUESTS_OWN = {"adapter_overflow": "model", "constraint_failed": None}
"""Failures that whoever trained the adapter or wrote the grammar has caused, each with the field that names it."""


class GenerationFailed(ApiError):
    """The engine gave up on a request after accepting it; `code` is its word for why."""

    def __init__(self, message: str, code: str) -> None:
        if code in _REQUESTS_OWN:
            super().__init__(422, message, param=_REQUESTS_OWN[code], code=code, headers=NO_RETRY)
            return
        passing = code == "engine_failed"  # the next engine is on its way
        status = 503 if passing or code.startswith("adapter_") else 500
        headers = {"retry-after": "2"} if passing else NO_RETRY
        super().__init__(status, message, type="server_error", code=code, headers=headers)


class ReaderTooSlow(ApiError):
    """What its client has still to read of a stream ends with this."""

    def __init__(self, message: str) -> None:
        super().__init__(408, message, code="reader_too_slow", headers=NO_RETRY)


class NotReady(ApiError):
    def __init__(self) -> None:
        super().__init__(
            503, "The server is still loading.", type="server_error", code="not_ready", headers={"retry-after": "2"}
        )


class Draining(ApiError):
    def __init__(self) -> None:
        super().__init__(
            503,
            "The server is shutting down and takes no new requests.",
            type="server_error",
            code="draining",
            headers={"retry-after": "5"},
        )


class ChatRefused(Exception):
    """The messages cannot be laid out for this base; the text says why and what to send instead."""


class StorageFull(ApiError):
    def __init__(self) -> None:
        super().__init__(
            507,
            "The disk is full, so nothing was changed; an upload in pieces keeps the bytes that came. Delete adapters "
            "or make room, then send this again.",
            type="server_error",
            code="storage_full",
            headers=NO_RETRY,
        )


class StorageFailed(ApiError):
    """What follows a commit can fail too, so that no change is called undone here. Sent again, an upload comes to the
    version that it made; what has no such answer can be looked at.
    """

    def __init__(self) -> None:
        super().__init__(
            503,
            "The server could not read or write its disk; its log has the reason. If this was to change something, it "
            "is not known whether it did: look before you send it again. An upload may always be sent again: the same "
            "bytes under one name are one version.",
            type="server_error",
            code="storage_failed",
            headers={"retry-after": "5"},
        )


class ClientGone(Exception):
    """The client closed the connection before the answer was complete."""


@dataclass(frozen=True, slots=True)
class Status:
    """How one kind of error is told: `message` replaces the error's own words when they are not for the public."""

    status: int
    code: str
    type: str = INVALID
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str | None = None


_STOPPED = "The engine is stopping and takes no new requests."
_FAILED = "The engine failed while it worked on this request. Its log has the reason under the request's x-request-id."
_NO_ADAPTER = "There is no such adapter, version or alias. GET /v1/adapters lists the adapters."
_CORRUPT = "This adapter's stored weights are damaged. Upload the adapter again."

# The first row whose type matches wins, so a subclass stands before its parent.
TABLE: tuple[tuple[type[Exception], Status], ...] = (
    (engine.PromptTooLong, Status(400, "context_length_exceeded", param="messages")),
    (engine.QueueFull, Status(429, "queue_full", "rate_limit_error", headers={"retry-after": "1"})),
    (engine.EngineStopped, Status(503, "draining", "server_error", headers={"retry-after": "5"}, message=_STOPPED)),
    (engine.EngineRestarting, Status(503, "engine_restarting", "server_error", headers={"retry-after": "2"})),
    (engine.AdapterTooLarge, Status(507, "adapter_too_large", "server_error", "model", NO_RETRY)),
    (engine.DeviceQuotaTooSmall, Status(403, "quota_exceeded", "insufficient_quota", "model", NO_RETRY)),
    (DoesNotFit, Status(507, "does_not_fit", "server_error", headers=NO_RETRY)),
    (engine.MergeRefused, Status(409, "merge_refused", headers=NO_RETRY)),
    (engine.EngineError, Status(500, "engine_error", "server_error", message=_FAILED)),
    (adapters.UnsupportedMedia, Status(415, "unsupported_media")),
    (adapters.InvalidAdapter, Status(422, "invalid_adapter")),
    (adapters.BaseMismatch, Status(409, "base_mismatch", headers=NO_RETRY)),
    (adapters.UnknownVersion, Status(404, "adapter_not_found", message=_NO_ADAPTER)),
    (adapters.UnknownAdapter, Status(404, "adapter_not_found", message=_NO_ADAPTER)),
    (adapters.ConditionFailed, Status(412, "precondition_failed", headers=NO_RETRY)),
    (adapters.NotOwner, Status(403, "not_owner", "permission_error", headers=NO_RETRY)),
    (adapters.UnknownUpload, Status(404, "upload_not_found", headers=NO_RETRY)),
    (adapters.UploadBusy, Status(409, "upload_busy", headers={"retry-after": "1"})),
    (adapters.UploadOver, Status(409, "upload_over", headers=NO_RETRY)),
    (adapters.WrongOffset, Status(416, "offset_invalid", headers=NO_RETRY)),
    (adapters.UploadIncomplete, Status(409, "upload_incomplete", headers=NO_RETRY)),
    (adapters.UploadOverflow, Status(413, "body_too_large", headers=NO_RETRY)),
    (adapters.DigestMismatch, Status(400, "digest_mismatch", param="digest")),
    (adapters.TooManyUploads, Status(429, "too_many_uploads", "rate_limit_error", headers={"retry-after": "60"})),
    (adapters.UploadsFull, Status(503, "uploads_full", "server_error", headers={"retry-after": "60"})),
    (adapters.NameReserved, Status(409, "name_reserved", param="name", headers=NO_RETRY)),
    (adapters.NameInvalid, Status(400, "name_invalid", param="name")),
    (adapters.AliasInvalid, Status(400, "alias_invalid", param="alias")),
    (adapters.CanaryInvalid, Status(400, "canary_invalid", param="canary")),
    (adapters.VersionInUse, Status(409, "version_in_use", headers=NO_RETRY)),
    (adapters.NothingToRollBack, Status(409, "nothing_to_roll_back", headers=NO_RETRY)),
    (adapters.AdapterCorrupt, Status(503, "adapter_corrupt", "server_error", headers=NO_RETRY, message=_CORRUPT)),
    (ChatRefused, Status(400, "chat_refused", param="messages")),
)


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_FAILED = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS)


def api_error(error: BaseException) -> ApiError | None:
    """`error` as the client is told it; None when the table has no row for it, which makes it our bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, adapters.Unsettled):
        return StorageFailed()
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return StorageFull()
    if isinstance(error, OSError) and error.errno in _DISK_FAILED:
        return StorageFailed()
    for kind, row in TABLE:
        if isinstance(error, kind):
            return ApiError(
                row.status,
                row.message or str(error),
                type=row.type,
                param=row.param,
                code=row.code,
                headers={**row.headers, **_offset(error)},
                faults=_faults(error),
            )
    return None


def offset_headers(offset: int) -> dict[str, str]:
    """How far an upload has come; `range` is OCI's spelling of it, which has none for nothing."""
    return {"upload-offset": str(offset)} | ({"range": f"0-{offset - 1}"} if offset else {})


def internal() -> ApiError:
    """What the client is told about our bug: nothing but where to look."""
    return ApiError(
        500,
        "The server failed on this request; its log has the reason under the request's x-request-id.",
        type="server_error",
        code="internal_error",
    )


def _offset(error: BaseException) -> dict[str, str]:
    """Where an upload is to go on, for errors that are about just that."""
    if isinstance(error, adapters.WrongOffset | adapters.UploadIncomplete):
        return offset_headers(error.offset)
    return {}


def _faults(error: BaseException) -> list[dict[str, str]] | None:
    if not isinstance(error, adapters.InvalidAdapter):
        return None
    return [{"where": fault.where, "problem": fault.problem, "fix": fault.fix} for fault in error.faults]
