"""A catalog over a folder, the changes that may be interrupted, and what must hold after any interruption."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from adapters.canary import Canary
from adapters.catalog import Catalog
from adapters.disk import Disk
from adapters.dossier import Dossier
from adapters.dossier import decode as decode_dossier
from adapters.dossier_files import DOSSIER_FOLDER
from adapters.evaluations import Score
from adapters.labels import decode
from adapters.manifest import AdapterId
from adapters.registry import Registry
from adapters.sharing import EVERYBODY
from adapters.store import BlobStore
from tests.support.server_rig import served, write_adapter

SCORE = Score("0" * 64, "tiny-base", -1.5, 0.5, 2, 8)
WEIGHTS_FILE = "adapter_model.safetensors"


class Storage:
    """Registry, store and catalog, without any server. `close` when done."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.sources = root.parent / "sources"
        self.registry = Registry(f"sqlite:///{root / 'registry.sqlite'}", disk)
        self.store = BlobStore(root / "blobs", disk)
        self.catalog = Catalog(self.registry, self.store, served(), frozenset())

    def close(self) -> None:
        self.registry.close()

    def add(self, name: str, seed: int, alias: str | None = None) -> None:
        self.catalog.add_directory(name, write_adapter(self.sources / str(seed), seed), alias)

    def facts(self) -> tuple[object, ...]:
        """What a client can see, and what is on disk for it."""
        versions = [(v.name, v.number, v.id, v.aliases) for v in self.registry.every()]
        blobs = sorted(self.store.ids()), sorted(self.store.quarantined())
        return versions, self.registry.residents(), blobs, self.known()

    def known(self) -> object:
        """What dossiers keep, but for the times of alias moves."""
        return [_timeless(dossier) for dossier in self.registry.dossiers().values()]

    def dossiers(self) -> dict[str, Dossier]:
        """As they are on disk."""
        told = [decode_dossier(path.read_bytes()) for path in (self.root / "blobs" / DOSSIER_FOLDER).iterdir()]
        return {dossier.name: dossier for dossier in told}

    def check(self) -> None:
        """After a start: each row has its blob and each blob its row (I6), its label and dossier, and nothing is left
        over (I3).
        """
        swept = self.catalog.sweep()
        assert not swept.missing, f"rows without blobs: {swept.missing}"
        stored, corrupt = set(self.store.ids()), self.store.quarantined()
        assert stored | corrupt == self.registry.ids(), "rows and blobs disagree"
        assert not list((self.root / "blobs" / "tmp").iterdir()), "there are leftovers"
        for id in stored | corrupt:
            label = self.store.label(id)
            assert label is not None, f"{id} has no label"
            told = [(one.name, one.number, one.aliases) for one in decode(label)]
            assert told == [(v.name, v.number, v.aliases) for v in self.registry.with_content(id)], (
                "a label lags behind"
            )
        assert self.dossiers() == self.registry.dossiers(), "a dossier lags behind"
        again = self.catalog.sweep()
        assert not again.removed and not again.temporaries, "the second sweep finds what the first one left"


def _timeless(dossier: Dossier) -> object:
    moves = [
        (move["alias"], move["from_number"], move["to_number"], move["undone"] is not None)
        for move in dossier.kept["alias_moves"]
    ]
    return {**asdict(dossier), "kept": {**dossier.kept, "alias_moves": moves}}


def damage_blob(store: BlobStore, id: AdapterId) -> None:
    """Flip one bit of a stored adapter's weights."""
    weights = store.path(id) / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def furnish(root: Path) -> None:
    """Names that share a content, an alias, residents, a blob in quarantine and one about to go there."""
    with closing(Storage(root)) as storage:
        storage.add("pirate", 0, alias="prod")
        storage.add("pirate", 1)
        storage.add("sql", 0)
        storage.add("broken", 2)
        storage.add("rotten", 5)
        for name in ("broken", "rotten"):
            damage_blob(storage.store, storage.catalog.resolve(name).id)
        storage.store.quarantine_if_damaged(storage.catalog.resolve("broken").id)
        storage.catalog.remember_residents([storage.catalog.resolve("sql").id])
        for tenant in ("acme", "other"):
            storage.catalog.share("pirate", tenant)
        storage.catalog.share("sql", EVERYBODY)
        storage.catalog.set_pinned("sql", True)
        storage.catalog.set_alias("pirate", "next", 1, canary=Canary(2, 0.25))
        storage.catalog.set_alias("pirate", "next", 2)
        storage.catalog.set_alias("pirate", "tried", 1, canary=Canary(2, 0.25))
        storage.catalog.attach_eval(storage.catalog.resolve("sql"), b'{"prompt": "a", "completion": "b"}\n')
        storage.catalog.remember_score(storage.catalog.resolve("sql"), SCORE)
        storage.add("gone", 6)
        storage.add("gone", 7)
        storage.catalog.delete("gone")


CHANGES: Mapping[str, Callable[[Storage], None]] = {
    "upload": lambda storage: storage.add("new", 3, alias="prod"),
    "upload a version and move its alias": lambda storage: storage.add("pirate", 4, alias="prod"),
    "move an alias": lambda storage: _ignore(storage.catalog.set_alias("pirate", "prod", 2)),
    "delete": lambda storage: _ignore(storage.catalog.delete("pirate")),
    "share": lambda storage: storage.catalog.share("sql", "new"),
    "unshare": lambda storage: storage.catalog.unshare("pirate", "acme"),
    "pin": lambda storage: _ignore(storage.catalog.set_pinned("pirate", True)),
    "unpin": lambda storage: _ignore(storage.catalog.set_pinned("sql", False)),
    "try a canary": lambda storage: _ignore(storage.catalog.set_alias("pirate", "prod", 1, canary=Canary(2, 0.5))),
    "end a canary": lambda storage: _ignore(storage.catalog.roll_back("pirate", "tried")),
    "roll back": lambda storage: _ignore(storage.catalog.roll_back("pirate", "next")),
    "remove an alias": lambda storage: storage.catalog.delete_alias("pirate", "prod"),
    "attach an eval file": lambda storage: storage.catalog.attach_eval(storage.catalog.resolve("pirate"), b"{}\n"),
    "note a score": lambda storage: storage.catalog.remember_score(storage.catalog.resolve("pirate"), SCORE),
    "note of an eviction": lambda storage: storage.catalog.remember_residents([]),
    "quarantine": lambda storage: _ignore(
        storage.store.quarantine_if_damaged(storage.catalog.resolve("rotten").id),
    ),
    "repair": lambda storage: storage.add("broken", 2),
}

ALIKE = frozenset({"pin", "unpin", "try a canary", "roll back", "remove an alias", "note a score"})
"""Changes that call the disk exactly as others do: a commit, and a dossier that follows it."""


def _ignore(result: object) -> None:
    """A change is made for its effect."""
