"""Tokenized data as the trainers take it: examples, preference pairs and prompts, each split with its figures.

Owns that frozen data. Knows no file format, no tokenizer and no torch.
"""

from dataclasses import dataclass

from training.config import Format
from training.report import DataUsed


@dataclass(frozen=True, slots=True)
class Example:
    """One example for supervised fine-tuning, at most `max_tokens` long.

    `counted[i]`: token i counts in the loss, predicted from the tokens before it. `answer_at` is where the last answer
    begins in `ids`. `answer` is that answer's text, as the data has it, and None where there is no answer to give
    (plain text) or nothing of it is left after the cut.
    """

    ids: tuple[int, ...]
    counted: tuple[bool, ...]
    answer_at: int
    answer: str | None

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What the server would compute for the same prompt; empty for plain text."""
        return self.ids[: self.answer_at]

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a preferred answer and a worse one, for dpo and reward. The answers end with the end of turn."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Of the two sequences that are trained on: the prompt is in both."""
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that grpo and rloo complete. `text` is what `ids` were made of, the chat template applied."""

    ids: tuple[int, ...]
    text: str

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of its longest sequence; the answer to come is not counted."""
        return len(self.ids)


AnyExample = Example | Pair | Prompt


@dataclass(frozen=True, slots=True)
class Split:
    """One side of the data, in the file's order; all examples are of one kind."""

    examples: tuple[AnyExample, ...]
    used: DataUsed


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a run learns from and is measured on. sft has Examples, dpo and reward Pairs, grpo and rloo Prompts.

    `heldout` has no examples when nothing is held out. `notes` are what a person should know and may accept.
    """

    train: Split
    heldout: Split
    format: Format
    notes: tuple[str, ...] = ()
