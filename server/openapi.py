"""What the OpenAPI description says beside what FastAPI reads off the routes: errors, and where an answer leads.

Owns the described shape of an error, and the links from what was stored to the routes that take its name. Knows no
services; tests/fuzz holds the description against the application.
"""

from typing import Any

Responses = dict[int | str, dict[str, Any]]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer"]},
            },
        }
    },
}
_CONTENT = {"application/json": {"schema": _ERROR}}

# Ranges, because nearly every route can give most of them. They also keep FastAPI from promising its own 422.
ERRORS: Responses = {
    "4XX": {"description": "Refused: `error` says what is wrong and what to send instead.", "content": _CONTENT},
    "5XX": {"description": "The server could not do it: `error` says whether to try again.", "content": _CONTENT},
}


def _link(method: str, path: str, **parameters: str) -> dict[str, Any]:
    """To a route, each of whose `parameters` is taken from a field of the answer, named by a JSON pointer."""
    place = path.replace("~", "~0").replace("/", "~1")
    fields = {name: f"$response.body#/{pointer}" for name, pointer in parameters.items()}
    return {"operationRef": f"#/paths/{place}/{method}", "parameters": fields}


_ADAPTER = "/v1/adapters/{name}"
_UPLOAD = "/v1/adapters/uploads/{id}"
_TO_ADAPTER = {
    "show": _link("get", _ADAPTER, name="name"),
    "versions": _link("get", f"{_ADAPTER}/versions", name="name"),
    "shares": _link("get", f"{_ADAPTER}/shares", name="name"),
    "model": _link("get", "/v1/models/{id}", id="name"),
    "alias": _link("get", f"{_ADAPTER}/aliases/{{alias}}", name="name", alias="aliases/0"),
    "delete_alias": _link("delete", f"{_ADAPTER}/aliases/{{alias}}", name="name", alias="aliases/0"),
    "delete": _link("delete", _ADAPTER, name="name"),
}
_TO_UPLOAD = {
    "continue": _link("patch", _UPLOAD, id="id"),
    "show": _link("get", _UPLOAD, id="id"),
    "finish": _link("put", _UPLOAD, id="id"),
    "cancel": _link("delete", _UPLOAD, id="id"),
}

# What a route that stores says with 201 and with 200.
STORED: Responses = {
    201: {"description": "A new version.", "links": _TO_ADAPTER},
    200: {"description": "The version that had this content already.", "links": _TO_ADAPTER},
}
BEGUN: Responses = {
    201: {"description": "A new upload.", "links": _TO_UPLOAD},
    200: {"description": "The upload that was begun with the same words.", "links": _TO_UPLOAD},
}
CONTINUED: Responses = {202: {"description": "How far the upload has come now.", "links": _TO_UPLOAD}}
IN_USE: Responses = {
    202: {"description": "The name is gone. Requests that run on it finish, and its bytes go after the last of them."}
}
EVENTS: Responses = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
"""Beside JSON, for routes whose body may ask for a stream."""

PIECE: dict[str, Any] = {
    "parameters": [
        {
            "name": "Upload-Offset",
            "in": "header",
            "description": "Where the bytes begin; or Content-Range says it.",
            "schema": {"type": "integer", "minimum": 0},
        },
        {
            "name": "Content-Range",
            "in": "header",
            "description": "Where the bytes begin and end, both included.",
            "schema": {"type": "string", "pattern": "^[0-9]{1,18}-[0-9]{1,18}$"},
        },
    ],
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
}
"""What a route reads that takes a body as it comes, which FastAPI cannot read off it."""

UNWELL: Responses = {503: {"description": "Not now: `status` says why.", "content": {"application/json": {}}}}
"""What probes say in place of an error."""
