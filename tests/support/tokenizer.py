"""A tokenizer of bytes with two added tokens, and a chat layout like ChatML. It needs no files."""

from collections.abc import Sequence

from llguidance import LLTokenizer, TokenizerWrapper

from server.errors import ChatRefused
from server.ports import Message
from server.tools.describe import described
from server.tools.markup import HERMES, Function, Markup

START, END = 256, 257


class ByteTokenizer:
    """Ids 0 to 255 are bytes; 256 begins a turn and 257 ends it. Its chats know of no functions."""

    vocab_size = 258

    def __init__(self, markup: Markup | None = HERMES) -> None:
        self.markup = markup

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def special_id(self, text: str) -> int | None:
        return {"<start>": START, "<end>": END}.get(text)

    def encode_chat(self, messages: Sequence[Message], functions: Sequence[Function] = ()) -> list[int]:
        messages = described(messages, functions, self.markup or HERMES)
        if messages[-1].role == "assistant":
            raise ChatRefused("The last message must not be the assistant's.")
        turns = [[START, *f"{turn.role}\n{turn.content}".encode(), END] for turn in messages]
        return [id for turn in turns for id in turn] + [START, *b"assistant\n"]

    def encode_answer(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(id) for id in ids).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        return {START: b"<start>", END: b"<end>"}.get(id, bytes([id % 256]))


class _Bytes:
    """What llguidance asks of a tokenizer."""

    eos_token_id, bos_token_id = END, None
    special_token_ids = (START, END)
    tokens = [*(bytes([id]) for id in range(256)), b"<start>", b"<end>"]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def byte_vocabulary() -> LLTokenizer:
    """The ByteTokenizer's, for grammars."""
    return LLTokenizer(TokenizerWrapper(_Bytes()))
