"""The strict base of all bodies, and how a field that is not there is refused.

Knows no field of any body.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from server.errors import BadRequest

UNKNOWN = "unknown_field"
"""The kind of error whose context has a `field` that is not there, as it was sent, and those that are `known`."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """A field other servers have and this one does not. A value in `harmless` asks for nothing and passes."""

    why: str
    harmless: tuple[object, ...] = ()


class Strict(BaseModel):
    """A body that takes exactly the fields it names, in exactly their types, and finite numbers only."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    unserved: ClassVar[Mapping[str, Unserved]] = {}

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_by_name(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Drop nulls of known fields (OpenAI's way to say "the default") and refuse what is not served.

        Where nothing else is wrong than one field that is not known, the error has those that are.
        """
        if not isinstance(data, dict):
            return handler(data)
        kept: dict[str, object] = {}
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name, value in data.items():
            unserved = None if name in known else cls.unserved.get(name)
            if unserved is None:
                if value is not None or name not in known:
                    kept[name] = value
            elif value is not None and not any(_same(value, harmless) for harmless in unserved.harmless):
                raise BadRequest(f"`{name}` is not supported. {unserved.why}", name, "unsupported_field")
        try:
            return handler(kept)
        except ValidationError as error:
            if error.error_count() > 1 or error.errors()[0]["type"] != "extra_forbidden":
                raise
            (field,) = kept.keys() - known
            raise PydanticCustomError(UNKNOWN, "unknown field", {"field": field, "known": sorted(known)}) from None


def _same(value: object, harmless: object) -> bool:
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)
