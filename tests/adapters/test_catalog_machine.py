"""Uploads, aliases, canaries, promotes, rollbacks, deletions, requests, evictions and crashes in any order.

A real catalog on disk, and the real engine between a fake runner and a fake mover whose device holds two adapters.
After every step: I2, an untouched adapter keeps its bytes and its version; I3, nothing temporary is left; I5, blocks,
slots and references add up; I6, every row has its blob, and every blob a row or somebody who runs on it.
"""

import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapters.canary import Canary
from adapters.catalog import Catalog
from adapters.condition import Condition
from adapters.lease import Lease
from adapters.registry import Registry
from adapters.store import BlobStore
from engine.sequence import FinishReason, Request
from tests.support.engine_fakes import Bench, expected_tokens
from tests.support.face import BASE, served, write_adapter

NAMES, CONTENTS = st.sampled_from("ab"), st.integers(0, 3)
WITNESS = 9  # the content that nobody touches
KEYS = [f"user:{number}" for number in range(8)]
SIZE = 40  # two fit the device of Bench


@cache
def source(content: int) -> Path:
    return write_adapter(Path(tempfile.mkdtemp(prefix="rootstock-machine-")), content)


@dataclass
class Name:
    """What a name should mean: contents by number, and for `prod` where it points, its canary, and the way back."""

    contents: dict[int, int] = field(default_factory=dict)
    prod: int | None = None
    canary: int | None = None
    back: list[int | None] = field(default_factory=list)

    def move(self, number: int, canary: int | None = None) -> None:
        if number != self.prod:
            self.back.append(self.prod)
        self.prod, self.canary = number, canary


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="rootstock-machine-"))
        self.names: dict[str, Name] = {}
        self.last: dict[str, int] = {}
        self.asked = 0
        self._open()
        self.witness = self.catalog.add_directory("witness", source(WITNESS))[0]

    def teardown(self) -> None:
        self.registry.close()
        shutil.rmtree(self.root)

    @rule(name=NAMES, content=CONTENTS, aliased=st.booleans())
    def upload(self, name: str, content: int, aliased: bool) -> None:
        version, created = self.catalog.add_directory(name, source(content), "prod" if aliased else None)
        known = self.names.setdefault(name, Name())
        assert created == (content not in known.contents.values())
        if created:
            self.last[name] = self.last.get(name, 0) + 1
            assert version.number == self.last[name], "numbers are never reused"
            known.contents[version.number] = content
        if aliased and version.number != known.prod:
            known.move(version.number)
        elif aliased:
            known.canary = None

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        """On the condition that the alias is where it was, as the route does after it has compared the two."""
        name, known = self._some(data)
        number = data.draw(st.sampled_from(sorted(known.contents)))
        asked = Condition(absent=True) if known.prod is None else Condition(frozenset({known.prod}))
        assert "prod" in self.catalog.set_alias(name, "prod", number, asked).aliases
        known.move(number)

    @precondition(lambda self: any(len(known.contents) > 1 for known in self.names.values()))
    @rule(data=st.data(), weight=st.sampled_from([0.1, 0.5, 0.9]))
    def canary(self, data: st.DataObject, weight: float) -> None:
        name = data.draw(st.sampled_from([name for name, known in self.names.items() if len(known.contents) > 1]))
        known = self.names[name]
        stable, tried = data.draw(st.permutations(sorted(known.contents)))[:2]
        self.catalog.set_alias(name, "prod", stable, canary=Canary(tried, weight))
        known.move(stable, tried)

    @precondition(lambda self: self._able_to_go_back())
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._able_to_go_back()))
        known = self.names[name]
        if known.canary is None:
            known.prod = known.back.pop()
        known.canary = None
        assert self.catalog.roll_back(name, "prod").number == known.prod

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name, _ = self._some(data)
        self.catalog.delete(name)
        del self.names[name]

    @precondition(lambda self: self.names)
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def infer(self, data: st.DataObject, key: str) -> None:
        name, known = self._some(data)
        ref = f"{name}@prod" if known.prod is not None and data.draw(st.booleans()) else name
        lease = self.catalog.lease(ref, key)
        assert lease.version == self.catalog.resolve(ref, key), "a key keeps to its version"
        allowed = {known.prod, known.canary} if ref != name else {max(known.contents)}
        assert lease.version.number in allowed
        self.bench.mover.sizes[lease.version.id] = SIZE  # type: ignore[index]
        self.asked += 1
        id = str(self.asked)
        self.running[id] = lease, self.bench.submit(id, adapter=lease.version.id)

    @rule()
    def step(self) -> None:
        self.bench.step()
        self._let_go()

    @rule()
    def settle(self) -> None:
        self.bench.run()
        self._let_go()
        assert not self.running and not self.catalog._uses and not self.catalog._doomed, "I5"
        assert set(self.store.ids()) == self.registry.ids(), "I6"

    @rule()
    def crash_and_restart(self) -> None:
        """Nothing is let go, what ran is lost, and the next start puts the disk in order."""
        self.registry.close()
        self._open()
        swept = self.catalog.sweep()
        assert swept.missing == () and swept.corrupt == ()
        assert set(self.store.ids()) == self.registry.ids(), "I6"

    @invariant()
    def the_witness_is_what_it_was(self) -> None:
        assert self.catalog.resolve("witness") == self.witness, "I2"
        self.store.verify(self.witness.id)

    @invariant()
    def nothing_temporary_is_left(self) -> None:
        assert self.store.temporaries() == [], "I3"

    @invariant()
    def rows_have_blobs_and_blobs_have_rows_or_users(self) -> None:
        stored, named = set(self.store.ids()), self.registry.ids()
        assert named <= stored, "I6"
        assert stored - named <= {lease.version.id for lease, _ in self.running.values()}, "I6"

    @invariant()
    def names_mean_what_they_should(self) -> None:
        assert {version.name for version in self.catalog.list()} == {*self.names, "witness"}
        for name, known in self.names.items():
            assert [version.number for version in self.catalog.versions(name)] == sorted(known.contents)
            if known.prod is not None:
                assert self.catalog.resolve(f"{name}@prod").number == known.prod
        splits = {split.stable.name: split.canary and split.canary.number for split in self.catalog.splits()}
        assert splits == {name: known.canary for name, known in self.names.items() if known.canary}

    def _open(self) -> None:
        self.registry = Registry(f"sqlite:///{self.root / 'registry.db'}")
        self.store = BlobStore(self.root / "blobs")
        self.catalog = Catalog(self.registry, self.store, served(), frozenset({BASE}))
        self.bench = Bench(adapters={}, device=2 * SIZE + 10, host=3 * SIZE)
        self.catalog.on_forgotten = self.bench.engine.forget
        self.running: dict[str, tuple[Lease, Request]] = {}

    def _able_to_go_back(self) -> list[str]:
        return [name for name, known in self.names.items() if known.canary or (known.back and known.back[-1])]

    def _some(self, data: st.DataObject) -> tuple[str, Name]:
        name = data.draw(st.sampled_from(sorted(self.names)))
        return name, self.names[name]

    def _let_go(self) -> None:
        """Check what has ended, and give its adapter back."""
        for id in [id for id in self.running if self.bench.reason(id) is not None]:
            lease, request = self.running.pop(id)
            assert self.bench.reason(id) is FinishReason.LENGTH
            assert self.bench.tokens(id) == expected_tokens(request)
            lease.release()


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
