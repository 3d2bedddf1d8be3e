"""Log-probabilities in OpenAI's two layouts: completions' parallel lists, chat's list of objects.

Owns the spelling of single tokens and their places in the text. Knows the engine's TokenLogprob and
the tokenizer; knows no requests.
"""

import codecs
from collections.abc import Sequence
from typing import Any

from engine.sequence import TokenLogprob
from server.ports import Tokenizer

LOWEST = -9999.0  # what OpenAI sends where the probability is zero, for JSON has no infinity


class CompletionLogprobs:
    """One choice's `logprobs`, increment by increment; it remembers how far into the text the tokens have come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def skip(self, characters: int) -> None:
        """Move past text whose tokens are not reported."""
        self._offset += characters

    def prompt(self, text: str, ids: Sequence[int], reports: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """The echoed prompt: its tokens, and None for the first one's probability."""
        block = _empty_block()
        for place, (id, report) in enumerate(zip(ids, reports, strict=True)):
            shown = place > 0 or text.encode().startswith(self._tokenizer.token_bytes(id))
            self._add(block, id, report, advance=shown)
        self._offset = len(text)
        return block

    def generated(self, reports: Sequence[TokenLogprob]) -> dict[str, Any]:
        block = _empty_block()
        for report in reports:
            self._add(block, report.token_id, report)
        return block

    def _add(self, block: dict[str, Any], id: int, report: TokenLogprob | None, advance: bool = True) -> None:
        block["tokens"].append(spelled(self._tokenizer, id))
        block["token_logprobs"].append(None if report is None else _finite(report.logprob))
        block["top_logprobs"].append(None if report is None else self._top(report))
        block["text_offset"].append(self._offset)
        if advance:
            self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(id)))

    def _top(self, report: TokenLogprob) -> dict[str, float]:
        found: dict[str, float] = {}
        for id, logprob in (*report.top, (report.token_id, report.logprob)):
            found.setdefault(spelled(self._tokenizer, id), _finite(logprob))
        return found


def join_blocks(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {name: first[name] + second[name] for name in first}


def chat_logprobs(tokenizer: Tokenizer, reports: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            _chat_token(tokenizer, report.token_id, report.logprob)
            | {"top_logprobs": [_chat_token(tokenizer, id, logprob) for id, logprob in report.top]}
            for report in reports
        ],
        "refusal": None,
    }


def spelled(tokenizer: Tokenizer, id: int) -> str:
    """A token as text; one that is not whole characters as `bytes:\\xe2\\x80`, so that no two tokens read alike."""
    raw = tokenizer.token_bytes(id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _chat_token(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": spelled(tokenizer, id),
        "logprob": _finite(logprob),
        "bytes": list(tokenizer.token_bytes(id)),
    }


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def _empty_block() -> dict[str, Any]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
