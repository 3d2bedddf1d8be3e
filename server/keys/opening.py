"""Opening a data directory's keys, for a server and for the command line alike.

Owns the files' first moments: both are made readable by their owner alone, and a pepper is never made a second time.
"""

import os
from pathlib import Path

from server.datadir import DataDir
from server.keys.pepper import make_pepper, read_pepper
from server.keys.store import KeyStore


def open_keys(data: DataDir, pepper_file: Path | None = None, by: str = "") -> KeyStore:
    """Raises PepperUnusable, and RegistryUnusable for a damaged database. Close it when done."""
    if not data.keys.exists():
        data.root.mkdir(parents=True, exist_ok=True)
        if pepper_file is None:
            make_pepper(data.pepper)
        os.close(os.open(data.keys, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    pepper = read_pepper(data.pepper if pepper_file is None else pepper_file)
    return KeyStore(f"sqlite:///{data.keys.absolute()}", pepper, by)
