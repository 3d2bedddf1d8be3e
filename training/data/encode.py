"""Tokenizes prompts and answers in batches: one BOS, one end of turn, and for a prompt the same ids as in the server.

Owns the use of the tokenizer. A prompt is encoded by itself, as in the server, and its answer after it. No token spans
the border between the two, since no model could generate it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from loader.chat import ChatLayout, FastTokenizer, continuation
from training.data.chat_renderer import ChatText, ChatRenderer

Ids = tuple[int, ...]


class Tokenizer(FastTokenizer, Protocol):
    """The part of transformers' PreTrainedTokenizerFast that preparing data uses."""

    @property
    def eos_token_id(self) -> Any: ...

    @property
    def bos_token_id(self) -> Any: ...

    @property
    def model_max_length(self) -> Any: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> Any: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of a prompt and of each answer. `earlier[i]`: token i of the prompt is part of an earlier answer."""

    prompt: Ids
    answers: tuple[Ids, ...]
    earlier: tuple[bool, ...] = ()


class Encoder:
    """Turns text into ids with one base's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.layout = ChatLayout(tokenizer)
        self.eos: int | None = tokenizer.eos_token_id
        self.bos: int | None = tokenizer.bos_token_id
        self._backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
        # Some tokenizer.json files pad or truncate on their own. Here the collator pads, and max_tokens truncates.
        self._backend.no_padding()
        self._backend.no_truncation()
        # Shared int objects, one per id instead of one per token, take a third of the memory.
        self._ints = tuple(range(self._backend.get_vocab_size(with_added_tokens=True)))
        self._has_prefix = self._adds_prefix()
        added = tokenizer.added_tokens_decoder
        ends = {token.content for id, token in added.items() if token.special or id == self.eos}
        self.renderer = ChatRenderer(self.layout, sorted(ends, key=len, reverse=True))

    def encode_completions(self, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[Encoded]:
        """Plain text: prompts as the completions API takes them, each answer ended by one EOS."""
        encoded = [self._ids(one) for one in self._backend.encode_batch_fast(list(prompts))]
        rest = iter(self._continuations([text for texts in answers for text in texts]))
        return [
            Encoded(prompt, tuple(self.with_eos(next(rest)) for _ in texts))
            for prompt, texts in zip(encoded, answers, strict=True)
        ]

    def encode_texts(self, texts: Sequence[str]) -> list[Ids]:
        """Plain texts that count as a whole, with the tokenizer's own beginning, each ended by one EOS."""
        return [self.with_eos(self._ids(one)) for one in self._backend.encode_batch_fast(list(texts))]

    def encode_chats(self, chats: Sequence[ChatText]) -> list[Encoded]:
        """Rendered chats: prompts as in the server, answers ended by the template's end of turn, or else EOS."""
        pieces = [self.layout.pieces(chat.prompt) for chat in chats]
        flat = [piece for several in pieces for piece in several]
        if any(chat.earlier for chat in chats):
            encoded = iter(self._backend.encode_batch(flat, add_special_tokens=False))
        else:
            encoded = iter(self._backend.encode_batch_fast(flat, add_special_tokens=False))
        parts = [self.layout.pieces(answer) for chat in chats for answer in chat.answers]
        answers = iter(self._continuations([piece for several in parts for piece in several]))
        counts = iter(map(len, parts))
        results = []
        for chat, several in zip(chats, pieces, strict=True):
            own = [next(encoded) for _ in several]
            texts = [tuple(id for _ in range(next(counts)) for id in next(answers)) for _ in chat.answers]
            results.append(
                Encoded(
                    tuple(id for one in own for id in self._ids(one)),
                    tuple(ids if ended else self.with_eos(ids) for ids, ended in zip(texts, chat.ended, strict=True)),
                    self._inside(chat, several, own) if chat.earlier else (),
                )
            )
        return results

    def with_eos(self, ids: Ids) -> Ids:
        """`ids` with one EOS at the end."""
        return ids if self.eos is None or ids[-1:] == (self.eos,) else (*ids, self.eos)

    def doubles_bos(self, ids: Ids) -> bool:
        """Whether the text itself spells the BOS that the tokenizer adds."""
        return self.bos is not None and ids[:2] == (self.bos, self.bos)

    def token_name(self, id: int | None) -> str:
        """A token as the vocabulary spells it."""
        return "nothing" if id is None else str(self._backend.id_to_token(id))

    def _ids(self, encoding: Encoding) -> Ids:
        return tuple(map(self._ints.__getitem__, encoding.ids))

    def _inside(self, chat: ChatText, pieces: Sequence[str], encodings: Sequence[Encoding]) -> tuple[bool, ...]:
        """Which tokens of the prompt lie wholly within an earlier answer; offsets count characters, seams included."""
        inside: list[bool] = []
        at = 0
        for piece, encoding in zip(pieces, encodings, strict=True):
            for start, end in encoding.offsets:
                inside.append(any(at + start >= first and at + end <= last for first, last in chat.earlier))
            at += len(piece) + len(self.layout.seam)
        return tuple(inside)

    def _continuations(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of texts that continue others: without BOS, and without the space that some tokenizers prepend."""
        if not self._has_prefix:
            return [self._ids(one) for one in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [tuple(continuation(self._plain, text)) for text in texts]

    def _adds_prefix(self) -> bool:
        """Whether the tokenizer prepends something to every text, as SentencePiece does with its dummy prefix."""
        return continuation(self._plain, "x") != self._plain("x")

    def _plain(self, text: str) -> Ids:
        return self._ids(self._backend.encode(text, add_special_tokens=False))
