"""Chats with functions for templates that know of none: a system message describes them, and calls are text.

Owns these words. Knows neither tokens nor templates.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from server.ports import Message
from server.tools.markup import Function, Markup, dumps


def described(
    messages: Sequence[Message],
    functions: Sequence[Function],
    markup: Markup,
    role: Literal["system", "user"] = "system",
) -> list[Message]:
    """The same chat in messages of text alone. The functions are described in its first message of `role`.

    Results that follow each other are one turn of the user's.
    """
    turns: list[Message] = []
    for answers, group in groupby(messages, lambda message: message.role == "tool"):
        if answers:
            results = "\n".join(f"<tool_response>\n{message.content}\n</tool_response>" for message in group)
            turns.append(Message("user", results))
        else:
            turns += [_as_text(message, markup) for message in group]
    return _introduced(turns, _description(functions, markup), role) if functions else turns


def _as_text(message: Message, markup: Markup) -> Message:
    calls = [(call.name, call.arguments) for call in message.calls]
    written = [markup.written(calls)] if calls else []
    return Message(message.role, "\n".join(filter(None, (message.content, *written))))


def _introduced(turns: list[Message], description: str, role: Literal["system", "user"]) -> list[Message]:
    first = turns[0]
    if first.role in ("system", "developer"):
        return [Message(first.role, f"{first.content}\n\n{description}"), *turns[1:]]
    if role == "user" and first.role == "user":
        return [Message("user", f"{description}\n\n{first.content}"), *turns[1:]]
    return [Message(role, description), *turns]


def _description(functions: Sequence[Function], markup: Markup) -> str:
    listed = "\n".join(dumps(function.described) for function in functions)
    example = markup.written([("the function's name", {"a parameter": "its value"})])
    return (
        "You can call functions. Each line between <tools> and </tools> describes one of them, its parameters as a "
        f"JSON Schema:\n<tools>\n{listed}\n</tools>\nTo call one, answer in this form:\n{example}\n"
        "The result comes between <tool_response> and </tool_response>. If no function helps, answer in words."
    )
