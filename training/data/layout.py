"""Where an answer begins and ends in a chat's text, for any chat template: by rendering it turn by turn.

Owns that search and the check that the turns agree with the whole. Works on text; knows no token ids.
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


class Unrenderable(Exception):
    """The template cannot lay out an example, or not consistently. The text says the fix."""


@dataclass(frozen=True, slots=True)
class ChatText:
    """A rendered chat, with seams (loader/chat.py). `answers` follow `prompt`, each up to its end of turn.

    `ended[i]`: answer i ends with a token of its own. `earlier` are the spans in `prompt` of the answers in it.
    """

    prompt: str
    answers: tuple[str, ...]
    ended: tuple[bool, ...]
    earlier: tuple[tuple[int, int], ...] = ()


class Renderer:
    """Renders chats through one layout. `ends` are the special tokens that may end a turn, as text."""

    def __init__(self, layout: ChatLayout, ends: Iterable[str]) -> None:
        self._layout = layout
        self._ends = tuple(ends)

    def chat(self, prompt: Turns, answers: Sequence[str], *, learn_earlier: bool) -> ChatText:
        """The text of a prompt and of each answer after it; raises Unrenderable.

        With `learn_earlier` the spans of those of the prompt's answers that count are found too.
        """
        turns = [{"role": turn.role, "content": self._layout.guard(turn.content)} for turn in prompt]
        asked = self._render(turns, generation=True)
        rest = [self._after(asked, turns, self._layout.guard_answer(answer), CHANGES_PROMPT) for answer in answers]
        cut = [self.end_of_turn(text) for text in rest]
        spans = [
            self._span(asked, turns, place)
            for place, turn in enumerate(prompt)
            if learn_earlier and turn.role == "assistant" and turn.counts
        ]
        return ChatText(
            asked,
            tuple(text[: end or len(text)] for text, end in zip(rest, cut, strict=True)),
            tuple(end is not None for end in cut),
            tuple(spans),
        )

    def end_of_turn(self, text: str) -> int | None:
        """Where the first of the special tokens that close `text` ends; None where none closes it.

        Some templates close with two, or with a line break after the token: the model stops at the first.
        """
        found, rest = None, text.rstrip()
        while end := next((end for end in self._ends if rest.endswith(end)), None):
            found = len(rest)
            rest = rest[: -len(end)].rstrip()
        return found

    def _span(self, asked: str, turns: Sequence[dict[str, str]], place: int) -> tuple[int, int]:
        """Where the earlier answer `turns[place]` stands in the whole, its end of turn included."""
        before = self._render(turns[:place], generation=True)
        text = self._after(before, turns[:place], turns[place]["content"], REWRITES)
        text = text[: self.end_of_turn(text) or len(text)]
        if not asked.startswith(before + text):
            raise Unrenderable(REWRITES)
        return len(before), len(before) + len(text)

    def _after(self, asked: str, turns: Sequence[dict[str, str]], answer: str, fault: str) -> str:
        whole = self._render([*turns, {"role": "assistant", "content": answer}], generation=False)
        if not whole.startswith(asked):
            raise Unrenderable(fault)
        return whole[len(asked) :]

    def _render(self, turns: Sequence[dict[str, str]], *, generation: bool) -> str:
        try:
            return self._layout.render(turns, generation=generation)
        except TemplateError as error:
            raise Unrenderable(
                f"the base's chat template refuses it: {error}. Most take an optional system message, then user and "
                "assistant in turn."
            ) from None
