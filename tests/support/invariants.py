"""What must hold after every hostile case, whatever became of the request.

I1 the base is what it was; I2 another adapter's bytes are; I3 no file lies where none belongs, nothing temporary is
left; I4 the next request is answered; I6 every row has its blob and every blob its row; I7 an error has OpenAI's
envelope and repeats neither paths nor code nor what was sent; I8 a client's fault is no 5xx. What an engine holds (I5),
its weights and its answers are looked at by tests/support/house_watch.py, where there is a real one.
"""

import re
from collections.abc import Callable
from pathlib import Path

import httpx

from adapters.registry import Version
from tests.support.face import BASE, Face

_INSIDE = re.compile(r'Traceback|\.py\\?", line|/tmp/|/home/|site-packages|sqlite')
_BLOB = re.compile(r"data/blobs/sha256/[0-9a-f]{2}/[0-9a-f]{64}/(adapter_config|adapter_model|manifest|label)\.\w+")
_DOSSIER = re.compile(r"data/blobs/names/[0-9a-f]{64}\.json")
_UPLOAD = re.compile(r"uploads/resumable/[0-9a-f]{32}/(session\.json|config|weights)")
_OTHERS = re.compile(r"data/registry\.sqlite(-wal|-shm)?")


class Invariants:
    """Over one face whose data lies under `folder`. The canary is an adapter that was there before.

    `engine` checks what only a real engine can be asked.
    """

    def __init__(
        self, face: Face, http: httpx.Client, folder: Path, canary: Version, engine: Callable[[], None] | None = None
    ) -> None:
        self._face, self._http, self._folder, self._canary = face, http, folder, canary
        self._engine = engine
        base = face.catalog.base
        self._base = (base.weights, dict(base.shape.linears), base.shape.num_layers)

    def check(self, *replies: httpx.Response, sent: str | None = None) -> None:
        """After `replies`, none of which may repeat `sent`."""
        for reply in replies:
            check_reply(reply, sent)
        base = self._face.catalog.base
        assert (base.weights, dict(base.shape.linears), base.shape.num_layers) == self._base, "I1"
        self._face.store.verify(self._canary.id)  # I2
        assert self._face.catalog.resolve(self._canary.name) == self._canary, "I2"
        self._check_disk()
        model = {"model": self._canary.name, "prompt": "x", "max_tokens": 1}
        assert self._http.post("/v1/completions", json=model).headers["x-rootstock-adapter"] == self._canary.id, "I4"
        assert self._http.post("/v1/completions", json=model | {"model": BASE}).status_code == 200, "I4"
        if self._engine is not None:
            self._engine()

    def _check_disk(self) -> None:
        files = [str(path.relative_to(self._folder)) for path in self._folder.rglob("*") if not path.is_dir()]
        odd = [
            name for name in files if not any(known.fullmatch(name) for known in (_BLOB, _DOSSIER, _UPLOAD, _OTHERS))
        ]
        assert not odd, f"I3: {odd}"
        assert list((self._folder / "data" / "blobs" / "tmp").iterdir()) == [], "I3: something temporary is left"
        assert set(self._face.store.ids()) == self._face.registry.ids(), "I6"


def check_reply(reply: httpx.Response, sent: str | None = None) -> None:
    assert reply.status_code < 500, "I8"
    if reply.status_code < 400:
        return
    error = reply.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys() and error["message"], "I7"
    assert not _INSIDE.search(reply.text), "I7"
    assert sent is None or sent not in reply.text, "I7"
