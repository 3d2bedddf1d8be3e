"""The text of a key, `sk-<id>_<secret>`, and the digest that is kept of it.

Owns the grammar and the arithmetic. Knows no database, no tenants and no HTTP.
"""

import hmac
import re
import secrets
from dataclasses import dataclass, field

SECRET_BYTES = 32
DIGEST_BYTES = 32
_TYPED = re.compile(r"(?:sk-)?([0-9a-f]{16})(?:_.*)?", re.DOTALL)
_FORM = re.compile(r"sk-([0-9a-f]{16})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Token:
    """A new key. `id` may be shown and logged; `text` is shown once and kept nowhere."""

    id: str
    text: str = field(repr=False)


def new_token() -> Token:
    """A key with 256 bits that nobody can guess."""
    id = secrets.token_hex(8)
    return Token(id, f"sk-{id}_{secrets.token_urlsafe(SECRET_BYTES)}")


def id_of(text: str) -> str:
    """The public half of a key, or "" for what is no key."""
    form = _FORM.fullmatch(text)
    return "" if form is None else form[1]


def id_in(text: str) -> str:
    """The id that a person typed, alone or with the rest of the key, however much of it; "" when there is none."""
    form = _TYPED.fullmatch(text)
    return "" if form is None else form[1]


def digest(pepper: bytes, text: str) -> bytes:
    """HMAC-SHA256 (RFC 2104) over the whole text, so that a digest is of use with its own id only.

    A slow hash is for passwords: a secret of 256 bits cannot be tried out, and every request pays for the hash.
    """
    return hmac.digest(pepper, text.encode("utf-8", "surrogatepass"), "sha256")
