"""Which adapter lives in which tier: disk, host memory, device.

Owns the decisions only: who is fetched, placed, evicted. Moves no bytes, knows no torch and no requests;
the engine says who is running and who is wanted, and obeys the plan at a step boundary.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from adapters.manifest import AdapterId


class Tier(StrEnum):
    DISK = "disk"
    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What to do before the next forward, in this order: leave the device, leave the host, fetch, place."""

    off_device: tuple[AdapterId, ...] = ()
    off_host: tuple[AdapterId, ...] = ()
    fetch: tuple[AdapterId, ...] = ()
    place: tuple[AdapterId, ...] = ()


@dataclass(slots=True)
class _Tier:
    """A byte budget and its tenants, least recently used first."""

    budget: int
    held: dict[AdapterId, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(self.held.values())

    def copy(self) -> "_Tier":
        return _Tier(self.budget, dict(self.held))

    def touch(self, adapter: AdapterId) -> None:
        if adapter in self.held:
            self.held[adapter] = self.held.pop(adapter)

    def room_for(self, size: int, stays: Callable[[AdapterId], bool]) -> tuple[AdapterId, ...] | None:
        """The least recently used tenants that may leave and whose leaving makes room; None if that is not enough."""
        missing = self.used + size - self.budget
        leaving: list[AdapterId] = []
        for adapter, held in self.held.items():
            if missing <= 0:
                break
            if not stays(adapter):
                leaving.append(adapter)
                missing -= held
        return tuple(leaving) if missing <= 0 else None


class Residency:
    """Two byte budgets over an unbounded disk.

    An adapter is fetched (disk to host, in the background), then placed (host to device). Its host copy may
    leave while it is on the device. Least recently used leaves first; an adapter that is pinned, held for the
    merged weights, or running never leaves the device. A fetch reserves its host bytes when it starts. At most
    `max_fetches` are under way, so that what is wanted soonest is never behind a long line of others.
    """

    def __init__(self, device_bytes: int, host_bytes: int, max_fetches: int = sys.maxsize) -> None:
        self._max_fetches = max_fetches
        self._device = _Tier(device_bytes)
        self._host = _Tier(host_bytes)
        self._fetching: dict[AdapterId, int] = {}
        self._pinned: dict[AdapterId, int] = {}
        self._held: dict[AdapterId, int] = {}
        self._changes = 0

    # Queries

    @property
    def changes(self) -> int:
        """How often anything moved: what was read of the tiers before the last change is out of date."""
        return self._changes

    def tier(self, adapter: AdapterId) -> Tier:
        if adapter in self._device.held:
            return Tier.DEVICE
        return Tier.HOST if adapter in self._host.held and adapter not in self._fetching else Tier.DISK

    def on_device(self, adapter: AdapterId) -> bool:
        return adapter in self._device.held

    @property
    def device_used(self) -> int:
        return self._device.used

    @property
    def host_used(self) -> int:
        return self._host.used

    @property
    def device_budget(self) -> int:
        return self._device.budget

    @property
    def host_budget(self) -> int:
        return self._host.budget

    @property
    def pinned(self) -> frozenset[AdapterId]:
        return frozenset(self._pinned)

    def is_fetching(self, adapter: AdapterId) -> bool:
        return adapter in self._fetching

    @property
    def idle(self) -> bool:
        """Whether no fetch is under way."""
        return not self._fetching

    def residents(self) -> Iterator[tuple[AdapterId, Tier, int]]:
        """Everything above disk with its size in bytes, most recently used first, device before host."""
        for adapter, size in reversed(self._device.held.items()):
            yield adapter, Tier.DEVICE, size
        for adapter, size in reversed(self._host.held.items()):
            if adapter not in self._device.held and adapter not in self._fetching:
                yield adapter, Tier.HOST, size

    def fits(self, adapter: AdapterId, size: int) -> bool:
        """Whether `adapter`, of `size` bytes, can ever be served beside those that never leave."""
        return size <= self._host.budget and size + self.kept_bytes(adapter) <= self._device.budget

    def kept_bytes(self, adapter: AdapterId) -> int:
        """The device bytes that others than `adapter` never give up, those included that are still to be placed."""
        return sum(size for other, size in (self._pinned | self._held).items() if other != adapter)

    def plan(
        self,
        sizes: Mapping[AdapterId, int],
        running: Collection[AdapterId],
        wanted: Sequence[AdapterId],
        warm: Sequence[AdapterId] = (),
    ) -> AdapterPlan:
        """Decide the next moves; `sizes` holds the bytes of every adapter named.

        `running` never leaves the device. `wanted` is served in order: an earlier one may push out what neither
        runs nor is wanted earlier. `warm` only takes room that is free.
        """
        if all(adapter in self._device.held for adapter in (*wanted, *warm)):  # nearly every step of a settled server
            return AdapterPlan()
        draft = _Draft(self._device.copy(), self._host.copy())
        for adapter in reversed(wanted):  # what is wanted soonest leaves last
            draft.device.touch(adapter)
            draft.host.touch(adapter)
        stays_on_device = {*running, *self._pinned, *self._held}
        stays_on_host = set(self._fetching)
        for adapter in wanted:
            self._advance(draft, adapter, sizes[adapter], stays_on_device.__contains__, stays_on_host.__contains__)
            stays_on_device.add(adapter)
            if not self.on_device(adapter) or adapter not in draft.device.held:  # then its host copy is not to spare
                stays_on_host.add(adapter)
        for adapter in warm:
            self._advance(draft, adapter, sizes[adapter], _everyone, _everyone)
        return draft.plan()

    def _advance(
        self,
        draft: "_Draft",
        adapter: AdapterId,
        size: int,
        stays_on_device: Callable[[AdapterId], bool],
        stays_on_host: Callable[[AdapterId], bool],
    ) -> None:
        """Bring `adapter` one tier closer, if what may leave makes room for it."""
        if adapter in draft.device.held or adapter in self._fetching:
            return
        if adapter in draft.host.held:
            draft.place(adapter, size, stays_on_device)
        elif len(self._fetching) + draft.num_fetches < self._max_fetches:
            draft.fetch(adapter, size, stays_on_host)

    # Commands

    def apply(self, plan: AdapterPlan, sizes: Mapping[AdapterId, int], used: Iterable[AdapterId] = ()) -> None:
        """Make a plan of this residency's own come true, and note who was `used` in this step."""
        self._changes += plan != AdapterPlan()
        for adapter in plan.off_device:
            del self._device.held[adapter]
        for adapter in plan.off_host:
            del self._host.held[adapter]
        for adapter in plan.fetch:
            self._host.held[adapter] = self._fetching[adapter] = sizes[adapter]
        for adapter in plan.place:
            self._device.held[adapter] = sizes[adapter]
        for adapter in used:
            self._device.touch(adapter)
            self._host.touch(adapter)

    def fetched(self, adapter: AdapterId) -> None:
        """Its bytes have arrived in host memory."""
        self._changes += 1
        del self._fetching[adapter]

    def fetch_failed(self, adapter: AdapterId) -> None:
        self._changes += 1
        del self._fetching[adapter]
        del self._host.held[adapter]

    def place_failed(self, adapter: AdapterId) -> None:
        """It did not reach the device after all."""
        self._changes += 1
        del self._device.held[adapter]

    def pin(self, adapter: AdapterId, size: int) -> None:
        """Keep it on the device from when it gets there. Ask `fits` first."""
        self._changes += 1
        self._pinned[adapter] = size

    def unpin(self, adapter: AdapterId) -> None:
        self._changes += 1
        self._pinned.pop(adapter, None)

    def hold(self, adapter: AdapterId) -> None:
        """Keep an adapter that is on the device while it is merged, so that unmerging never waits for a read."""
        self._held[adapter] = self._device.held[adapter]

    def let_go(self, adapter: AdapterId) -> None:
        del self._held[adapter]

    def forget(self, adapter: AdapterId) -> None:
        """Drop an adapter that was deleted from both tiers. It must not be fetching."""
        assert adapter not in self._fetching, "wait for the fetch to end"
        assert adapter not in self._held, "unmerge it first"
        self.unpin(adapter)
        self._device.held.pop(adapter, None)
        self._host.held.pop(adapter, None)

    def check_integrity(self) -> None:
        """Assert both budgets and that whatever is being fetched has its room."""
        assert self._device.used <= self._device.budget
        assert self._host.used <= self._host.budget
        assert self._fetching.keys() <= self._host.held.keys()
        assert self._held.keys() <= self._device.held.keys()


def _everyone(_: AdapterId) -> bool:
    return True


@dataclass(slots=True)
class _Draft:
    """A plan in the making, on copies of both tiers."""

    device: _Tier
    host: _Tier
    _off_device: list[AdapterId] = field(default_factory=list)
    _off_host: list[AdapterId] = field(default_factory=list)
    _fetch: list[AdapterId] = field(default_factory=list)
    _place: list[AdapterId] = field(default_factory=list)

    @property
    def num_fetches(self) -> int:
        return len(self._fetch)

    def fetch(self, adapter: AdapterId, size: int, stays: Callable[[AdapterId], bool]) -> None:
        leaving = self.host.room_for(size, stays)
        if leaving is not None:
            self._off_host += _leave(self.host, leaving)
            self.host.held[adapter] = size
            self._fetch.append(adapter)

    def place(self, adapter: AdapterId, size: int, stays: Callable[[AdapterId], bool]) -> None:
        leaving = self.device.room_for(size, stays)
        if leaving is not None:
            self._off_device += _leave(self.device, leaving)
            self.device.held[adapter] = size
            self._place.append(adapter)

    def plan(self) -> AdapterPlan:
        return AdapterPlan(tuple(self._off_device), tuple(self._off_host), tuple(self._fetch), tuple(self._place))


def _leave(tier: _Tier, leaving: Iterable[AdapterId]) -> tuple[AdapterId, ...]:
    left = tuple(leaving)
    for adapter in left:
        del tier.held[adapter]
    return left
