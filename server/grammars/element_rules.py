"""The part of a grammar of calls that has arguments as elements: `<function=f><parameter=p>…</parameter></function>`.

Owns these rules, in llguidance's syntax. Knows neither the rest of the grammar nor processes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from server.grammars.literal import literal
from server.tools.parameters import CLOSE, Parameter, Text

_CLOSE = literal(CLOSE)
_ONCE = rf"~/(?s:.*){_CLOSE}(?s:.+)/"
"""What ends an element ends it where it first comes."""


def element_rules(functions: Mapping[str, Sequence[Parameter]], gap: str) -> dict[str, str]:
    """The functions, whose parameters stand by their names, are the rules f0, f1, …; schema0, schema1, … are those of
    their parameters that are JSON, in order.

    Each element of a text ends with the first `</parameter>`; a line break before that is not the text's.
    """
    rules = {"JSON_END": f"/{gap}{_CLOSE}/"}
    texts: dict[Text, str] = {}
    schemas = count()
    for place, (name, parameters) in enumerate(functions.items()):
        written = [_element(parameter, texts, schemas) for parameter in parameters]
        rules[f"f{place}"] = " ".join((_tag(f"<function={name}>"), *written, _tag("</function>")))
    for text, name in texts.items():
        rules[f"{name}[lazy]"] = name.upper()
        rules[name.upper()] = _terminal(text)
    return rules


def _element(parameter: Parameter, texts: dict[Text, str], schemas: Iterator[int]) -> str:
    if parameter.text is None:
        value = f"@schema{next(schemas)} JSON_END"
    else:
        value = texts.setdefault(parameter.text, f"text{len(texts)}")
    element = f'{_tag(f"<parameter={parameter.name}>")} "\\n" {value}'
    return element if parameter.required else f"({element})?"


def _tag(text: str) -> str:
    """With space before it that is by itself: in one piece with the tag it would be taken for that of another tag."""
    return f"SPACE? {json.dumps(text)}"


def _terminal(text: Text) -> str:
    """A text with the end of its element, as a regular expression."""
    null = ["null\\n?"] if text.nullable else []
    if text.choices:
        choices = [literal(choice) + "\\n?" for choice in text.choices]
        return f"/({'|'.join(choices + null)}){_CLOSE}/"
    if text.min_length == 0 and text.max_length is None:
        return f"/(?s:.*){_CLOSE}/"
    return f"/({'|'.join(_of_length(text.min_length, text.max_length) + null)}){_CLOSE}/ & {_ONCE}"


def _of_length(least: int, most: int | None) -> list[str]:
    """Ways to write a text of so many characters: with a line break behind it, without one, and none at all."""
    ways = [f"(?s:.{{{least},{'' if most is None else most}}})\\n"]
    if most != 0:
        ways.append(f"(?s:.{{{max(least - 1, 0)},{'' if most is None else most - 1}}})[^\\n]")
    return ways if least else [*ways, ""]
