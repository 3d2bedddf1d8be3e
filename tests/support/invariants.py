"""What must hold after every hostile case, whatever became of the request.

I1 the base is what it was; I2 another adapter's bytes are; I3 no file lies where none belongs, among the server's own
or beside them, no link is made, and nothing temporary is left; I4 the next request is answered; I5 no answer runs, and
no adapter is held; I6 every row has its blob and every blob its row; I7 an error has OpenAI's envelope and repeats
neither paths nor code nor what was sent; I8 a client's fault is no 5xx. What a real engine holds, its weights and its
answers are looked at by tests/support/real_engine_watch.py, where there is a real one.
"""

import json
import re
from collections.abc import Callable

import httpx

from adapters.version import Version
from tests.support.http import eventually
from tests.support.server_rig import BASE, ServerRig
from tests.support.surroundings import Surroundings

_INSIDE = re.compile(r'Traceback|\.py\\?", line|/tmp/|/real/|site-packages|sqlite')
_BLOB = re.compile(r"data/blobs/sha256/[0-9a-f]{2}/[0-9a-f]{64}/(adapter_config|adapter_model|manifest|label)\.\w+")
_DOSSIER = re.compile(r"data/blobs/names/[0-9a-f]{64}\.json")
_UPLOAD = re.compile(r"uploads/resumable/[0-9a-f]{32}/(session\.json|config|weights)")
_WRITTEN = ("data", "uploads")
_OTHERS = re.compile(r"data/registry\.sqlite(-wal|-shm)?")

MARK = "zq0marked0qz"
"""What requests hold where a value may be, and no error repeats."""


class Invariants:
    """Over one rig. The canary is an adapter that was there before.

    Nobody else writes beside the server's folder meanwhile: tests keep their files elsewhere.
    `engine` checks what only a real engine can be asked.
    """

    def __init__(
        self, rig: ServerRig, http: httpx.Client, canary: Version, engine: Callable[[], None] | None = None
    ) -> None:
        self._rig, self._http, self._canary = rig, http, canary
        self._engine = engine
        self._around = Surroundings(rig.folder.parent, *(rig.folder / place for place in _WRITTEN))
        base = rig.catalog.base
        self._base = (base.weights, dict(base.shape.linears), base.shape.num_layers)

    def check(self, *replies: httpx.Response, sent: str | None = None) -> None:
        """After `replies`, none of which may repeat `sent`."""
        for reply in replies:
            check_reply(reply, sent)
        base = self._rig.catalog.base
        assert (base.weights, dict(base.shape.linears), base.shape.num_layers) == self._base, "I1"
        self._rig.store.verify(self._canary.id)  # I2
        assert self._rig.catalog.resolve(self._canary.name) == self._canary, "I2"
        self._around.check()
        check_disk(self._rig)
        model = {"model": self._canary.name, "prompt": "x", "max_tokens": 1}
        assert self._http.post("/v1/completions", json=model).headers["x-rootstock-adapter"] == self._canary.id, "I4"
        assert self._http.post("/v1/completions", json=model | {"model": BASE}).status_code == 200, "I4"
        if self._engine is not None:
            self._engine()
        else:
            check_held(self._rig)


def check_held(rig: ServerRig, within_s: float = 10) -> None:
    """I5, of a server whose engine is a fake."""
    eventually(lambda: not rig.worker.running, within_s)
    eventually(lambda: rig.services.lifecycle.in_flight == 0, within_s)
    eventually(lambda: rig.catalog.leases.idle, within_s)
    eventually(lambda: not rig.services.uploads._busy and not rig.services.uploads._reservations, within_s)


def check_disk(rig: ServerRig) -> None:
    """I3 among what the server writes, and I6."""
    written = [path for place in _WRITTEN for path in (rig.folder / place).rglob("*")]
    assert not [path for path in written if path.is_symlink() or not (path.is_file() or path.is_dir())], "I3"
    files = [str(path.relative_to(rig.folder)) for path in written if not path.is_dir()]
    odd = [name for name in files if not any(known.fullmatch(name) for known in (_BLOB, _DOSSIER, _UPLOAD, _OTHERS))]
    assert not odd, f"I3: {odd}"
    assert list((rig.folder / "data" / "blobs" / "tmp").iterdir()) == [], "I3: something temporary is left"
    assert set(rig.store.ids()) == rig.registry.ids(), "I6"


def check_reply(reply: httpx.Response, sent: str | None = None) -> None:
    assert reply.status_code < 500, "I8"
    if reply.status_code >= 400:
        check_error(reply.text, sent)


def check_error(text: str, sent: str | None = None) -> None:
    """I7 of an error's body, or of a stream's last event."""
    error = json.loads(text)["error"]
    assert {"message", "type", "param", "code"} <= error.keys() and error["message"] and error["code"], "I7"
    assert not _INSIDE.search(text), "I7"
    assert sent is None or sent not in text, "I7"
