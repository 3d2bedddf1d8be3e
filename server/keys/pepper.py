"""The pepper: a secret of the server without which the stored digests of keys are worth nothing.

Owns its file. It lies beside the database, not in it, so that a copy of the database alone lets nobody in.
"""

import secrets
from pathlib import Path

from adapters.disk import Disk
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


def make_pepper(path: Path, disk: Disk) -> None:
    """A new one, readable by its owner alone, whole or not at all. For one process at a time."""
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)  # of a process that was killed
    disk.replace(path, secrets.token_bytes(PEPPER_BYTES), aside, mode=0o600)
