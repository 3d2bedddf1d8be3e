"""The body fields that offer functions to a model, as OpenAI spells them.

Owns their bounds, and which functions may be called in the end. Knows neither markups nor tokens.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from server.errors import BadRequest
from server.strict import Strict
from server.tools.markup import Function

MAX_TOOLS = 128
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionBody(Strict):
    name: Name
    description: Annotated[str | None, Field(max_length=1 << 16)] = None
    parameters: Annotated[dict[str, Any] | None, Field(description="A JSON Schema of an object.")] = None
    strict: Annotated[
        bool | None,
        Field(description="Refuse `parameters` of which a keyword is not supported. Otherwise it is not enforced."),
    ] = None

    @field_validator("parameters")
    @classmethod
    def _an_object(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None and schema.get("type", "object") != "object":
            raise ValueError('must be a schema of an object: `"type": "object"`')
        return schema


class Tool(Strict):
    type: Literal["function"]
    function: FunctionBody


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class FunctionSubset(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: FunctionSubset


@dataclass(frozen=True, slots=True)
class Offer:
    """The functions that a chat's template is told of, those that may be called, and whether one of them must be."""

    functions: tuple[Function, ...]
    callable: tuple[Function, ...]
    forced: bool
    parallel: bool


class ToolsBody(Strict):
    """`tools` and how they are to be used. Without `tools`, the other fields ask for nothing."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedTool | AllowedTools,
        Field(description="A named function is called once. Of allowed ones, others are shown and not called."),
    ] = "auto"
    parallel_tool_calls: bool = True

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _one_of_its_kinds(cls, value: Any) -> Any:
        """Told here: of a union pydantic would tell what is wrong with each of its sides."""
        if value in ("none", "auto", "required") or _is_named(value) or _is_allowed(value):
            return value
        raise ValueError(
            'must be `none`, `auto`, `required`, {"type": "function", "function": {"name": …}} or {"type": '
            '"allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [functions by name]}}'
        )

    @model_validator(mode="after")
    def _that_can_be_called(self) -> "ToolsBody":
        seen: set[str] = set()
        for place, tool in enumerate(self.tools):
            if tool.function.name in seen:
                field = f"tools[{place}].function.name"
                raise BadRequest(f"`{field}` is the name of another function too. Give each its own.", field)
            seen.add(tool.function.name)
        if not self.tools and self.tool_choice not in ("none", "auto"):
            raise BadRequest("`tool_choice` is about functions, and there are no `tools`. Send them.", "tool_choice")
        if not self._chosen <= seen:
            raise BadRequest(
                "`tool_choice` names a function that is not among `tools`. Name one of them, or add it.", "tool_choice"
            )
        return self

    @property
    def _chosen(self) -> frozenset[str]:
        """The functions that `tool_choice` names."""
        match self.tool_choice:
            case NamedTool():
                return frozenset({self.tool_choice.function.name})
            case AllowedTools():
                return frozenset(tool.function.name for tool in self.tool_choice.allowed_tools.tools)
        return frozenset()

    def offer(self) -> Offer | None:
        """None where nothing may be called."""
        if not self.tools or self.tool_choice == "none":
            return None
        functions = tuple(
            _function(tool.function, f"tools[{place}].function.parameters") for place, tool in enumerate(self.tools)
        )
        callable = tuple(each for each in functions if not self._chosen or each.name in self._chosen)
        match self.tool_choice:
            case NamedTool():
                return Offer(functions, callable, True, False)
            case AllowedTools():
                forced = self.tool_choice.allowed_tools.mode == "required"
                return Offer(functions, callable, forced, self.parallel_tool_calls)
        return Offer(functions, callable, self.tool_choice == "required", self.parallel_tool_calls)


def _is_named(value: Any) -> bool:
    """Whether a value is a function by its name."""
    match value:
        case {"type": "function", "function": {"name": str(), **more}, **others}:
            return not more and not others
    return False


def _is_allowed(value: Any) -> bool:
    """Whether a value is OpenAI's choice of several functions."""
    match value:
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*tools], **more}, **others}:
            known = mode in ("auto", "required") and not more and not others
            return known and 0 < len(tools) <= MAX_TOOLS and all(map(_is_named, tools))
    return False


def _function(body: FunctionBody, field: str) -> Function:
    return Function(body.name, body.description, body.parameters, field, body.strict is True)
