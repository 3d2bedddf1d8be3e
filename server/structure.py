"""The body fields that ask for an answer of a certain form, in OpenAI's spelling and in vLLM's.

Owns their bounds, and the one `Structure` that all spellings come to. Knows neither grammars' libraries nor tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from server.errors import BadRequest
from server.strict import Strict, Unserved
from server.tools.markup import Function, Markup
from server.tools.parameters import Parameter

MAX_TEXT = 1 << 16
MAX_CHOICES = 1024

Kind = Literal["json", "regex", "choice", "grammar", "calls"]


@dataclass(frozen=True, slots=True)
class Part:
    """A JSON Schema within a form, and the field of the body that has it.

    Unless `strict`, keywords that cannot be kept to are no reason to refuse it.
    """

    field: str
    schema: Mapping[str, Any]
    strict: bool = True


@dataclass(frozen=True, slots=True)
class CallForm:
    """An answer that calls some of `functions`, at most `max_calls` times; unless `forced`, it may be text.

    The text keeps to the schema `text`, if there is one. `tokens` are the markup's special tokens with their ids. In a
    markup of elements, `elements` are the functions' parameters by their names, in the order of `functions`.
    """

    markup: Markup
    functions: tuple[Function, ...]
    forced: bool
    max_calls: int
    text: Part | None
    tokens: Mapping[str, int]
    elements: Mapping[str, Sequence[Parameter]] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The JSON in it: the functions' arguments in their order, or those of them that are JSON; then the text."""
        arguments = tuple(part for function in self.functions for part in self._arguments(function))
        return arguments if self.text is None else (*arguments, self.text)

    def _arguments(self, function: Function) -> list[Part]:
        schemas = [function.schema]
        if self.markup.elements:
            schemas = [each.schema for each in self.elements[function.name] if each.text is None]
        return [Part(function.field, schema, function.strict) for schema in schemas]


@dataclass(frozen=True, slots=True)
class Structure:
    """What form an answer must have. `field` is where the body says so.

    `content` is a JSON Schema as an object, a regular expression, the choices, a grammar in Lark or GBNF, or calls.
    """

    field: str
    kind: Kind
    content: Mapping[str, Any] | str | tuple[str, ...] | CallForm


def _schema(value: Any) -> Any:
    """vLLM takes schemas as text too."""
    if not isinstance(value, str):
        return value
    if len(value) > MAX_TEXT:
        raise ValueError(f"must have at most {MAX_TEXT} characters")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("must be a JSON Schema: an object, or its text") from None
    if not isinstance(parsed, dict):
        raise ValueError("must be a JSON Schema: an object, or its text")
    return parsed


Schema = Annotated[dict[str, Any], BeforeValidator(_schema)]
Regex = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]], Field(min_length=1, max_length=MAX_CHOICES)
]
Grammar = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, description="In Lark, or in llama.cpp's GBNF.")]

_NO_TAGS = "Send a JSON Schema, a regular expression, choices or a grammar."
_BY_SCHEMA = "Say it in the schema, or send a regular expression or a grammar."


class JsonSchema(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="Has no effect.")]
    description: Annotated[str | None, Field(description="Has no effect.")] = None
    strict: Annotated[bool | None, Field(description="Has no effect: the schema is always kept to.")] = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(Strict):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _agree(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("`json_schema` goes with the type `json_schema`, and with no other")
        return self

    def structure(self) -> Structure | None:
        if self.json_schema is not None:
            return Structure("response_format.json_schema.schema", "json", self.json_schema.schema_)
        return Structure("response_format", "json", ANY_OBJECT) if self.type == "json_object" else None


class StructuredOutputs(Strict):
    """vLLM's `structured_outputs`."""

    unserved: ClassVar[Mapping[str, Unserved]] = {
        "structural_tag": Unserved(_NO_TAGS),
        "whitespace_pattern": Unserved(_BY_SCHEMA),
        "disable_any_whitespace": Unserved(_BY_SCHEMA, (False,)),
        "disable_additional_properties": Unserved(_BY_SCHEMA, (False,)),
        "disable_fallback": Unserved("There is one way to keep to a form. Leave it out.", (True, False)),
    }

    json_: Annotated[Schema | None, Field(alias="json")] = None
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None
    json_object: bool = False

    def structures(self) -> list[Structure]:
        within = "structured_outputs."
        objects = [Structure(f"{within}json_object", "json", ANY_OBJECT)] if self.json_object else []
        return objects + _structures(within, self.json_, self.regex, self.choice, self.grammar)

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputs":
        if len(self.structures()) != 1:
            raise ValueError("must hold exactly one of `json`, `regex`, `choice`, `grammar` and `json_object`")
        return self


ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class StructuredBody(Strict):
    """The fields of a body that ask for a form. At most one of them may."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None
    guided_grammar: Grammar | None = None

    def structures(self) -> list[Structure]:
        """All that are asked for."""
        found = _structures("guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)
        if self.structured_outputs is not None:
            found += self.structured_outputs.structures()
        wanted = None if self.response_format is None else self.response_format.structure()
        return found if wanted is None else [wanted, *found]

    def structure(self) -> Structure | None:
        """The one that is asked for."""
        return next(iter(self.structures()), None)

    @model_validator(mode="after")
    def _at_most_one(self) -> "StructuredBody":
        fields = [structure.field for structure in self.structures()]
        if len(fields) > 1:
            raise BadRequest(f"`{fields[0]}` and `{fields[1]}` both ask for a form. Send one of them.", fields[1])
        return self


def _structures(
    within: str,
    schema: dict[str, Any] | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> list[Structure]:
    asked: tuple[tuple[Kind, Mapping[str, Any] | str | tuple[str, ...] | None], ...] = (
        ("json", schema),
        ("regex", regex),
        ("choice", None if choice is None else tuple(choice)),
        ("grammar", grammar),
    )
    return [Structure(f"{within}{kind}", kind, content) for kind, content in asked if content is not None]
