"""How models spell calls of functions in their answers: one frozen description a family, and which one a base has.

Owns these descriptions and what is written by them. Knows neither bodies nor tokens; `parser.py` reads answers by the
same descriptions, and `server/grammars/calls.py` holds models to them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

SPACE = " \n\r\t"
"""What may stand between two parts of a call."""
MAX_CALLS = 32
"""In one answer. A weak model that must call would otherwise go on for ever."""


@dataclass(frozen=True, slots=True)
class Function:
    """One that may be called. `field` is where the body says what its arguments are: a JSON Schema of an object.

    If `strict`, they keep to all of it, or it is refused.
    """

    name: str
    description: str | None
    parameters: Mapping[str, Any] | None
    field: str
    strict: bool = False

    @property
    def schema(self) -> Mapping[str, Any]:
        """What its arguments keep to: parameters that no schema names do not come unless it says so.

        JSON Schema would let them come, but no function takes an argument that it does not name.
        """
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        closed = {"additionalProperties": False} if _names_all(self.parameters) else {}
        return {"type": "object"} | dict(self.parameters) | closed

    @property
    def described(self) -> dict[str, Any]:
        """As chat templates take it."""
        function: dict[str, Any] = {"name": self.name, "description": self.description or ""}
        function["parameters"] = dict(self.parameters or {"type": "object", "properties": {}})
        return {"type": "function", "function": function}


def _names_all(schema: Mapping[str, Any]) -> bool:
    """Whether a schema names an object's properties, all that are needed among them, and says nothing of others."""
    named, needed = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, Mapping) or not isinstance(needed, list) or _OPENING & schema.keys():
        return False
    return all(isinstance(each, str) and each in named for each in needed)


_REFERENCES = {"$ref", "$dynamicRef", "$recursiveRef"}
_BRANCHES = {"allOf", "anyOf", "oneOf", "if", "then", "else", "dependentSchemas", "dependencies"}
_OTHERS = {"additionalProperties", "patternProperties", "unevaluatedProperties"}
_OPENING = frozenset(_REFERENCES | _BRANCHES | _OTHERS)
"""Keywords by which a schema may speak of properties elsewhere, whether these are kept to or not."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was made, in a conversation that goes on."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Markup:
    """Each call is `{"name": …, "<arguments>": {…}}`; or, with `between`, its name, this text and its arguments; or,
    with `elements`, `<function=…>` with a `<parameter=…>` for each argument, whose strings are text without quotes.

    It stands between `begin` and `end`. Without a `begin` an answer is a call if its first character is `{`. If
    `listed`, one `begin` and `end` stand around a JSON list of all calls, whose bracket may be the last character of
    `begin`. An answer holds at most `max_calls`. A base has this markup if its chat template has all of `signs` and
    none of `others`. With `short_ids`, a template takes ids of nine letters and digits only.
    """

    name: str
    begin: str
    end: str
    arguments: str = "arguments"
    between: str = ""
    elements: bool = False
    listed: bool = False
    max_calls: int = MAX_CALLS
    short_ids: bool = False
    signs: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts that may be special tokens."""
        return tuple(filter(None, (self.begin, self.between, self.end)))

    @property
    def bracket(self) -> str:
        """Where a list of calls begins, behind `begin`."""
        return "" if self.begin.endswith("[") else "["

    def written(self, calls: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
        """Names with their arguments as an answer that calls them."""
        if self.between:
            return "".join(f"{self.begin}{name}{self.between}{dumps(given)}{self.end}" for name, given in calls)
        if self.elements:
            return "\n".join(f"{self.begin}\n{_in_elements(name, given)}\n{self.end}" for name, given in calls)
        bodies = [f'{{"name": {dumps(name)}, "{self.arguments}": {dumps(given)}}}' for name, given in calls]
        if self.listed:
            return f"{self.begin}{self.bracket}{', '.join(bodies)}]{self.end}"
        return "\n".join(f"{self.begin}\n{body}\n{self.end}".strip("\n") for body in bodies)


def _in_elements(name: str, arguments: Mapping[str, Any]) -> str:
    values = ((key, value if isinstance(value, str) else dumps(value)) for key, value in arguments.items())
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
    return f"<function={name}>\n{parameters}</function>"


HERMES = Markup(
    "hermes",
    "<tool_call>",
    "</tool_call>",
    signs=("<tool_call>",),
    others=("<function=", "<arg_key>", "<tool_sep>"),
)
LLAMA3 = Markup("llama3_json", "", "", "parameters", max_calls=1, signs=("ipython", '"parameters"'))
MISTRAL = Markup(
    "mistral", "[TOOL_CALLS]", "", listed=True, short_ids=True, signs=("[TOOL_CALLS]",), others=("[ARGS]", "[CALL_ID]")
)
MISTRAL_ARGS = Markup(
    "mistral_args", "[TOOL_CALLS]", "", between="[ARGS]", signs=("[TOOL_CALLS]", "[ARGS]"), others=("[CALL_ID]",)
)
SMOLLM2 = Markup("smollm2", "<tool_call>", "</tool_call>", listed=True)

DESCRIBED = replace(HERMES, max_calls=1)
"""For a base whose template knows of no functions: most such bases, once they call, do nothing else."""

QWEN3_CODER = Markup(
    "qwen3_coder",
    "<tool_call>",
    "</tool_call>",
    elements=True,
    signs=("<tool_call>", "<function=", "<parameter="),
)
GRANITE = Markup("granite", "<|tool_call|>", "", listed=True, signs=("<|tool_call|>",), others=("<tool_call>",))
PHI4_MINI = Markup("phi4_mini_json", "functools[", "", listed=True, signs=("functools[",))

MARKUPS: Mapping[str, Markup] = {
    markup.name: markup for markup in (HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, SMOLLM2, QWEN3_CODER, GRANITE, PHI4_MINI)
}
"""By the names that vLLM's `--tool-call-parser` has for them, as far as it has."""


def mentions_tools(template: str) -> bool:
    """Whether a chat template seems to do something with `tools`."""
    return _TOOLS.search(template) is not None


def markup_of(template: str) -> Markup | None:
    """The markup that a chat template which lays out functions asks for; None for one that is not known."""
    return next((markup for markup in MARKUPS.values() if _asks_for(template, markup)), None)


def _asks_for(template: str, markup: Markup) -> bool:
    if not markup.signs or any(sign in template for sign in markup.others):
        return False
    plain = template.replace('\\"', '"')  # quotes of a text within a template's own
    return all(sign in plain for sign in markup.signs)


_TOOLS = re.compile(r"\{[{%](?:(?!%\}|\}\}).)*?\btools\b", re.DOTALL)


def dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def short_id(id: str) -> str:
    """An id as Mistral's templates take it; always the same for the same id."""
    return id if re.fullmatch(r"[a-zA-Z0-9]{9}", id) else hashlib.sha256(id.encode()).hexdigest()[:9]
