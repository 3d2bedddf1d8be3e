"""What must hold after every hostile request: the invariants I2 to I8 that a fake engine can break.

I2 every adapter's bytes are those that its id says; I3 and I6 the disk is in order; I4 the next request is answered; I5
nothing is left running, and no adapter held; I7 an error has OpenAI's envelope and repeats neither paths nor code nor
what was sent; I8 what the client caused is no 5xx. I1, the base's weights, and what lies beside a server's data are
looked at by tests/support/invariants.py, for uploads, and by real_engine_watch.py, on a real engine.
"""

import re

import httpx

from tests.support import invariants
from tests.support.invariants import MARK
from tests.support.server_rig import BASE, ServerRig

JSON = {"content-type": "application/json"}
_CODE = re.compile(r"\.py\b")


def check_reply(reply: httpx.Response, sent: str = MARK) -> None:
    """`reply`, good or bad, keeps I7 and I8, and does not repeat `sent`; a refusal is short, and names no code."""
    invariants.check_reply(reply, sent)
    assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])
    if reply.status_code >= 400:
        assert not _CODE.search(reply.text) and len(reply.content) < 2000, "I7"


def check_after(http: httpx.Client, rig: ServerRig) -> None:
    """The server is as it was: I2 to I6. `http` may ask for completions."""
    reply = http.post("/v1/completions", json={"model": BASE, "prompt": "x", "max_tokens": 1})
    assert reply.status_code == 200, ("I4", reply.text)
    invariants.check_held(rig)
    invariants.check_disk(rig)
    for id in rig.registry.ids():
        rig.store.verify(id)


def refused(
    reply: httpx.Response, http: httpx.Client, rig: ServerRig, *, status: int = 400, code: str, param: str | None
) -> None:
    """`reply` is this refusal, which blames this field, and the server is as it was."""
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param), reply.text
    check_reply(reply)
    check_after(http, rig)


def post(http: httpx.Client, content: str | bytes, path: str = "/v1/completions") -> httpx.Response:
    return http.post(path, content=content, headers=JSON)
