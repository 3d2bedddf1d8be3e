"""The flags of `rootstock serve`, made from the settings, so that the two cannot drift apart.

Knows `Settings` and typer. Parses nothing: every value goes to the settings as it was typed.
"""

import inspect
from collections.abc import Callable
from typing import Annotated

import typer
from pydantic.fields import FieldInfo

from server.settings import MANY, TABLES, Settings


def with_settings_flags(run: Callable[[dict[str, object]], None]) -> Callable[..., None]:
    """A typer callback with one flag a setting. `run` gets them all; a flag that was not typed is None or empty."""

    def callback(**flags: object) -> None:
        run(flags)

    parameters = [_parameter(field, info) for field, info in Settings.model_fields.items() if field not in TABLES]
    callback.__doc__ = run.__doc__
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return callback


def _parameter(field: str, info: FieldInfo) -> inspect.Parameter:
    about = f"{info.description} {_default(info)}".strip()
    annotation: object
    if field in MANY:
        flag, metavar = MANY[field]
        option = typer.Option(flag, help=about, metavar=metavar, show_default=False)
        annotation = Annotated[list[str] | None, option]
    elif info.annotation is bool:
        option = typer.Option(_switch(field.replace("_", "-"), info), help=about, show_default=False)
        annotation = Annotated[bool | None, option]
    else:
        option = typer.Option(f"--{field.replace('_', '-')}", help=about, metavar="VALUE", show_default=False)
        annotation = Annotated[str | None, option]
    return inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _switch(name: str, info: FieldInfo) -> str:
    """What is on by default can be turned off."""
    return f"--{name}/--no-{name}" if info.default else f"--{name}"


def _default(info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True, validated_data={})
    if default is None or default is False or default == {} or default == ():
        return ""
    if default is True:
        return "(default: on)"
    human = getattr(default, "human_readable", None)
    return f"(default: {human() if human else default})"
