"""The adapters' errors, each with a message that says what to do. It knows nothing of HTTP.

AdapterError
├── InvalidAdapter       the config or the weights break a rule; carries every fault that was found
│   └── UnsupportedMedia the file is not safetensors at all: a pickle, a GGUF, a Git LFS pointer
├── NameInvalid          the name is not a slug
│   └── NameReserved     a slug, but it means something else already
├── AliasInvalid         the alias is not a slug, or could be taken for a version or a digest
├── CanaryInvalid        a canary of the version that the alias points at anyway
├── NothingToRollBack    the alias has not pointed anywhere else
├── VersionInUse         an alias or its canary is this version, or it is the only one
├── NotOwner             it is shared with the tenant who would change it
├── BaseMismatch         trained on another base, or in another quantization, than is served
├── UnknownAdapter       no such name, alias or digest
│   └── UnknownVersion   the name exists, that version of it does not
├── ConditionFailed      what the caller asked to be true of a name or alias is not
├── UploadError          a resumable upload cannot go on as was asked
│   ├── UnknownUpload    there is none of this id, or it is another tenant's
│   ├── UploadBusy       a request is at work on it already
│   ├── UploadOver       it has ended, well or badly
│   ├── WrongOffset      the bytes do not follow those that are there; carries where they must begin
│   ├── UploadIncomplete bytes are missing still; carries how many are there
│   ├── UploadOverflow   more bytes than were declared
│   ├── DigestMismatch   the bytes are not those that were announced
│   ├── TooManyUploads   the tenant has too many open, or too large ones
│   └── UploadsFull      all tenants together have too many open
├── AdapterCorrupt       stored bytes no longer match their digest
└── DatabaseUnusable     the database is damaged, or was written by a newer release
OSError                  the disk is full or failed, as the system says it; nothing was changed
└── Unsettled            it failed when the change may have been made already
"""

from collections.abc import Iterable
from dataclasses import dataclass

SHOWN_FAULTS = 20
KEPT_FAULTS = 1000
"""A config of a megabyte may have a hundred thousand: nobody reads so many, and to send them takes long."""


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


class Unsettled(OSError):
    """The disk failed at a commit, or behind it: the change may have been made, or be made by the next start.

    Whoever makes it again until that succeeds has it once and for good.
    """


class InvalidAdapter(AdapterError):
    """The message shows the first `SHOWN_FAULTS` faults and counts the rest; `faults` has the first `KEPT_FAULTS`."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        found = tuple(faults)
        assert found, "an invalid adapter has at least one fault"
        self.faults, count = found[:KEPT_FAULTS], len(found)
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


class VersionInUse(AdapterError):
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


class UploadError(AdapterError):
    pass


class UnknownUpload(UploadError):
    def __init__(self) -> None:
        super().__init__("There is no such upload. It may have expired; begin a new one.")


class UploadBusy(UploadError):
    def __init__(self) -> None:
        super().__init__("Another request is at work on this upload. Try again in a moment.")


class UploadOver(UploadError):
    pass


class WrongOffset(UploadError):
    def __init__(self, offset: int) -> None:
        self.offset = offset
        super().__init__(f"This upload has {offset} bytes: the next ones begin at offset {offset}.")


class UploadIncomplete(UploadError):
    def __init__(self, offset: int, size: int) -> None:
        self.offset = offset
        super().__init__(f"This upload has {offset} of {size} bytes. Send the others before finishing it.")


class UploadOverflow(UploadError):
    def __init__(self, size: int) -> None:
        super().__init__(f"This upload was declared to have {size} bytes, and more were sent. Send no more than that.")


class DigestMismatch(UploadError):
    def __init__(self) -> None:
        super().__init__("The bytes that arrived are not those of the digest. Send the file again, from the beginning.")


class TooManyUploads(UploadError):
    pass


class UploadsFull(UploadError):
    def __init__(self, open: int) -> None:
        super().__init__(f"The server has {open} uploads open, which is all it takes at once. Try again later.")


class AdapterCorrupt(AdapterError):
    pass


class DatabaseUnusable(AdapterError):
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
