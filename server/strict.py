"""The strict base of all bodies, and how a field that is not there is refused.

Knows no field of any body.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from server.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Unserved:
    """A field other servers have and this one does not. A value in `harmless` asks for nothing and passes."""

    why: str
    harmless: tuple[object, ...] = ()


class Strict(BaseModel):
    """A body that takes exactly the fields it names, in exactly their types, and finite numbers only."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    unserved: ClassVar[Mapping[str, Unserved]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, data: Any) -> Any:
        """Drop nulls of known fields (OpenAI's way to say "the default") and refuse what is not served."""
        if not isinstance(data, dict):
            return data
        kept: dict[str, object] = {}
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name, value in data.items():
            unserved = None if name in known else cls.unserved.get(name)
            if unserved is None:
                if value is not None or name not in known:
                    kept[name] = value
            elif value is not None and not any(_same(value, harmless) for harmless in unserved.harmless):
                raise BadRequest(f"`{name}` is not supported. {unserved.why}", name, "unsupported_field")
        return kept


def _same(value: object, harmless: object) -> bool:
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)
