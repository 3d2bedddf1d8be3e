"""The adapter form, part by part, as its bytes arrive.

Owns the rules of the form: which parts, once each, how large. Wraps python-multipart's parser; knows no
sockets and no files.
"""

import re
from typing import TYPE_CHECKING

from python_multipart.multipart import MultipartParser, parse_options_header

from adapters.evaluations import EVAL_BYTES
from server.errors import ApiError, BadRequest, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

CONFIG_BYTES = 1 << 20
FIELDS = "the fields `name` and optionally `alias`, the files `config` and `weights`, and optionally `eval`"

_ODD = re.compile(r"[^A-Za-z0-9._-]")
_TEXT_BYTES = 1024
_PICKLED = (
    "Only safetensors weights are taken, never pickles. Convert the file: "
    "safetensors.torch.save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors')."
)


class Form:
    """Feed it the body with `write`, and take the weights out with `take_weights` as they come."""

    def __init__(self, boundary: bytes, max_weights: int, flag: str) -> None:
        self._limits = {"name": _TEXT_BYTES, "alias": _TEXT_BYTES, "config": CONFIG_BYTES, "eval": EVAL_BYTES}
        self._limits["weights"] = max_weights
        self._flag = flag
        self._values: dict[str, bytearray] = {}
        self._sizes: dict[str, int] = {}
        self._part = ""
        self._header = b""
        self._header_value = b""
        self._disposition = b""
        self.ended = False
        self._parser = MultipartParser(boundary, self._callbacks())

    @property
    def seen(self) -> frozenset[str]:
        return frozenset(self._values)

    def write(self, chunk: bytes) -> None:
        """Raises python-multipart's FormParserError on a malformed form, and ApiError on one we do not take."""
        self._parser.write(chunk)

    def take_weights(self) -> bytes:
        """The weights' bytes that came since the last call."""
        held = self._values.get("weights")
        if not held:
            return b""
        taken = bytes(held)
        held.clear()
        return taken

    def value(self, field: str) -> bytes:
        return bytes(self._values[field])

    def text(self, field: str) -> str:
        try:
            return self.value(field).decode("utf-8")
        except UnicodeDecodeError:
            raise BadRequest(f"`{field}` is not UTF-8.", field) from None

    def _callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name_piece,
            "on_header_value": self._header_value_piece,
            "on_header_end": self._header_end,
            "on_headers_finished": self._named,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition = b""

    def _header_name_piece(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value_piece(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header = self._header_value = b""

    def _named(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"").decode("ascii", "replace")
        filename = options.get(b"filename", b"").decode("ascii", "replace")
        if field not in self._limits:
            named = _ODD.sub("", field)[:64] or "?"
            message = f"The form has a part `{named}`, which is not taken. It takes {FIELDS}."
            raise ApiError(422, message, param=named, code="form_invalid")
        if field in self._values:
            raise ApiError(422, f"The form has `{field}` twice. Send it once.", param=field, code="form_invalid")
        if field == "weights" and filename.lower().endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")):
            raise ApiError(415, _PICKLED, param="weights", code="unsupported_media")
        self._part = field
        self._values[field] = bytearray()
        self._sizes[field] = 0

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._sizes[self._part] += end - start
        if self._sizes[self._part] > self._limits[self._part]:
            if self._part == "weights":
                raise TooLarge(self._limits["weights"], self._flag)
            raise ApiError(413, f"`{self._part}` is too large.", param=self._part, code="body_too_large")
        self._values[self._part] += data[start:end]

    def _end(self) -> None:
        self.ended = True
