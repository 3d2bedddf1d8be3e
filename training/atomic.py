"""Text files of a run that a kill must never leave half written.

Owns that one write. Knows no file by name; imports no torch.
"""

from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` by one rename, so that a reader sees the old content or the new, whole."""
    scratch = path.with_suffix(".new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
