"""The pepper: a secret of the server without which the stored digests of keys are worth nothing.

Owns its file. It lies beside the database, not in it, so that a copy of the database alone opens no door.
"""

import contextlib
import os
import secrets
from pathlib import Path

from server.keys.errors import PepperUnusable

PEPPER_BYTES = 32
_LEAST_BYTES = 16


def read_pepper(path: Path) -> bytes:
    """Raises PepperUnusable."""
    try:
        pepper = path.read_bytes()
    except OSError as error:
        raise PepperUnusable(
            f"The pepper {path} cannot be read ({error.strerror}). Without it no key is valid: put it back, or name "
            "where it is with --keys-pepper-file."
        ) from None
    if len(pepper) < _LEAST_BYTES:
        raise PepperUnusable(f"The pepper {path} has {len(pepper)} bytes; it needs at least {_LEAST_BYTES}.")
    return pepper


def make_pepper(path: Path) -> None:
    """A new one, readable by its owner alone, whole or not at all; one that is there already stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(PEPPER_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)  # a rename would replace what another process has just made
    finally:
        fresh.unlink()
