"""What a run would learn from, before any weight is loaded: counts, lengths, steps, and one example as tokens.

Owns those figures and their text. Knows neither files nor trainers; imports no torch.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.text import Text

from training.config import TrainConfig
from training.data.encode import Tokenizer
from training.data.examples import AnyExample, Example, Pair, Prepared, Split

OPEN, CLOSE = "⟦", "⟧"
"""Brackets around counted tokens in plain text."""
COUNTED = "bold green"
CONTEXT = "dim"
"""rich's styles for counted tokens and for all others in a terminal."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The distribution of the examples' lengths in a split, in tokens."""

    least: int
    median: int
    p95: int
    most: int


@dataclass(frozen=True, slots=True)
class SplitFigures:
    """One split. `counted` is the number of tokens that count in the loss; for prompts to be completed it is 0."""

    path: str
    sha256: str
    examples: int
    tokens: int
    counted: int
    truncated: int
    lengths: Lengths | None


@dataclass(frozen=True, slots=True)
class TextRun:
    """A stretch of the example's text whose tokens all count in the loss, or none of them."""

    text: str
    counts: bool


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence of the example; a preference pair has two. `last` is its last token, as text."""

    name: str
    runs: tuple[TextRun, ...]
    last: str
    ends_turn: bool


@dataclass(frozen=True, slots=True)
class DryRun:
    """The whole result. `rows_per_epoch` counts examples, or with packing the rows they are packed into."""

    objective: str
    format: str
    max_tokens: int
    train: SplitFigures
    heldout: SplitFigures
    rows_per_epoch: int
    steps_per_epoch: int
    steps: int
    example: tuple[Part, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """Plain text; tokens that count stand in brackets."""
        example = [
            f"{part.name}\n" + "".join(f"{OPEN}{run.text}{CLOSE}" if run.counts else run.text for run in part.runs)
            for part in self.example
        ]
        legend = f"One example; what counts in the loss stands in {OPEN}{CLOSE}:"
        return "\n".join([*self._figures(), "", legend, *example, "", *self._ends()])

    def __rich__(self) -> Text:
        """For a terminal; tokens that count are coloured."""
        text = Text("\n".join([*self._figures(), "", ""]))
        text.append("One example; ").append("what counts in the loss", COUNTED).append(", ").append(
            "what does not", CONTEXT
        )
        for part in self.example:
            text.append(f"\n{part.name}\n", "bold")
            for run in part.runs:
                text.append(run.text, COUNTED if run.counts else CONTEXT)
        return text.append("\n\n" + "\n".join(self._ends()))

    def _figures(self) -> Iterator[str]:
        yield f"{self.objective} on {self.format}"
        yield from _lines("train", self.train, self.max_tokens)
        yield from _lines("held out", self.heldout, self.max_tokens)
        packed = "" if self.rows_per_epoch == self.train.examples else f" ({self.rows_per_epoch} packed rows)"
        yield f"{'steps':<10}{self.steps_per_epoch} an epoch{packed}, {self.steps} in all"
        for note in self.notes:
            yield f"{'note':<10}{note}"

    def _ends(self) -> Iterator[str]:
        for part in self.example:
            kind = "the end of turn" if part.ends_turn else "no end of turn"
            yield f"The last token of {part.name} is {part.last!r}, {kind}."


def describe(prepared: Prepared, config: TrainConfig, tokenizer: Tokenizer) -> DryRun:
    """The figures of prepared data, with the first training example that is shorter than the limit, else the first."""
    examples = prepared.train.examples
    rows = _rows(examples, config)
    per_epoch = steps_per_epoch(rows, config)
    limit = config.data.max_tokens
    shown = next((one for one in examples if one.tokens < limit), examples[0])
    return DryRun(
        objective=config.objective,
        format=prepared.format,
        max_tokens=limit,
        train=_figures(prepared.train),
        heldout=_figures(prepared.heldout),
        rows_per_epoch=rows,
        steps_per_epoch=per_epoch,
        steps=config.steps.max_steps or math.ceil(config.steps.epochs * per_epoch),
        example=tuple(_parts(shown, tokenizer)),
        notes=prepared.notes,
    )


def steps_per_epoch(rows: int, config: TrainConfig) -> int:
    """Optimizer steps in one epoch. With grpo and rloo a step takes whole prompts with all of their answers."""
    if config.objective in ("grpo", "rloo"):
        return rows // max(1, config.steps.batch // config.sampling.completions)
    return math.ceil(rows / config.steps.batch)


def _rows(examples: Sequence[AnyExample], config: TrainConfig) -> int:
    if config.objective == "sft" and config.data.packing:
        return packed_rows([example.tokens for example in examples], config.data.max_tokens)
    return len(examples)


def packed_rows(lengths: Sequence[int], room: int) -> int:
    """The number of rows of `room` tokens that best-fit-decreasing packing needs for examples of these lengths."""
    free: list[int] = []
    rows = 0
    for length in sorted(lengths, reverse=True):
        place = bisect_left(free, length)
        if place == len(free):
            rows += 1
            left = room - length
        else:
            left = free.pop(place) - length
        insort(free, left)
    return rows


def _figures(split: Split) -> SplitFigures:
    used = split.used
    lengths = sorted(example.tokens for example in split.examples)
    counted = sum(_counted(example) for example in split.examples)
    spread = Lengths(lengths[0], _quantile(lengths, 0.5), _quantile(lengths, 0.95), lengths[-1]) if lengths else None
    return SplitFigures(used.path, used.sha256, used.examples, used.tokens, counted, used.truncated, spread)


def _counted(example: AnyExample) -> int:
    if isinstance(example, Example):
        return sum(example.counted)
    return len(example.chosen_ids) + len(example.rejected_ids) if isinstance(example, Pair) else 0


def _quantile(ordered: Sequence[int], share: float) -> int:
    """The smallest of the sorted values that at least a `share` of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _lines(name: str, split: SplitFigures, limit: int) -> Iterator[str]:
    yield f"{name:<10}{split.path}"
    if split.lengths is None:
        yield f"{'':<10}no examples: nothing is measured"
        return
    yield f"{'':<10}{split.examples:,} examples, {split.tokens:,} tokens, {split.counted:,} of them count in the loss"
    spread = split.lengths
    yield f"{'':<10}tokens: min {spread.least}, median {spread.median}, p95 {spread.p95}, max {spread.most}"
    yield f"{'':<10}{split.truncated:,} cut at {limit} tokens"


def _parts(example: AnyExample, tokenizer: Tokenizer) -> Iterator[Part]:
    if isinstance(example, Example):
        yield _part("the example", example.ids, example.counted, tokenizer)
    elif isinstance(example, Pair):
        for name, answer in (("the chosen", example.chosen_ids), ("the rejected", example.rejected_ids)):
            prompt = example.prompt_ids
            counted = (False,) * len(prompt) + (True,) * len(answer)
            yield _part(name, prompt + answer, counted, tokenizer)
    else:
        yield _part("the prompt", example.ids, (False,) * len(example.ids), tokenizer)


def _part(name: str, ids: Sequence[int], counted: Sequence[bool], tokenizer: Tokenizer) -> Part:
    runs = tuple(
        TextRun(_text([id for id, _ in group], tokenizer), counts)
        for counts, group in groupby(zip(ids, counted, strict=True), key=lambda pair: pair[1])
    )
    last = tokenizer.added_tokens_decoder.get(ids[-1])
    return Part(name, runs, _text(ids[-1:], tokenizer), last is not None and bool(last.special))


def _text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
