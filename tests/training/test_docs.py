"""docs/training.md names every key of the schema, no other, and the defaults that the schema has."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from training.config import TrainConfig
from training.config_file import parse_config

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
IN_WORDS = {"unset", "none", "all", "by objective", "a quarter", "`eval_every`", "`output`'s name"}
"""What stands for None or for nothing."""


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def schema(model: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None:
            yield prefix + name, field
        else:
            yield from schema(section, f"{prefix}{name}.")


def documented() -> dict[str, str]:
    text = PAGE.read_text(encoding="utf-8").split("## Keys")[1]
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \| [^|]* \|$", text, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a key stands there twice"
    return dict(rows)


def test_every_key_is_documented_and_no_other() -> None:
    assert set(documented()) == {key for key, _ in schema()}


def test_the_defaults_are_the_ones_of_the_schema() -> None:
    written = documented()
    for key, field in schema():
        told = written[key].strip()
        default: Any = field.default
        if field.is_required():
            assert told == "required", key
        elif default is None or default == ():
            assert told in IN_WORDS, key
        elif isinstance(default, bool):
            assert told == f"`{str(default).lower()}`", key
        elif isinstance(default, int | float):
            assert float(told.strip("`")) == default, key
        else:
            assert told == f"`{default}`", key


def test_the_smallest_config_of_the_page_is_one() -> None:
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    parse_config(yaml.safe_load(found[1]))
