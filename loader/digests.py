"""SHA-256 digests as text: `sha256:` and 64 hexadecimal digits.

Owns that spelling. What is hashed, and what its digest stands for, others know.
"""

import hashlib
import re
from pathlib import Path

DIGEST = r"sha256:[0-9a-f]{64}"
_DIGEST = re.compile(DIGEST)


def is_digest(text: object) -> bool:
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
