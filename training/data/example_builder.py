"""From checked rows to tokenized examples, pairs and prompts.

Owns what is cut, what counts in the loss and what leaves nothing to learn, for each objective. Knows no files: its
faults name no line.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from training.config import Format, TrainConfig
from training.data.encode import Encoded, Encoder
from training.data.examples import AnyExample, Example, Pair, Prompt
from training.data.chat_renderer import ChatText, TemplateRefused
from training.data.rows import Row
from training.errors import ConfigInvalid

BATCH = 2048
"""Rows that are tokenized at once: enough to keep all cores busy, few enough that their offsets fit in memory."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The result of one row: an example, or a fault. `cut`: it was longer than `max_tokens`."""

    example: AnyExample | None = None
    cut: bool = False
    fault: str = ""


class ExampleBuilder:
    """Builds a run's examples. Raises ConfigInvalid where the base does not support the format at all."""

    def __init__(self, config: TrainConfig, format: Format, encoder: Encoder) -> None:
        self._limit = config.data.max_tokens
        self._objective = config.objective
        self._format = format
        self._encoder = encoder
        loss = config.data.loss_on
        self._learn_all = loss == "all"
        self._learn_earlier = loss in ("auto", "assistant") and format == "messages" and config.objective == "sft"
        self._endings: Counter[int | None] = Counter()
        if encoder.eos is None:
            fault = "the tokenizer names no EOS token, so no answer would ever end. Set eos_token in its config."
            raise ConfigInvalid("The base", [fault])

    def build(self, rows: Sequence[Row]) -> list[BuildResult]:
        """One result per row, in order."""
        starts = range(0, len(rows), BATCH)
        return [result for start in starts for result in self._build_batch(rows[start : start + BATCH])]

    def notes(self) -> tuple[str, ...]:
        """Notes on how the base's chat template ends turns, if that is unusual. Call it after `build`."""
        name, eos = self._encoder.token_name, self._encoder.eos
        return tuple(
            f"The chat template ends turns with {name(end)}, which is not the tokenizer's EOS, {name(eos)}: the base's "
            "generation_config.json must name it, or answers go on."
            if end is not None
            else f"The chat template gives turns no end of their own; {name(eos)} is put behind the last answer."
            for end in self._endings
            if end != eos
        )

    def _build_batch(self, rows: Sequence[Row]) -> Iterator[BuildResult]:
        encoded = self._encode(rows)
        build_one = self._builder_method()
        for row, one in zip(rows, encoded, strict=True):
            if isinstance(one, str):
                yield BuildResult(fault=one)
            elif isinstance(row.prompt, str) and self._encoder.doubles_bos(one.prompt):
                yield BuildResult(fault="it begins with the token that the tokenizer adds by itself. Remove it from the text.")
            else:
                yield build_one(row, one)

    def _encode(self, rows: Sequence[Row]) -> list[Encoded | str]:
        """The tokens of each row, or its fault."""
        if self._format == "text":
            return [Encoded(ids, ()) for ids in self._encoder.encode_texts([row.answers[0] for row in rows])]
        if self._objective in ("grpo", "rloo"):
            rows = [Row(row.prompt, ()) for row in rows]
        results: list[Encoded | str] = [""] * len(rows)
        plain = [place for place, row in enumerate(rows) if isinstance(row.prompt, str)]
        texts = [str(rows[place].prompt) for place in plain]
        for place, one in zip(plain, self._encoder.encode_completions(texts, [rows[place].answers for place in plain]), strict=True):
            results[place] = one
        chats: list[tuple[int, ChatText]] = []
        for place, row in enumerate(rows):
            if isinstance(row.prompt, str):
                continue
            try:
                chats.append((place, self._render(row)))
            except TemplateRefused as error:
                results[place] = str(error)
        for (place, chat), one in zip(chats, self._encoder.encode_chats([chat for _, chat in chats]), strict=True):
            results[place] = one
            self._endings.update(ids[-1] if own else None for ids, own in zip(one.answers, chat.ended, strict=True))
        return results

    def _render(self, row: Row) -> ChatText:
        if not self._encoder.layout.exists:
            fault = (
                "it has no chat template, so it has no chats. Write prompt and completion, or take an instruct base."
            )
            raise ConfigInvalid("The base", [fault])
        assert not isinstance(row.prompt, str)
        return self._encoder.renderer.render(row.prompt, row.answers, learn_earlier=self._learn_earlier)

    def _builder_method(self) -> Callable[[Row, Encoded], BuildResult]:
        if self._objective in ("dpo", "reward"):
            return self._pair
        if self._objective in ("grpo", "rloo"):
            return self._prompt
        return self._text if self._format == "text" else self._example

    def _text(self, row: Row, encoded: Encoded) -> BuildResult:
        ids = encoded.prompt[: self._limit]
        if len(ids) < 2:
            return BuildResult(fault="it is a single token, so there is nothing to predict. Remove the line.")
        return BuildResult(Example(ids, (True,) * len(ids), 0, None), cut=len(encoded.prompt) > self._limit)

    def _example(self, row: Row, encoded: Encoded) -> BuildResult:
        [answer] = encoded.answers
        earlier = encoded.earlier or (False,) * len(encoded.prompt)
        counted = (*earlier, *(row.counts,) * len(answer))
        whole = (*encoded.prompt, *answer)
        if self._learn_all:
            counted = (True,) * len(whole)
        if not any(counted):
            return BuildResult(
                fault="every assistant message in it has weight 0: nothing counts in the loss. Remove the line."
            )
        ids, counted, at = whole[: self._limit], counted[: self._limit], len(encoded.prompt)
        if at >= self._limit and (self._learn_all or not any(counted)):
            return BuildResult(fault=self._too_long(at))
        if not any(counted[1:]):
            return BuildResult(fault=f"nothing that counts in the loss is within data.max_tokens: {self._limit}. Raise it.")
        left = row.answers[0] if at < len(ids) else None
        return BuildResult(Example(ids, counted, min(at, len(ids)), left), cut=len(whole) > self._limit)

    def _pair(self, row: Row, encoded: Encoded) -> BuildResult:
        room = self._limit - len(encoded.prompt)
        if room <= 0:
            return BuildResult(fault=self._too_long(len(encoded.prompt)))
        chosen, rejected = (answer[:room] for answer in encoded.answers)
        if chosen == rejected:
            return BuildResult(fault=f"chosen and rejected are the same within data.max_tokens: {self._limit}. Raise it.")
        cut = any(len(answer) > room for answer in encoded.answers)
        return BuildResult(Pair(encoded.prompt, chosen, rejected), cut=cut)

    def _prompt(self, row: Row, encoded: Encoded) -> BuildResult:
        if len(encoded.prompt) > self._limit:
            return BuildResult(fault=self._too_long(len(encoded.prompt)))
        return BuildResult(Prompt(encoded.prompt, self._prompt_text(row)))

    def _prompt_text(self, row: Row) -> str:
        if isinstance(row.prompt, str):
            return row.prompt
        return "".join(self._encoder.layout.pieces(self._render(Row(row.prompt, ())).prompt))

    def _too_long(self, tokens: int) -> str:
        return (
            f"its prompt alone is {tokens} tokens, and data.max_tokens is {self._limit}: no answer would be left. "
            "Raise data.max_tokens or shorten the prompt."
        )
