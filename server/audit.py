"""What callers changed, one line each, for whoever must account for it later.

Owns that logger. Who did it is bound to the request's log context: the tenant and the id of the key.
"""

import structlog

from adapters.version import Version

_log = structlog.get_logger("audit")


def note(event: str, **what: str | int | bool | None) -> None:
    """Say that `event` happened; call it after it has. Names and numbers only, never a body."""
    _log.info(event, **what)


def note_upload(version: Version, created: bool) -> None:
    """`created` is False when the name had this content already."""
    note("adapter_uploaded", name=version.name, version=version.number, id=version.id, new=created)
