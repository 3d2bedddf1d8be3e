"""The uploads in pieces of one chain: what the server ought to have of each, and what is sent to it next.

Owns the model that an answer is held against, and the turns that pieces and ends take: right and wrong offsets, right
and wrong digests. Knows a case's operation and its parameters, and nothing of how chains are made.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schemathesis import Case
from schemathesis.core.transport import Response

from tests.support.server_rig import adapter_weights

BEGIN = "POST /v1/adapters/uploads"
UPLOAD = "/v1/adapters/uploads/{id}"
PIECE, END, SHOW, CANCEL = (f"{method} {UPLOAD}" for method in ("PATCH", "PUT", "GET", "DELETE"))

Piece = tuple[int, bytes]
_PIECES: tuple[Callable[["_Upload"], Piece], ...] = (
    lambda upload: (upload.there, upload.rest),
    lambda upload: (upload.there + 1, upload.rest[1:]),  # beyond its end
    lambda upload: (upload.there, upload.rest + b"more"),
    lambda upload: (upload.there, upload.rest[: len(upload.rest) // 2]),
    lambda upload: (0, upload.content),  # once something is there, from the beginning again
    lambda upload: (upload.there, upload.rest),
)


@dataclass(slots=True)
class _Upload:
    content: bytes
    there: int = 0
    over: bool = False

    @property
    def rest(self) -> bytes:
        return self.content[self.there :]

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"


class Pieces:
    """One chain's. `aim` at each request that the description allows, `judge` every answer."""

    def __init__(self, seen: Counter[tuple[str, int]]) -> None:
        """What was judged is counted in `seen`."""
        self._seen = seen
        self.begun: list[str] = []
        """Every upload that has begun, by id."""
        self._known: dict[str, _Upload] = {}
        self._pieces = itertools.cycle(_PIECES)
        self._seeds = itertools.cycle((1, 2, 1))  # the third is a content that is there
        self._sent: Piece | str | None = None

    def aim(self, case: Case[Any]) -> None:
        """Give a piece or an end of an upload of ours what it is due."""
        upload = self._of(case)
        if upload is None:
            return
        if case.operation.label == PIECE:
            self._sent = offset, case.body = next(self._pieces)(upload)
            case.headers.pop("Content-Range", None)
            case.headers["Upload-Offset"] = str(offset)
        elif case.operation.label == END:
            wrong = len(str(case.query["digest"])) % 2  # as drawn, so that a chain made again is the same
            self._sent = case.query["digest"] = f"sha256:{0:064x}" if wrong else upload.digest

    def judge(self, response: Response, case: Case[Any]) -> None:
        """Raises AssertionError when the answer is not the model's."""
        sent, self._sent = self._sent, None
        label, status = case.operation.label, response.status_code
        if label == BEGIN and status == 201:
            id = response.json()["id"]
            self.begun.append(id)
            self._known[id] = _Upload(adapter_weights(next(self._seeds)))
        upload = self._of(case)
        if upload is None:
            return
        if isinstance(sent, tuple):
            self._judge_piece(upload, status, *sent)
            if status in (202, 416):
                (offset,) = response.headers["upload-offset"]
                assert int(offset) == upload.there, f"{upload.there} bytes are there, and not {offset}"
        elif isinstance(sent, str):
            self._judge_end(upload, status, sent)
        elif label == SHOW:
            assert status == 200 and response.json()["offset"] == upload.there, f"{upload.there} bytes are there"
        elif status < 300 and label in (PIECE, END, CANCEL):
            del self._known[str(case.path_parameters["id"])]  # gone, or with bytes that nobody aimed

    def _of(self, case: Case[Any]) -> _Upload | None:
        return self._known.get(str(case.path_parameters.get("id")))

    def _judge_piece(self, upload: _Upload, status: int, offset: int, body: bytes) -> None:
        if upload.over:
            self._expect("a piece for what is over", status, 409)
        elif offset != upload.there:
            self._expect("a piece that does not follow", status, 416)
        elif len(body) > len(upload.rest):
            self._expect("a piece that is too long", status, 413)
        else:
            self._expect("a piece that was due", status, 202)
            upload.there += len(body)

    def _judge_end(self, upload: _Upload, status: int, digest: str) -> None:
        if upload.over:
            self._expect("an end after the end", status, 409)
        elif upload.rest:
            self._expect("an end before all is there", status, 409)
        elif digest == upload.digest:
            self._expect("an end", status, 200, 201)
            upload.over = True
        else:
            self._expect("an end with another digest", status, 400)
            upload.over, upload.there = True, 0  # its bytes go

    def _expect(self, what: str, status: int, *expected: int) -> None:
        assert status in expected, f"{what} was answered with {status}"
        self._seen[what, status] += 1
