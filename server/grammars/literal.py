"""A text as a regular expression of it alone.

Knows neither grammars nor forms.
"""

import re

_ASCII = re.compile(r"[\0-/:-@\[-^`{-\x7f]")


def literal(text: str) -> str:
    """It can stand anywhere in a regular expression in Rust's syntax, between slashes too."""
    return _ASCII.sub(lambda found: rf"\x{{{ord(found[0]):x}}}", text)
