"""Lives of a catalog: every change to it, requests, evictions and crashes in any order.

A crash comes between two changes or in the middle of one. A real catalog on disk, and the real engine between a fake
runner and a fake mover whose device holds two adapters. After every step: I2, an untouched adapter keeps its bytes
and its version; I3, nothing temporary is left; I5, blocks, slots and references add up; I6, every row has its blob,
and every blob a row or somebody who runs on it. Run as `python -m tests.adapters.test_catalog_machine --seconds N`
for as long as you like.
"""

import argparse
import copy
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from adapters.canary import Canary
from adapters.catalog import Catalog
from adapters.condition import Condition
from adapters.errors import VersionInUse
from adapters.leases import Lease
from adapters.registry import Registry
from adapters.store import BlobStore
from adapters.version import Version
from engine.sequence import FinishReason, Request
from tests.support.disks import FaultyDisk, Moment
from tests.support.engine_fakes import Bench, expected_tokens
from tests.support.server_rig import BASE, served, write_adapter

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
    pinned: bool = False

    def move(self, number: int | None, canary: int | None = None) -> None:
        if number != self.prod:
            self.back.append(self.prod)
        self.prod, self.canary = number, canary

    def forget(self, number: int) -> None:
        """`prod` has never pointed at this version: it went straight to what came after."""
        del self.contents[number]
        *self.back, self.prod = [at for at, _ in groupby(at for at in [*self.back, self.prod] if at != number)]

    @property
    def spare(self) -> list[int]:
        """The versions that may be deleted: nothing points at them, and others stay."""
        return [each for each in self.contents if each not in (self.prod, self.canary) and len(self.contents) > 1]


class Crash(BaseException):
    """The process ends here: whoever catches it and calls the disk again meets it again."""


def crash() -> None:
    raise Crash


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
        version, created = self._upload(name, content, aliased)
        assert created == self._uploaded(name, content, aliased)
        if created:
            assert version.number == self.last[name], "numbers are never reused"

    def _upload(self, name: str, content: int, aliased: bool) -> tuple[Version, bool]:
        return self.catalog.add_directory(name, source(content), "prod" if aliased else None)

    def _uploaded(self, name: str, content: int, aliased: bool) -> bool:
        """What it comes to; whether there is a new version."""
        known = self.names.setdefault(name, Name())
        numbers = {had: number for number, had in known.contents.items()}
        if created := content not in numbers:
            self.last[name] = numbers[content] = self.last.get(name, 0) + 1
            known.contents[self.last[name]] = content
        if aliased:
            known.move(numbers[content])
        return created

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

    @precondition(lambda self: self._aliased())
    @rule(data=st.data())
    def delete_alias(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._aliased()))
        self.catalog.delete_alias(name, "prod")
        self.names[name].move(None)

    @precondition(lambda self: self.names)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        name, known = self._some(data)
        self.catalog.set_pinned(name, pinned)
        known.pinned = pinned

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name, _ = self._some(data)
        assert self.catalog.delete(name) == (name in {version.name for version in self._run()})
        del self.names[name]

    @precondition(lambda self: self._spare())
    @rule(data=st.data())
    def delete_version(self, data: st.DataObject) -> None:
        name, number = data.draw(st.sampled_from(self._spare()))
        in_use = (name, number) in {(version.name, version.number) for version in self._run()}
        assert self.catalog.delete_version(name, number) == in_use
        self.names[name].forget(number)

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def delete_a_version_in_use(self, data: st.DataObject) -> None:
        """One that an alias points at, its canary, or the only one."""
        name, known = self._some(data)
        if kept := sorted(known.contents.keys() - known.spare):
            with pytest.raises(VersionInUse):
                self.catalog.delete_version(name, data.draw(st.sampled_from(kept)))

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
        assert not self.running and self.catalog.leases.idle, "I5"
        assert set(self.store.ids()) == self.registry.ids(), "I6"

    @rule()
    def crash_and_restart(self) -> None:
        """Nothing is let go, what ran is lost, and the next start puts the disk in order."""
        self.registry.close()
        self._open()
        swept = self.catalog.sweep()
        assert swept.missing == () and swept.corrupt == ()
        assert set(self.store.ids()) == self.registry.ids(), "I6"

    @rule(data=st.data(), moment=st.sampled_from(["before", "after"]))
    def crash_in_a_change(self, data: st.DataObject, moment: Moment) -> None:
        """At one of the disk's calls, and no later one is made; the next start finds the old state or the new."""
        change, come_to = self._change(data)
        at = data.draw(st.integers(0, 18 if change.func == self._upload else 5))  # about as many as it makes
        old = copy.deepcopy((self.names, self.last))
        come_to()
        self.disk.end(at, moment)
        try:
            change()
            died = False
        except Crash:
            died = True
        self.disk.arm(None)
        self.crash_and_restart()
        if died and not self._means(self.names):
            self.names, self.last = old

    def _change(self, data: st.DataObject) -> tuple[partial[Any], Callable[[], object]]:
        """One of those that write, and what it comes to."""
        name, content, aliased = data.draw(NAMES), data.draw(CONTENTS), data.draw(st.booleans())
        kinds = ["upload", *(["delete", "pin", "move"] if name in self.names else [])]
        kinds += ["delete version"] * (name in dict(self._spare()))
        kind = data.draw(st.sampled_from(kinds + ["delete alias"] * (name in self._aliased())))
        if kind == "upload":
            return partial(self._upload, name, content, aliased), partial(self._uploaded, name, content, aliased)
        known = self.names[name]
        if kind == "delete":
            return partial(self.catalog.delete, name), partial(self.names.pop, name)
        if kind == "delete version":
            number = data.draw(st.sampled_from(known.spare))
            return partial(self.catalog.delete_version, name, number), partial(known.forget, number)
        if kind == "pin":
            pinned = partial(setattr, known, "pinned", not known.pinned)
            return partial(self.catalog.set_pinned, name, not known.pinned), pinned
        if kind == "delete alias":
            return partial(self.catalog.delete_alias, name, "prod"), partial(known.move, None)
        number = data.draw(st.sampled_from(sorted(known.contents)))
        return partial(self.catalog.set_alias, name, "prod", number), partial(known.move, number)

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
        assert self._means(self.names), (self._seen(), self.names)

    @invariant()
    def the_way_back_is_what_it_should_be(self) -> None:
        for name in self._aliased():
            moves = [move.from_number for move in self.catalog.alias(name, "prod").moves if move.undone is None]
            assert moves == self.names[name].back[::-1]

    def _means(self, names: dict[str, Name]) -> bool:
        expected = {
            name: (sorted(known.contents), known.prod, known.canary, known.pinned) for name, known in names.items()
        }
        return self._seen() == expected | {"witness": ([1], None, None, False)}

    def _seen(self) -> dict[str, tuple[list[int], int | None, int | None, bool]]:
        """Of each name: its versions, where `prod` points, its canary, and whether it is pinned."""
        pinned = {version.name for version in self.registry.pinned()}
        canaries = {split.stable.name: split.canary.number for split in self.catalog.splits() if split.canary}
        seen = {}
        for name in [version.name for version in self.catalog.newest()]:
            versions = self.catalog.versions(name)
            prod = next((version.number for version in versions if "prod" in version.aliases), None)
            assert prod is None or self.catalog.resolve(f"{name}@prod").number == prod
            seen[name] = [version.number for version in versions], prod, canaries.get(name), name in pinned
        return seen

    def _open(self) -> None:
        self.disk = FaultyDisk(crash)
        self.registry = Registry(f"sqlite:///{self.root / 'registry.db'}", self.disk)
        self.store = BlobStore(self.root / "blobs", self.disk)
        self.catalog = Catalog(self.registry, self.store, served(), frozenset({BASE}))
        self.bench = Bench(adapters={}, device=2 * SIZE + 10, host=3 * SIZE)
        self.catalog.on_forgotten = self.bench.engine.forget
        self.running: dict[str, tuple[Lease, Request]] = {}

    def _spare(self) -> list[tuple[str, int]]:
        return [(name, number) for name, known in self.names.items() for number in known.spare]

    def _run(self) -> list[Version]:
        """What requests run on."""
        return [lease.version for lease, _ in self.running.values()]

    def _aliased(self) -> list[str]:
        return [name for name, known in self.names.items() if known.prod is not None]

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
    max_examples=10, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def main() -> None:
    options = argparse.ArgumentParser(description="Live many lives of a catalog, each with other crashes.")
    options.add_argument("--seconds", type=float, default=60)
    until, lives = time.monotonic() + options.parse_args().seconds, 0
    longer = settings(TestLife.settings, max_examples=25, stateful_step_count=50, database=None)
    while time.monotonic() < until:
        run_state_machine_as_test(Life, settings=longer)
        lives += 25
    print(f"{lives} lives")


if __name__ == "__main__":
    main()
