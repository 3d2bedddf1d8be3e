"""OpenAI's `chat.completion` and `chat.completion.chunk` objects, with the calls that an answer makes.

Owns how they are spelled, and the reading of each choice as it comes. Knows no routes and no grammars.
"""

import secrets
import string
import time
from collections.abc import Sequence

from engine.sequence import FinishReason, Output
from server.answer import Chunk
from server.chat_body import ChatBody
from server.logprobs import chat_logprobs
from server.ports import Tokenizer
from server.structure import CallForm
from server.tools.markup import Markup
from server.tools.parser import CallParser, CallPiece, Piece


class ChatLayout:
    """`form` is what an answer that may call functions keeps to."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        body: ChatBody,
        prompt: Sequence[int],
        id: str,
        model: str,
        form: CallForm | None = None,
    ) -> None:
        self._tokenizer, self._body, self._prompt, self._form = tokenizer, body, prompt, form
        self._frame = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}
        self._told_prompt = not body.return_token_ids
        self._read: dict[int, _Reading] = {}

    def opening(self, index: int) -> list[Chunk]:
        return [_choice(index, {"role": "assistant", "content": ""})]

    def increment(self, index: int, output: Output) -> list[Chunk]:
        reading = self._read.setdefault(index, _Reading(self._form))
        piece = reading.add(output)
        delta = ({"content": piece.text} if piece.text else {}) | reading.calls(piece.calls, numbered=True)
        choices = []
        if delta or output.logprobs or (self._body.return_token_ids and output.token_ids):
            choices.append(_choice(index, delta or {"content": ""}) | self._extras(output))
        if output.finish_reason is not None:
            choices.append(_choice(index, {}, reading.finish_reason) | {"stop_reason": output.stop_reason})
        return choices

    def whole(self, index: int, output: Output) -> Chunk:
        reading = _Reading(self._form)
        piece = reading.add(output)
        message = {"role": "assistant", "content": piece.text or (None if piece.calls else ""), "refusal": None}
        message |= reading.calls(piece.calls, numbered=False)
        choice = {"index": index, "message": message, "finish_reason": reading.finish_reason}
        return choice | {"stop_reason": output.stop_reason} | self._extras(output)

    def frame(self, choices: list[Chunk], streamed: bool) -> Chunk:
        kind = "chat.completion.chunk" if streamed else "chat.completion"
        frame = self._frame | {"object": kind, "choices": choices}
        if not self._told_prompt:
            self._told_prompt = True
            frame["prompt_token_ids"] = list(self._prompt)
        return frame

    def _extras(self, output: Output) -> Chunk:
        extras: Chunk = {"logprobs": chat_logprobs(self._tokenizer, output.logprobs) if self._body.logprobs else None}
        if self._body.return_token_ids:
            extras["token_ids"] = list(output.token_ids)
        return extras


class _Reading:
    """One choice's answer as it comes; all of it is text where nothing may be called."""

    def __init__(self, form: CallForm | None) -> None:
        self._markup = None if form is None else form.markup
        free = form is not None and not form.forced and form.text is None
        self._parser = None if form is None else CallParser(form.markup, free, form.elements)
        self._ended: FinishReason | None = None

    def add(self, output: Output) -> Piece:
        self._ended = output.finish_reason
        if self._parser is None:
            return Piece(output.text)
        piece = self._parser.push(output.text)
        if self._ended is None:
            return piece
        return Piece(piece.text + self._parser.finish().text, piece.calls)

    @property
    def finish_reason(self) -> str | None:
        """`tool_calls` where the last call is whole; what cuts it off says so itself."""
        parser = self._parser
        called = parser is not None and parser.num_calls > 0 and not parser.within
        return "tool_calls" if called and self._ended is FinishReason.STOP else self._ended

    def calls(self, pieces: Sequence[CallPiece], numbered: bool) -> Chunk:
        return {"tool_calls": [self._call(piece, numbered) for piece in pieces]} if pieces else {}

    def _call(self, piece: CallPiece, numbered: bool) -> Chunk:
        called: Chunk = {"index": piece.index} if numbered else {}
        if piece.name is None:
            return called | {"function": {"arguments": piece.arguments}}
        assert self._markup is not None
        function = {"name": piece.name, "arguments": piece.arguments}
        return called | {"id": _new_id(self._markup), "type": "function", "function": function}


def _new_id(markup: Markup) -> str:
    if markup.short_ids:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"


def _choice(index: int, delta: Chunk, finish_reason: str | None = None) -> Chunk:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
