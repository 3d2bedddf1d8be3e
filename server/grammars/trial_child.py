"""The process that tries forms: `python -m server.grammars.trial_child`, a line of JSON in, a line of JSON out.

Owns its own limits. Reads each form with a vocabulary of bytes and follows it for some tokens; what takes too long, too
much memory or too deep a stack ends this process, and not the server.
"""

import json
import random
import resource
import signal
import sys
import threading
from contextlib import suppress

from llguidance import LLTokenizer, TokenizerWrapper

from engine.errors import ConstraintFailed
from server.grammars.matcher import Followed, matcher_of, spelled

MEMORY = 512 << 20
"""Bytes of address space."""
SECONDS = 1.0
"""Of the processor, for one form."""
STACK_BYTES = 16 << 20
"""A quarter of what the server's own compilation has."""
STEPS = 32
END = 256


class _Bytes:
    """What llguidance asks of a tokenizer."""

    eos_token_id, bos_token_id = END, None
    special_token_ids = (END,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


def _serve() -> None:
    vocabulary = LLTokenizer(TokenizerWrapper(_Bytes()))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # nobody handles its signal, which ends the process
        kind, content = json.loads(line)
        sys.stdout.write(json.dumps(_tried(vocabulary, kind, content)) + "\n")
        sys.stdout.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)


def _tried(vocabulary: LLTokenizer, kind: str, content: str | list[str]) -> tuple[str, str, int | None]:
    """The form as the library's grammar, or "", what is wrong with it, and with which of a grammar's schemas."""
    try:
        grammar = spelled(kind, content)
        matcher = matcher_of(vocabulary, grammar)
    except (ValueError, ConstraintFailed) as error:
        for place, schema in enumerate(content[1:] if kind == "calls" else ()):
            if fault := _tried(vocabulary, "json", schema)[1]:
                return "", fault, place
        return "", str(error), None
    with suppress(ConstraintFailed):  # along one of many ways: an answer that takes it will be told
        _follow(Followed(matcher, (END,)))
    return grammar, "", None


def _follow(answer: Followed) -> None:
    draw = random.Random(0)
    for _ in range(STEPS):
        bits = int.from_bytes(answer.allowed(), "little")
        tokens = [token for token in range(END) if bits >> token & 1]
        if not tokens:
            return
        answer.accept(draw.choice(tokens))


if __name__ == "__main__":
    main()
