"""Entity tags of names and aliases, and the conditions that requests make with them (RFC 9110, 8.8.3 and 13.1).

Owns that spelling: a tag is a version's number in quotes. Which version is current is the registry's affair.
"""

import re

from starlette.requests import Request

from adapters.condition import Condition
from adapters.version import Version
from server.errors import BadRequest

_TAG = re.compile(r'\s*(?:W/)?"([^"]*)"\s*')


def etag(version: Version) -> dict[str, str]:
    """The response header that says which version was shown."""
    return {"etag": f'"{version.number}"'}


def condition(http: Request) -> Condition | None:
    """What the request's If-Match or If-None-Match asks. Raises BadRequest for what is neither tag nor `*`."""
    match, absent = http.headers.get("if-match"), http.headers.get("if-none-match")
    if absent is not None:
        if absent.strip() != "*" or match is not None:
            raise BadRequest("If-None-Match takes `*` alone, without If-Match.", code="condition_invalid")
        return Condition(absent=True)
    if match is None:
        return None
    return Condition() if match.strip() == "*" else Condition(_numbers(match))


def _numbers(header: str) -> frozenset[int]:
    """The versions that a list of tags names; a tag that is none of ours matches nothing."""
    tags = [_TAG.fullmatch(part) for part in header.split(",")]
    if not all(tags):
        raise BadRequest('If-Match takes the ETag of the last answer, such as `"3"`, or `*`.', code="condition_invalid")
    words = [tag[1] for tag in tags if tag is not None]
    return frozenset(int(word) for word in words if word.isascii() and word.isdecimal() and len(word) < 19)
