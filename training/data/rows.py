"""The formats of an example: their keys, roles and texts, and every fault that an object can have.

Owns the meaning of an object's keys. Knows neither files nor tokens.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.config import Format, Objective

ALLOWED: Mapping[Objective, tuple[Format, ...]] = {
    "sft": ("messages", "prompt_completion", "text"),
    "dpo": ("preference",),
    "reward": ("preference",),
    "grpo": ("prompts", "messages", "prompt_completion"),
    "rloo": ("prompts", "messages", "prompt_completion"),
}
"""The formats that an objective can learn from; grpo and rloo take the prompts alone."""

KEYS: Mapping[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "preference": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt",),
}
FOREIGN_KEYS = {
    "conversations": "That is ShareGPT's layout. Write `messages` with `role` and `content`.",
    "instruction": "That is Alpaca's layout. Write `prompt` and `completion`, or `messages`.",
    "response": "Call it `completion`.",
    "answer": "Call it `completion`.",
    "output": "Call it `completion`.",
    "question": "Call it `prompt`.",
    "tools": "Tool calls are not trained.",
}
"""Keys of other trainers' formats, and what to write instead."""
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `counts` is false for an assistant's turn with OpenAI's `weight: 0`, which is not learned."""

    role: str
    content: str
    counts: bool = True


Turns = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One example as text. `prompt` is plain text or turns, `answers` are the texts that may follow it.

    text has an empty prompt and one answer, prompts have no answers, preference has the chosen and the rejected one.
    `counts` is false when the last answer is not to be learned.
    """

    prompt: str | Turns
    answers: tuple[str, ...]
    counts: bool = True


def detect(value: Mapping[str, Any]) -> Format | None:
    """The format of an object, by its keys; None where no key is known."""
    if "messages" in value:
        return "messages"
    if "chosen" in value or "rejected" in value:
        return "preference"
    if "completion" in value:
        return "prompt_completion"
    if "prompt" in value:
        return "prompts"
    return "text" if "text" in value else None


def faults_of(value: Mapping[str, Any], format: Format, *, answered: bool) -> Iterator[str]:
    """Every fault of one object. `answered`: the last turn of `messages` must be the assistant's."""
    wrong_keys = list(_wrong_keys(value, KEYS[format]))
    if wrong_keys:
        yield from wrong_keys
    elif format == "messages":
        yield from _wrong_turns(
            value["messages"], "messages", ends=("assistant",) if answered else ("user", "assistant")
        )
    elif format == "text":
        yield from _wrong_text(value["text"], "text")
    elif format == "preference":
        yield from _wrong_preference(value)
    else:
        yield from _wrong_prompt(value["prompt"], turns=format == "prompts")
        if format == "prompt_completion":
            yield from _wrong_text(value["completion"], "completion")


def parse_row(value: Mapping[str, Any], format: Format) -> Row:
    """The example in an object for which `faults_of` finds none."""
    if format == "messages":
        turns = _turns(value["messages"])
        return (
            Row(turns[:-1], (turns[-1].content,), turns[-1].counts) if turns[-1].role == "assistant" else Row(turns, ())
        )
    if format == "text":
        return Row("", (value["text"],))
    prompt = value["prompt"] if isinstance(value["prompt"], str) else _turns(value["prompt"])
    if format == "preference":
        return Row(prompt, (_answer(value["chosen"]), _answer(value["rejected"])))
    return Row(prompt, (value["completion"],) if format == "prompt_completion" else ())


def _wrong_keys(value: Mapping[str, Any], keys: Sequence[str], where: str = "") -> Iterator[str]:
    for key in value:
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1)
            known = f"Did you mean {close[0]!r}?" if close else "Known here: " + ", ".join(keys) + "."
            yield f"{where}unknown key {key!r}. {FOREIGN_KEYS.get(key, known)}"
    for key in keys:
        if key not in value:
            yield f"{where}{key!r} is missing. Add it."


def _wrong_text(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{where} is no string. Write its text."
    elif not value.strip():
        yield f"{where} is empty. Fill it or remove the line."


def _wrong_prompt(value: Any, *, turns: bool) -> Iterator[str]:
    """A prompt is text, or turns up to the user's last where the format knows them."""
    if isinstance(value, list) and turns:
        yield from _wrong_turns(value, "prompt", ends=("user",))
    elif isinstance(value, list):
        yield 'prompt is a list. Use format `messages` for chats: {"messages": [...]}, the answer last.'
    else:
        yield from _wrong_text(value, "prompt")


def _wrong_preference(value: Mapping[str, Any]) -> Iterator[str]:
    """Texts all three, or turns with answers that are texts or one assistant's turn."""
    yield from _wrong_prompt(value["prompt"], turns=True)
    faults = []
    for name in ("chosen", "rejected"):
        answer = value[name]
        if isinstance(answer, list) and isinstance(value["prompt"], str):
            faults.append(f"{name} is a list while prompt is text. Write the prompt as a list of messages too.")
        elif isinstance(answer, list):
            faults += _wrong_turns(answer, name, ends=("assistant",), begins="assistant")
            if not faults and len(answer) > 1:
                faults.append(f"{name} has {len(answer)} messages. Move all but the answer into prompt.")
        else:
            faults += _wrong_text(answer, name)
    yield from faults
    if not faults and _answer(value["chosen"]) == _answer(value["rejected"]):
        yield "chosen and rejected are the same: nothing is preferred. Remove the line."


def _wrong_turns(value: Any, where: str, *, ends: Sequence[str], begins: str = "user") -> Iterator[str]:
    """What keeps `value` from being an optional system message, then user and assistant in turn."""
    if not isinstance(value, list):
        yield f"{where} is no list. Write a list of objects with role and content."
        return
    if not value:
        yield f"{where} is empty. Add messages or remove the line."
        return
    faults = [fault for place, turn in enumerate(value) for fault in _wrong_turn(turn, f"{where}[{place}]")]
    yield from faults
    if not faults:
        yield from _wrong_order([turn["role"] for turn in value], where, ends, begins)


def _wrong_turn(turn: Any, where: str) -> Iterator[str]:
    if not isinstance(turn, dict):
        yield f"{where} is no object. Write role and content."
        return
    role = turn.get("role")
    known = ("role", "content", *(("weight",) if role == "assistant" else ()))
    wrong = list(_wrong_keys({"weight": 1, **turn} if len(known) == 3 else turn, known, f"{where}: "))
    if wrong:
        yield from wrong
        return
    if role not in ROLES:
        yield f"{where}: the role {role!r} is not one of {', '.join(ROLES)}."
    if turn.get("weight", 1) not in (0, 1):
        yield f"{where}: the weight {turn['weight']!r} is neither 0 nor 1."
    yield from _wrong_content(turn["content"], f"{where}.content")


def _wrong_content(content: Any, where: str) -> Iterator[str]:
    """Text, or OpenAI's list of text parts."""
    if not isinstance(content, list):
        yield from _wrong_text(content, where)
    elif not all(
        isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text" for part in content
    ):
        yield f'{where} has parts that are not {{"type": "text", "text": ...}}. Only text is trained.'
    elif not all(isinstance(part["text"], str) for part in content):
        yield f"{where} has a part whose text is no string. Write its text."
    else:
        yield from _wrong_text(_text(content), where)


def _wrong_order(roles: Sequence[str], where: str, ends: Sequence[str], begins: str) -> Iterator[str]:
    first = 1 if roles[0] in ("system", "developer") and begins == "user" else 0
    spoken = roles[first:]
    if "assistant" in ends and len(ends) == 1 and "assistant" not in spoken:
        yield f"{where} has no assistant message: there is nothing to learn. Add the answer."
        return
    expected = ("user", "assistant") if begins == "user" else ("assistant", "user")
    for place, role in enumerate(spoken):
        if role != expected[place % 2]:
            yield (
                f"{where}[{place + first}]: {role} where {expected[place % 2]} was expected. "
                "A chat is an optional system message, then user and assistant in turn."
            )
            return
    if not spoken or spoken[-1] not in ends:
        yield f"{where} ends with {roles[-1]}, it must end with {' or '.join(ends)}."


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _turns(value: Sequence[Mapping[str, Any]]) -> Turns:
    return tuple(Message(turn["role"], _text(turn["content"]), turn.get("weight", 1) == 1) for turn in value)


def _answer(value: Any) -> str:
    return value if isinstance(value, str) else _text(value[-1]["content"])
