"""Reading one JSON object field by field, with every complaint kept instead of the first one raised.

Owns type and range checks. Knows nothing of what the fields mean. JSON's types are taken literally: `true` is not 1.
"""

from collections.abc import Mapping, Sequence

from adapters.errors import Fault, listed, quoted
from adapters.strict_json import Json

MAX_STRINGS = 1 << 16


class Fields:
    """`file` is the name shown in the faults. A field whose reader returns None after complaining is in `broken`."""

    def __init__(self, file: str, values: Mapping[str, Json]) -> None:
        self.values = values
        self.faults: list[Fault] = []
        self.broken: set[str] = set()
        self._file = file

    def refuse(self, field: str, problem: str, fix: str) -> None:
        self.broken.add(field)
        self.faults.append(Fault(f"{self._file}: {quoted(field)[1:-1]}", problem, fix))

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.values.get(field, default)
        if isinstance(value, bool):
            return value
        self.refuse(field, f"expected true or false, got {quoted(value)}", "Write it as PEFT does")
        return default

    def integer(self, field: str, low: int, high: int) -> int | None:
        if field in self.values:
            return self._ranged_integer(field, field, self.values[field], low, high)
        self.refuse(field, f"missing, expected an integer from {low} to {high}", "Add the value used in training")
        return None

    def number(self, field: str, low: float, high: float) -> float | None:
        """A number in (`low`, `high`]."""
        if field in self.values:
            return self._ranged_number(field, field, self.values[field], low, high)
        self.refuse(field, "missing, expected a number", "Add the value used in training")
        return None

    def integers_by_name(self, field: str, low: int, high: int) -> dict[str, int]:
        found = {}
        for key, value in self._object(field).items():
            number = self._ranged_integer(field, f"{field}[{quoted(key)}]", value, low, high)
            if number is not None:
                found[key] = number
        return found

    def numbers_by_name(self, field: str, low: float, high: float) -> dict[str, float]:
        found = {}
        for key, value in self._object(field).items():
            number = self._ranged_number(field, f"{field}[{quoted(key)}]", value, low, high)
            if number is not None:
                found[key] = number
        return found

    def strings(self, field: str) -> list[str]:
        """A list of strings; null and an absent field are the empty list."""
        value = self.values.get(field)
        if value is None:
            return []
        if isinstance(value, list):
            strings = [item for item in value if isinstance(item, str)]
            if len(strings) == len(value) <= MAX_STRINGS:
                return strings
        problem = f"expected a list of at most {MAX_STRINGS} strings, got {quoted(value)}"
        self.refuse(field, problem, "List literal module names")
        return []

    def text(self, field: str, limit: int = 1024) -> str | None:
        """Printable text; null and an absent field are None."""
        value = self.values.get(field)
        if value is None:
            return None
        if isinstance(value, str) and len(value) <= limit and value.isprintable():
            return value
        self.refuse(field, f"expected null or printable text of at most {limit} characters", "Remove the field")
        return None

    def one_of(self, field: str, allowed: Sequence[Json], fix: str) -> None:
        """Complain unless the field is absent or holds one of `allowed`."""
        if field in self.values and not is_among(self.values[field], allowed):
            neutral = " or ".join(_json(value) for value in allowed)
            self.refuse(field, f"unsupported: expected {neutral}, got {_json(self.values[field])}", fix)

    def _object(self, field: str) -> Mapping[str, Json]:
        value = self.values.get(field)
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.refuse(field, f"expected an object, got {quoted(value)}", "Write it as PEFT does")
        return {}

    def _ranged_integer(self, field: str, where: str, value: Json, low: int, high: int) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.broken.add(field)
        self.refuse(where, f"expected an integer from {low} to {high}, got {quoted(value)}", "Correct it")
        return None

    def _ranged_number(self, field: str, where: str, value: Json, low: float, high: float) -> float | None:
        if isinstance(value, int | float) and not isinstance(value, bool) and low < value <= high:
            return float(value)
        self.broken.add(field)
        problem = f"expected a number above {low:g} and at most {high:g}, got {quoted(value)}"
        self.refuse(where, problem, "Correct it")
        return None


def is_among(value: Json, allowed: Sequence[Json]) -> bool:
    """Membership by type and value: 0 is not among (false,)."""
    return any(type(value) is type(other) and value == other for other in allowed)


def _json(value: Json) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quoted(value)


def refuse_all(fields: Fields, field: str, bad: Sequence[str], problem: str, fix: str) -> None:
    """One complaint about several names in the same field; nothing when there are none."""
    if bad:
        fields.refuse(field, f"{problem}: {listed(bad)}", fix)
