"""What must hold of a `rootstock serve` in a process of its own, after a fault as before it: I1 to I8, from outside.

Owns what a server without keys answers and keeps while nothing is asked of it. Knows its routes and the layout of its
data directory, and nothing of its process: the next server on the same data is held against what the first one was.
"""

import hashlib
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from adapters.manifest import AdapterId
from adapters.recovery import examine
from adapters.registry import Registry
from adapters.store import BlobStore
from server.datadir import DataDir
from tests.support.http import eventually
from tests.support.invariants import check_reply
from tests.support.real_engine_watch import said
from tests.support.surroundings import Surroundings

_HEX = "[0-9a-f]{64}"
_PLACES = (
    rf"adapters/sha256/[0-9a-f]{{2}}/{_HEX}/(adapter_config|adapter_model|manifest|label)\.\w+",
    rf"adapters/names/{_HEX}\.json",
    r"uploads/resumable/[0-9a-f]{32}/(session\.json|config|weights)",
    r"(registry|usage|keys)\.sqlite(-wal|-shm)?",
    r"fingerprints/[0-9a-f]{32}\.json",
    r"kernels/.*",
    r"keys\.pepper|lock",
)
_PLACE = re.compile("|".join(_PLACES))
_HELD = ("rootstock_sequences", "rootstock_kv_blocks", "rootstock_answers_in_progress")


class ServedWatch:
    """Takes down how things are when it is made, over a server that is idle, and compares from then on.

    `canary` is an adapter that nobody touches meanwhile. `aside` are folders beside the data that a test writes to, and
    `spoilt` is the adapter whose bytes it damages.
    """

    def __init__(
        self, http: httpx.Client, model: Path, data: Path, canary: str, *aside: Path, spoilt: AdapterId | None = None
    ) -> None:
        self._model, self._data, self._canary, self._spoilt = model, data, canary, spoilt
        self._weights = self._digests()
        self._answers = self._said(http)
        assert self._answers[canary] != self._answers[""], "a canary that sings what the base sings tells nothing"
        self._around = Surroundings(data.parent, data, *aside)

    def check(self, http: httpx.Client, *replies: httpx.Response) -> None:
        """After `replies` to a client of the server that runs now."""
        for reply in replies:
            check_reply(reply)  # I7, I8
        assert self._digests() == self._weights, "I1: the files"
        assert self._said(http) == self._answers, "I1 or I2: the answers"  # and I4
        eventually(lambda: self._held(http) == 0)  # I5
        self._around.check()  # I3
        self.check_data()

    def check_data(self) -> None:
        """I3 and I6, and I2 of what is stored; also when no server runs."""
        files = [str(path.relative_to(self._data)) for path in self._data.rglob("*") if not path.is_dir()]
        spoilt = f"adapters/quarantine/{(self._spoilt or '-').removeprefix('sha256:')}/"
        odd = [name for name in files if not _PLACE.fullmatch(name) and not name.startswith(spoilt)]
        assert not odd, f"I3: {odd}"
        kept = DataDir(self._data)
        store = BlobStore(kept.blobs)
        found = examine(kept.registry, store)
        damaged = tuple(id for id in found.corrupt if id != self._spoilt)
        assert replace(found, corrupt=damaged).sound, f"I2 or I6: {found}"
        with closing(Registry(kept.registry_url)) as registry:
            assert set(store.ids()) == registry.ids(), "I6"

    def _said(self, http: httpx.Client) -> dict[str, list[int]]:
        return {model: said(http, model) for model in (self._canary, "")}

    def _held(self, http: httpx.Client) -> float:
        """Sequences that run or wait, blocks in use, and answers under way."""
        text = http.get("/metrics").text
        found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        held = [each.value for each in found if each.name in _HELD and each.labels.get("state") != "total"]
        assert len(held) == 4, "two states of sequences, the used blocks, and the answers"
        return sum(held)

    def _digests(self) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(self._model.iterdir())}
