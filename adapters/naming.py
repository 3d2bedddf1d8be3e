"""What adapters and tenants may be called, and how a request refers to an adapter.

Owns the grammar of names, aliases and references. Knows no registry: whether a name exists is not asked here.
"""

import re
from dataclasses import dataclass

from adapters.errors import AliasInvalid, NameInvalid, NameReserved, UnknownAdapter, quoted
from adapters.manifest import AdapterId
from loader.digests import is_digest

_SLUG = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
_QUALIFIED = re.compile(rf"(?:{_SLUG.pattern}/)?{_SLUG.pattern}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_DEVICES = frozenset({"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)})
_RULE = "1 to 64 of a-z A-Z 0-9 . _ - and begin with a letter or digit"


@dataclass(frozen=True, slots=True)
class Reference:
    """`name`, `name@3`, `name@alias` or `name@sha256:…`; at most one of the three selectors is set.

    On a server with keys `name` is `tenant/name`.
    """

    name: str
    number: int | None = None
    alias: str | None = None
    id: AdapterId | None = None


def check_name(name: str, reserved: frozenset[str] = frozenset()) -> str:
    """`name` itself. Raises NameInvalid, also for device names, or NameReserved for `reserved` in any case."""
    folded = check_slug(name, "an adapter name").lower()
    if folded.split(".", 1)[0] in _DEVICES:
        raise NameInvalid(f"{quoted(name)} is a device name on some systems. Choose another name.")
    if folded in {word.lower() for word in reserved}:
        raise NameReserved(f"{quoted(name)} already names something else on this server. Choose another name.")
    return name


def check_slug(name: str, kind: str) -> str:
    """`name` itself, if it obeys the rule of names; `kind` is what the message calls it. Raises NameInvalid."""
    if not _SLUG.fullmatch(name):
        raise NameInvalid(f"{quoted(name)} is not {kind}: use {_RULE}.")
    return name


def check_alias(alias: str) -> str:
    """`alias` itself. Raises AliasInvalid, also for what could be read as a version number or a digest."""
    if not _SLUG.fullmatch(alias):
        raise AliasInvalid(f"{quoted(alias)} is not an alias: use {_RULE}.")
    if alias.isdigit() or alias.lower().startswith("sha256"):
        raise AliasInvalid(f"{quoted(alias)} could be taken for a version or a digest. Choose a word, such as 'prod'.")
    return alias


def qualified(tenant: str, name: str) -> str:
    """`name` as the registry has it: `tenant/name`, or bare for the tenant "" of a server without keys."""
    return f"{tenant}/{name}" if tenant else name


def owner_of(name: str) -> str:
    """The tenant of a registered name."""
    return name.rpartition("/")[0]


def parse_reference(text: str) -> Reference:
    """Raises UnknownAdapter when `text` cannot refer to anything, so that asking is no oracle for names."""
    name, at, selector = text.partition("@")
    if not _QUALIFIED.fullmatch(name):
        raise UnknownAdapter(f"There is no adapter {quoted(text)}.")
    if not at:
        return Reference(name)
    if _NUMBER.fullmatch(selector):
        return Reference(name, number=int(selector))
    if is_digest(selector):
        return Reference(name, id=AdapterId(selector))
    if _SLUG.fullmatch(selector):
        return Reference(name, alias=selector)
    raise UnknownAdapter(
        f"There is no adapter {quoted(text)}. After '@' comes a version number, an alias or 'sha256:<64 hex>'."
    )
