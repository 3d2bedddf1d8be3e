"""Adapters come, go, move and merge at random while requests run; every answer is what its adapter says alone."""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.leases import Lease
from adapters.manifest import AdapterId
from adapters.provenance import ServedBase
from adapters.registry import Registry
from engine.errors import AdapterTooLarge
from engine.events import AdapterEvicted, Event
from engine.sequence import Output, SamplingParams
from tests.support.adapters import ATTENTION, KINDS, MLP, write_adapter
from tests.support.engine_rig import Answer, EngineRig
from tests.support.models import tiny_model_dir

NAMES = ("red", "green", "blue", "cyan", "pink", "gold")
PROMPTS = [[11, 45, 100, 3, 77], [5, 6, 7] * 6, [42]]
PARAMS = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)


class Tenantry:
    """An engine with a catalog, a few written adapters, and what each of them says alone."""

    def __init__(self, root: Path, variants: int, device_bytes: int) -> None:
        model = tiny_model_dir("llama", root)
        self.events: list[Event] = []
        self.rig = EngineRig.load(
            model, root / "served", device_bytes=device_bytes, host_bytes=device_bytes, observe=self.events.append
        )
        shape = self.rig.base.shape
        self.directories = [
            write_adapter(
                root / f"adapter-{n}",
                shape,
                kind=KINDS[n % len(KINDS)],
                rank=1 + n,
                targets=(ATTENTION, MLP)[n % 2],
                seed=n,
                scale=0.3,
            )
            for n in range(variants)
        ]
        self.catalog = Catalog(
            Registry(f"sqlite:///{root}/registry.db"),
            self.rig.store,
            ServedBase(shape, weights=lambda: ""),
            reserved=frozenset({"base"}),
        )
        self.catalog.on_forgotten = self.rig.engine.forget
        self._alone = EngineRig.load(model, root / "alone")
        self._said: dict[tuple[AdapterId | None, int], tuple[int, ...]] = {}
        for directory in self.directories:
            self._alone.add(directory)

    def alone(self, adapter: AdapterId | None, prompt: int) -> tuple[int, ...]:
        """The reference: one request at a time in an engine of its own, all adapters resident, nothing merged."""
        if (adapter, prompt) not in self._said:
            request = self._alone.submit(PROMPTS[prompt], PARAMS, adapter)
            self._said[adapter, prompt] = self._alone.run()[request].tokens
        return self._said[adapter, prompt]

    def close(self) -> None:
        self.rig.close()
        self._alone.close()


@pytest.fixture
def tenantry(tmp_path: Path) -> Iterator[Tenantry]:
    tenantry = Tenantry(tmp_path, variants=8, device_bytes=110_000)  # room for about three of the eight
    yield tenantry
    tenantry.close()


@pytest.mark.parametrize("seed", range(3))
def test_every_answer_equals_the_single_adapter_reference(tenantry: Tenantry, seed: int) -> None:
    life = _Life(tenantry, random.Random(seed))
    for _ in range(120):
        life.turn()
    life.settle()
    assert life.checked >= 30
    assert any(isinstance(event, AdapterEvicted) and event.tier == "device" for event in tenantry.events)


class _Life:
    """One random history: at each turn something happens to an adapter, a request may come, a step is made."""

    def __init__(self, tenantry: Tenantry, rng: random.Random) -> None:
        self._tenantry, self._rng = tenantry, rng
        self._running: dict[str, tuple[AdapterId | None, int, Lease | None]] = {}
        self._outputs: dict[str, list[Output]] = {}
        self.checked = 0

    def turn(self) -> None:
        happening = self._rng.choice([self._upload, self._delete, self._pin, self._unpin, self._merge, self._unmerge])
        if self._rng.random() < 0.5:
            happening()
        if self._rng.random() < 0.5 and len(self._running) < 12:
            self._ask()
        self._step()

    def settle(self) -> None:
        for version in self._tenantry.catalog.newest():
            self._tenantry.rig.engine.tiers.residency.unpin(version.id)
        while self._running:
            self._step()

    def _upload(self) -> None:
        """A new name, or another version of a name in use."""
        directory = self._rng.choice(self._tenantry.directories)
        self._tenantry.catalog.add_directory(self._rng.choice(NAMES), directory)

    def _delete(self) -> None:
        version = self._some()
        if version is not None and self._rng.random() < 0.3:
            self._tenantry.catalog.delete(version)

    def _pin(self) -> None:
        name = self._some()
        residency = self._tenantry.rig.engine.tiers.residency
        if name is not None and not residency.pinned:
            with suppress(AdapterTooLarge):
                self._tenantry.rig.engine.tiers.pin(self._tenantry.catalog.resolve(name).id)

    def _unpin(self) -> None:
        residency = self._tenantry.rig.engine.tiers.residency
        for adapter in residency.pinned:
            residency.unpin(adapter)

    def _merge(self) -> None:
        name = self._some()
        if name is not None and self._tenantry.rig.engine.merged is None:
            with suppress(AdapterTooLarge):
                self._tenantry.rig.engine.merge(self._tenantry.catalog.resolve(name).id)

    def _unmerge(self) -> None:
        self._tenantry.rig.engine.unmerge()

    def _ask(self) -> None:
        name = self._some() if self._rng.random() < 0.8 else None
        lease = None if name is None else self._tenantry.catalog.lease(name)
        adapter = None if lease is None else lease.version.id
        prompt = self._rng.randrange(len(PROMPTS))
        try:
            request = self._tenantry.rig.submit(PROMPTS[prompt], PARAMS, adapter)
        except AdapterTooLarge:  # what is pinned and merged leaves it no room: refused at once, not half served
            assert lease is not None
            lease.release()
            return
        self._running[request] = (adapter, prompt, lease)

    def _step(self) -> None:
        for request, output in self._tenantry.rig.step():
            self._outputs.setdefault(request, []).append(output)
            if output.finish_reason is not None:
                self._check(request)

    def _check(self, request: str) -> None:
        adapter, prompt, lease = self._running.pop(request)
        answer = Answer.of(self._outputs.pop(request))
        assert answer.error_code is None
        assert answer.tokens == self._tenantry.alone(adapter, prompt)
        self.checked += 1
        if lease is not None:
            lease.release()

    def _some(self) -> str | None:
        names: Sequence[str] = [version.name for version in self._tenantry.catalog.newest()]
        return self._rng.choice(names) if names else None
