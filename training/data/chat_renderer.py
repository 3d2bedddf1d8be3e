"""Renders chats with any chat template, and finds where each answer begins and ends by rendering turn by turn.

Owns that search and the check that the turns agree with the whole text. Knows no token ids.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jinja2.exceptions import TemplateError

from loader.chat import ChatLayout
from training.data.rows import Turns

REWRITES = (
    "the chat template writes earlier turns otherwise once others follow, so what the model would have been asked "
    "differs from what is trained. Split the chat so that each line ends with the answer to learn, and set "
    "data.loss_on: completion."
)
CHANGES_PROMPT = (
    "the chat template changes the prompt once the answer follows, so training and serving would see different tokens. "
    "Use a template whose text only grows."
)


class TemplateRefused(Exception):
    """The template refuses an example, or renders it inconsistently. The text says the fix."""


@dataclass(frozen=True, slots=True)
class ChatText:
    """A rendered chat, with seams (loader/chat.py). `answers` follow `prompt`, each up to its end of turn.

    `ended[i]`: answer i ends with a token of its own. `earlier` are the spans in `prompt` of the answers in it.
    """

    prompt: str
    answers: tuple[str, ...]
    ended: tuple[bool, ...]
    earlier: tuple[tuple[int, int], ...] = ()


class ChatRenderer:
    """Renders chats with one layout. `ends` are the special tokens that may end a turn, as text, longest first."""

    def __init__(self, layout: ChatLayout, ends: Iterable[str]) -> None:
        self._layout = layout
        self._ends = tuple(ends)

    def render(self, prompt: Turns, answers: Sequence[str], *, learn_earlier: bool) -> ChatText:
        """The text of a prompt and of each answer after it. Raises TemplateRefused.

        With `learn_earlier`, also the spans of the counted answers within the prompt.
        """
        turns = [{"role": turn.role, "content": self._layout.guard(turn.content)} for turn in prompt]
        prompt_text = self._render(turns, generation=True)
        answer_texts = [self._after(prompt_text, turns, self._layout.guard_answer(answer), CHANGES_PROMPT) for answer in answers]
        ends = [self.end_of_turn(text) for text in answer_texts]
        spans = [
            self._span(prompt_text, turns, place)
            for place, turn in enumerate(prompt)
            if learn_earlier and turn.role == "assistant" and turn.counts
        ]
        return ChatText(
            prompt_text,
            tuple(text[: end or len(text)] for text, end in zip(answer_texts, ends, strict=True)),
            tuple(end is not None for end in ends),
            tuple(spans),
        )

    def end_of_turn(self, text: str) -> int | None:
        """Where the first of the special tokens at the end of `text` ends; None where there is none.

        Some templates end turns with two of them, or with a line break after one. The model stops at the first.
        """
        found, rest = None, text.rstrip()
        while end := next((end for end in self._ends if rest.endswith(end)), None):
            found = len(rest)
            rest = rest[: -len(end)].rstrip()
        return found

    def _span(self, prompt_text: str, turns: Sequence[dict[str, str]], place: int) -> tuple[int, int]:
        """The span of the earlier answer `turns[place]` in `prompt_text`, its end of turn included."""
        before = self._render(turns[:place], generation=True)
        text = self._after(before, turns[:place], turns[place]["content"], REWRITES)
        text = text[: self.end_of_turn(text) or len(text)]
        if not prompt_text.startswith(before + text):
            raise TemplateRefused(REWRITES)
        return len(before), len(before) + len(text)

    def _after(self, prompt_text: str, turns: Sequence[dict[str, str]], answer: str, fault: str) -> str:
        """What the template appends to `prompt_text` for `answer`. Raises TemplateRefused with `fault`."""
        whole = self._render([*turns, {"role": "assistant", "content": answer}], generation=False)
        if not whole.startswith(prompt_text):
            raise TemplateRefused(fault)
        return whole[len(prompt_text) :]

    def _render(self, turns: Sequence[dict[str, str]], *, generation: bool) -> str:
        try:
            return self._layout.render(turns, generation=generation)
        except TemplateError as error:
            raise TemplateRefused(
                f"the base's chat template refuses it: {error}. Most take an optional system message, then user and "
                "assistant in turn."
            ) from None
