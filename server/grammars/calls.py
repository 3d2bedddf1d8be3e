"""The grammar of an answer that may call functions: text, then calls that name a function and fit its schema.

Owns the grammar's text, in llguidance's syntax. Knows the markup's description; knows no processes and no bodies.
"""

import json
from collections.abc import Mapping, Sequence

from server.grammars.element_rules import element_rules
from server.grammars.literal import literal
from server.structure import CallForm

_SPACE = r"[\x20\x0A\x0D\x09]"
_GAP = _SPACE + "{0,8}"
"""Between two parts of the markup."""


def call_grammar(form: CallForm, schemas: Sequence[str], by_token: bool) -> str:
    """`schemas` are those of the form's parts as JSON.

    The markup's special tokens are named by their ids or, unless `by_token`, spelled as text, for a vocabulary that
    lacks them.
    """
    lark = "\n".join(f"{name}: {body}" for name, body in _rules(form, form.tokens if by_token else {}).items())
    calls = json.dumps({"name": "calls", "lark_grammar": f"%llguidance {{}}\n{lark}"})
    named = [f'{{"name": "schema{place}", "json_schema": {schema}}}' for place, schema in enumerate(schemas)]
    return f'{{"grammars": [{", ".join((calls, *named))}]}}'


def _rules(form: CallForm, tokens: Mapping[str, int]) -> dict[str, str]:
    """Once an answer has begun to call, nothing but calls follows, so that no model answers its own."""
    markup = form.markup
    begin, end = _mark(markup.begin, tokens), _mark(markup.end, tokens)
    call = f"({' | '.join(f'f{place}' for place in range(len(form.functions)))})"
    return {
        "start": _start(form, begin),
        "head[lazy]": f"/(?s:.*){literal(markup.begin)}/",
        "TEXT": "/(?s:.+)/" if markup.begin else f"/{_SPACE}+|{_SPACE}*[^\\x20\\x0A\\x0D\\x09{{](?s:.*)/",
        "BEGIN": f"/{literal(markup.begin)}/",
        "NEXT": f"/{_GAP}{literal(markup.begin)}/",
        "END": f"/{_GAP}{literal(markup.end)}/",
        "SPACE": f"/{_SPACE}{{1,8}}/",
        "calls": _calls(form, begin, end),
        "call": call if markup.between or markup.elements else f"OPEN {call} CLOSE",
        "OPEN": f'/{_GAP}\\{{{_GAP}"name"{_GAP}:{_GAP}/',
        "CLOSE": f"/{_GAP}\\}}/",
        "LIST": f"/{_GAP}{literal(markup.bracket)}/",
        "COMMA": f"/{_GAP},/",
        "CLOSE_LIST": f"/{_GAP}\\]/",
        **(element_rules(form.elements, _GAP) if markup.elements else _json_rules(form, tokens)),
    }


def _json_rules(form: CallForm, tokens: Mapping[str, int]) -> dict[str, str]:
    """The functions f0, f1, …, each a name and its arguments as one object."""
    markup = form.markup
    between = _mark(markup.between, tokens) or "BETWEEN"
    rules = {
        f"f{place}": f"{_quoted(function.name, not markup.between)} {between} @schema{place}"
        for place, function in enumerate(form.functions)
    }
    rules["BETWEEN"] = f"/{literal(markup.between)}/" if markup.between else _before_arguments(markup.arguments)
    return rules


def _before_arguments(key: str) -> str:
    return f'/{_GAP},{_GAP}"{key}"{_GAP}:{_GAP}/'


def _start(form: CallForm, begin: str) -> str:
    first = begin or ("BEGIN" if form.markup.begin else "")
    if form.forced:
        return f"{first} calls"
    if form.text is not None:
        return f"@schema{len(form.parts) - 1} | {first} calls"
    if not form.markup.begin:
        return "TEXT? | calls"
    return f"TEXT? | (head{f' | TEXT? {begin}' if begin else ''}) calls"


def _calls(form: CallForm, begin: str, end: str) -> str:
    """What follows the first call's beginning."""
    closed = f" SPACE? {end}" if end else " END" if form.markup.end else ""
    one = "call" if form.markup.listed else f"call{closed}"
    again = "COMMA" if form.markup.listed else f"SPACE? {begin}" if begin else "NEXT"
    many = one if form.max_calls == 1 else f"{one} ({again} {one}){{0,{form.max_calls - 1}}}"
    if form.markup.listed:
        return f"{'LIST ' if form.markup.bracket else ''}{many} CLOSE_LIST{closed}"
    return many if form.max_calls == 1 else f"{many} SPACE?"


def _mark(text: str, tokens: Mapping[str, int]) -> str:
    """A special token by its id, or nothing for what is plain text."""
    return f"<[{tokens[text]}]>" if text in tokens else ""


def _quoted(name: str, in_json: bool) -> str:
    """A literal of the name, as JSON has it or bare."""
    return json.dumps(json.dumps(name) if in_json else name)
