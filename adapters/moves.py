"""A step's moves between the tiers, in the making and decided.

Owns the plan, and the arithmetic of room under a byte budget. Who may leave for whom is the residency's to say.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

from adapters.device_quotas import AdapterUse, DeviceQuotas
from adapters.manifest import AdapterId


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What to do before the next forward, in this order: leave the device, leave the host, fetch, place.

    `given_up` and `taken` say what counts for which tenant from then on; `no_room` are those that neither their
    tenant's quota nor a read keeps out, but the room that others have.
    """

    off_device: tuple[AdapterId, ...] = ()
    off_host: tuple[AdapterId, ...] = ()
    fetch: tuple[AdapterId, ...] = ()
    place: tuple[AdapterId, ...] = ()
    given_up: tuple[AdapterUse, ...] = ()
    taken: tuple[AdapterUse, ...] = ()
    no_room: frozenset[AdapterUse] = field(default=frozenset(), compare=False)

    @property
    def moves(self) -> bool:
        """Whether anything changes its place."""
        return bool(self.off_device or self.off_host or self.fetch or self.place)


@dataclass(slots=True)
class Room:
    """A byte budget and the sizes of the adapters in it, least recently used first."""

    budget: int
    sizes: dict[AdapterId, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(self.sizes.values())

    def copy(self) -> "Room":
        return Room(self.budget, dict(self.sizes))

    def touch(self, adapter: AdapterId) -> None:
        if adapter in self.sizes:
            self.sizes[adapter] = self.sizes.pop(adapter)

    def room_for(
        self,
        size: int,
        stays: Callable[[AdapterId], bool],
        first: tuple[AdapterId, ...] = (),
        last: Collection[AdapterId] = (),
    ) -> tuple[AdapterId, ...] | None:
        """Those in `first`, then the least recently used that may leave until there is room, those in `last` after
        the others; None if that is not enough."""
        missing = self.used + size - self.budget - sum(self.sizes[adapter] for adapter in first)
        leaving = list(first)
        before = (item for item in self.sizes.items() if item[0] not in last)
        after = (item for item in self.sizes.items() if item[0] in last)
        for adapter, size_there in chain(before, after):  # there may be thousands, and the first few are enough
            if missing <= 0:
                break
            if not stays(adapter) and adapter not in first:
                leaving.append(adapter)
                missing -= size_there
        return tuple(leaving) if missing <= 0 else None

    def leave(self, leaving: Iterable[AdapterId]) -> None:
        for adapter in leaving:
            del self.sizes[adapter]


@dataclass(slots=True)
class Draft:
    """A plan in the making, on copies of both tiers and of the quotas."""

    device: Room
    host: Room
    quotas: DeviceQuotas
    sizes: Mapping[AdapterId, int]
    _off_device: list[AdapterId] = field(default_factory=list)
    _off_host: list[AdapterId] = field(default_factory=list)
    _fetch: list[AdapterId] = field(default_factory=list)
    _place: list[AdapterId] = field(default_factory=list)
    _given_up: list[AdapterUse] = field(default_factory=list)
    _taken: list[AdapterUse] = field(default_factory=list)
    _no_room: set[AdapterUse] = field(default_factory=set)

    @property
    def num_fetches(self) -> int:
        return len(self._fetch)

    def fetches(self, adapter: AdapterId) -> bool:
        return adapter in self._fetch

    def fetch(self, adapter: AdapterId, stays: Callable[[AdapterId], bool]) -> bool:
        """Whether there was room in host memory, and it is on its way."""
        leaving = self.host.room_for(self.sizes[adapter], stays)
        if leaving is None:
            return False
        self.host.leave(leaving)
        self._off_host += leaving
        self.host.sizes[adapter] = self.sizes[adapter]
        self._fetch.append(adapter)
        return True

    def place(self, adapter: AdapterId, stays: Callable[[AdapterId], bool], first: tuple[AdapterId, ...] = ()) -> bool:
        """Whether there was room on the device, where it now is; those in `first` left for it before others.

        What counts for nobody leaves before what counts for somebody: it takes room that no quota has.
        """
        leaving = self.device.room_for(self.sizes[adapter], stays, first, self.quotas.counted())
        if leaving is None:
            return False
        self.evict(leaving)
        self.device.sizes[adapter] = self.sizes[adapter]
        self._place.append(adapter)
        return True

    def evict(self, leaving: Iterable[AdapterId]) -> None:
        for adapter in leaving:
            self.device.leave([adapter])
            self.quotas.evicted(adapter)
            self._off_device.append(adapter)

    def exchange(self, use: AdapterUse, given_up: Iterable[AdapterId]) -> None:
        """`use` counts for its tenant from now on, instead of those it gives up."""
        for adapter in given_up:
            self.quotas.give_up(AdapterUse(adapter, use.tenant))
            self._given_up.append(AdapterUse(adapter, use.tenant))
        self.quotas.take(use, self.sizes[use.adapter])
        self._taken.append(use)

    def reserve(self, use: AdapterUse) -> None:
        """Its room in the quota is kept for it until it is on the device; nothing is given up yet."""
        self.quotas.take(use, self.sizes[use.adapter])

    def note_no_room(self, use: AdapterUse) -> None:
        """It found no room, in host memory or on the device, though its tenant's quota has some."""
        self._no_room.add(use)

    def plan(self) -> AdapterPlan:
        return AdapterPlan(
            tuple(self._off_device),
            tuple(self._off_host),
            tuple(self._fetch),
            tuple(self._place),
            tuple(self._given_up),
            tuple(self._taken),
            frozenset(self._no_room),
        )
