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
        Literal["none", "auto", "required"] | NamedTool,
        Field(description="A named function is called once."),
    ] = "auto"
    parallel_tool_calls: bool = True

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _one_of_four(cls, value: Any) -> Any:
        """Told here: of a union pydantic would tell what is wrong with each of its sides."""
        match value:
            case "none" | "auto" | "required":
                return value
            case {"type": "function", "function": {"name": str() as name, **more}, **others} if not more and not others:
                return {"type": "function", "function": {"name": name}}
        raise ValueError(
            'must be `none`, `auto`, `required` or {"type": "function", "function": {"name": …}}; '
            "to allow some of several functions, send these alone"
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
            raise BadRequest("`tool_choice` asks for a call, and there are no `tools`. Send them.", "tool_choice")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in seen:
            raise BadRequest(
                "`tool_choice` names a function that is not among `tools`. Name one of them, or add it.", "tool_choice"
            )
        return self

    def offer(self) -> Offer | None:
        """None where nothing may be called."""
        if not self.tools or self.tool_choice == "none":
            return None
        functions = tuple(
            _function(tool.function, f"tools[{place}].function.parameters") for place, tool in enumerate(self.tools)
        )
        if not isinstance(self.tool_choice, NamedTool):
            return Offer(functions, functions, self.tool_choice == "required", self.parallel_tool_calls)
        name = self.tool_choice.function.name
        return Offer(functions, tuple(each for each in functions if each.name == name), True, False)


def _function(body: FunctionBody, field: str) -> Function:
    return Function(body.name, body.description, body.parameters, field, body.strict is True)
