"""Digests as text: what is one, and what is not."""

import hashlib
from pathlib import Path

import pytest

from loader.digests import file_digest, is_digest

DIGEST = f"sha256:{0:064x}"


@pytest.mark.parametrize(
    "text", ["sha256:..", "sha256:../../x", DIGEST + "\n", DIGEST[:-1], DIGEST.replace("0", "\u0660"), "md5:00", None]
)
def test_a_digest_is_nothing_but_hex(text: object) -> None:
    assert is_digest(DIGEST) and not is_digest(text)


def test_a_files_digest_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"grafted")
    assert file_digest(tmp_path / "file") == f"sha256:{hashlib.sha256(b'grafted').hexdigest()}"
    assert is_digest(file_digest(tmp_path / "file"))
