"""The adapters' errors, each with a message that says what to do. It knows nothing of HTTP.

AdapterError
├── InvalidAdapter       the config or the weights break a rule; carries every fault that was found
│   └── UnsupportedMedia the file is not safetensors at all: a pickle, a GGUF, a Git LFS pointer
├── NameInvalid          the name is not a slug
│   └── NameReserved     a slug, but it means something else already
├── AliasInvalid         the alias is not a slug, or could be taken for a version or a digest
├── CanaryInvalid        a canary of the version that the alias points at anyway
├── NothingToRollBack    the alias has not pointed anywhere else
├── NotOwner             it is lent to the tenant who would change it
├── BaseMismatch         trained on another base, or in another quantization, than is served
├── UnknownAdapter       no such name, alias or digest
│   └── UnknownVersion   the name exists, that version of it does not
├── ConditionFailed      what the caller asked to be true of a name or alias is not
├── AdapterCorrupt       stored bytes no longer match their digest
└── RegistryUnusable     the database is damaged, or was written by a newer release
"""

from collections.abc import Iterable
from dataclasses import dataclass

SHOWN_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule: `where` is the file and its field or tensor, `problem` what was expected and got."""

    where: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}. {self.fix}."


class AdapterError(Exception):
    """Root of everything that the adapters raise on purpose."""


class InvalidAdapter(AdapterError):
    """The message shows the first `SHOWN_FAULTS` faults and counts the rest; `faults` has them all."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        assert self.faults, "an invalid adapter has at least one fault"
        count = len(self.faults)
        lines = [f"The adapter is invalid ({count} {'fault' if count == 1 else 'faults'})."]
        lines += [f"- {fault}" for fault in self.faults[:SHOWN_FAULTS]]
        if count > SHOWN_FAULTS:
            lines.append(f"- and {count - SHOWN_FAULTS} more.")
        super().__init__("\n".join(lines))


class UnsupportedMedia(InvalidAdapter):
    pass


class NameInvalid(AdapterError):
    pass


class NameReserved(NameInvalid):
    pass


class AliasInvalid(AdapterError):
    pass


class CanaryInvalid(AdapterError):
    pass


class NothingToRollBack(AdapterError):
    pass


class UnknownAdapter(AdapterError):
    pass


class UnknownVersion(UnknownAdapter):
    pass


class NotOwner(AdapterError):
    pass


class BaseMismatch(AdapterError):
    """`problem` names both sides, `fix` what to do; the message is both."""

    def __init__(self, problem: str, fix: str) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(f"{problem} {fix}")


class ConditionFailed(AdapterError):
    pass


class AdapterCorrupt(AdapterError):
    pass


class RegistryUnusable(AdapterError):
    pass


def quoted(text: object, limit: int = 120) -> str:
    """`text` as ASCII on one line and no longer than `limit`, fit for an error message whoever wrote it."""
    shown = ascii(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def listed(names: Iterable[str], limit: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(quoted(name) for name in every[:limit]) + more
