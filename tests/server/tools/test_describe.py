"""Chats with functions as messages of text, for templates that know of none."""

import json

from server.ports import Message
from server.tools.describe import described
from server.tools.markup import HERMES, MARKUPS, Call, Function

FUNCTION = Function("now", "The time.", None, "x")
CHAT = [
    Message("user", "When?"),
    Message("assistant", "I look.", (Call("1", "now", {}), Call("2", "now", {"z": "UTC"}))),
    Message("tool", "12:00", answers="1", name="now"),
    Message("tool", "11:00", answers="2", name="now"),
    Message("assistant", "Noon."),
]


def test_without_functions_a_chat_is_what_it_was() -> None:
    plain = [Message("system", "s"), Message("user", "u"), Message("assistant", ""), Message("user", "")]
    assert described(plain, (), HERMES) == plain


def test_calls_and_results_become_text() -> None:
    calls = HERMES.written([("now", {}), ("now", {"z": "UTC"})])
    assert described(CHAT, (), HERMES) == [
        CHAT[0],
        Message("assistant", f"I look.\n{calls}"),
        Message("user", "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n11:00\n</tool_response>"),
        CHAT[4],
    ]


def test_functions_are_described_first() -> None:
    first, *rest = described(CHAT, (FUNCTION,), MARKUPS["smollm2"])
    assert first.role == "system" and rest == described(CHAT, (), MARKUPS["smollm2"])
    lines = first.content.splitlines()
    assert json.loads(lines[lines.index("<tools>") + 1]) == FUNCTION.described
    assert "<tool_call>[{" in first.content and "}]</tool_call>" in first.content, "an example in the base's markup"


def test_the_description_goes_with_what_is_there() -> None:
    for role in ("system", "developer"):
        first, *_ = described([Message(role, "Be kind."), *CHAT], (FUNCTION,), HERMES)
        assert first.role == role and first.content.startswith("Be kind.\n\nYou can call")
    first, second, *_ = described(CHAT, (FUNCTION,), HERMES, "user")
    assert first.role == "user" and first.content.endswith("\n\nWhen?") and second.role == "assistant"
    first, second, *_ = described(CHAT[1:], (FUNCTION,), HERMES, "user")
    assert (first.role, second.role) == ("user", "assistant")
