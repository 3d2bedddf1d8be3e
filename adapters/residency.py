"""Which adapter lives in which tier: disk, host memory, device.

Owns the decisions only: who is fetched, placed, evicted. Moves no bytes, knows no torch and no requests;
the engine says who is running and who is wanted, and obeys the plan at a step boundary.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from adapters.device_quotas import AdapterUse, DeviceQuotas
from adapters.manifest import AdapterId
from adapters.moves import AdapterPlan, Draft, Room


class Tier(StrEnum):
    DISK = "disk"
    HOST = "host"
    DEVICE = "device"


@dataclass(slots=True)
class _Stays:
    """Who may not leave for the next one: the device, host memory, its tenant's quota."""

    device: set[AdapterId]
    host: set[AdapterId]
    quotas: set[AdapterUse]


class Residency:
    """Two byte budgets over an unbounded disk.

    An adapter is fetched (disk to host, in the background), then placed (host to device). Its host copy may
    leave while it is on the device. Least recently used leaves first; an adapter that is pinned, merged or
    running never leaves the device. A fetch reserves its host bytes when it starts. At most `max_fetches` are under
    way, so that what is wanted soonest is never behind a long line of others.

    A tenant with a quota gives up its own adapter that it used longest ago before it has another on the device, and
    waits for its own requests to end while it can give up none. What nobody else uses then leaves the device.
    """

    def __init__(
        self, device_bytes: int, host_bytes: int, max_fetches: int = sys.maxsize, quotas: DeviceQuotas | None = None
    ) -> None:
        self._max_fetches = max_fetches
        self._device = Room(device_bytes)
        self._host = Room(host_bytes)
        self._quotas = quotas or DeviceQuotas()
        self._fetching: dict[AdapterId, int] = {}
        self._pinned: dict[AdapterId, int] = {}
        self._merged: dict[AdapterId, int] = {}
        self._changes = 0

    # Queries

    @property
    def changes(self) -> int:
        """How often anything moved, or counted for another tenant: what was read before the last is out of date."""
        return self._changes

    def tier(self, adapter: AdapterId) -> Tier:
        if adapter in self._device.sizes:
            return Tier.DEVICE
        return Tier.HOST if adapter in self._host.sizes and adapter not in self._fetching else Tier.DISK

    def on_device(self, adapter: AdapterId) -> bool:
        return adapter in self._device.sizes

    def ready(self, use: AdapterUse) -> bool:
        """Whether it is on the device, and the tenant's quota has it."""
        return use.adapter in self._device.sizes and self._quotas.admits(use)

    @property
    def quotas(self) -> DeviceQuotas:
        """To be asked, not changed."""
        return self._quotas

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
        for adapter, size in reversed(self._device.sizes.items()):
            yield adapter, Tier.DEVICE, size
        for adapter, size in reversed(self._host.sizes.items()):
            if adapter not in self._device.sizes and adapter not in self._fetching:
                yield adapter, Tier.HOST, size

    def fits(self, adapter: AdapterId, size: int) -> bool:
        """Whether `adapter`, of `size` bytes, can ever be served beside those that never leave."""
        return size <= self._host.budget and size + self.kept_bytes(adapter) <= self._device.budget

    def kept_bytes(self, adapter: AdapterId) -> int:
        """The device bytes that others than `adapter` never give up, those included that are still to be placed."""
        return sum(size for other, size in (self._pinned | self._merged).items() if other != adapter)

    def plan(
        self,
        sizes: Mapping[AdapterId, int],
        running: Collection[AdapterUse],
        wanted: Sequence[AdapterUse],
        warm: Sequence[AdapterId] = (),
    ) -> AdapterPlan:
        """Decide the next moves; `sizes` holds the bytes of every adapter named.

        `running` never leaves the device. `wanted` is served in order: an earlier one may push out what neither
        runs nor is wanted earlier. `warm` only takes room that is free.
        """
        settled = all(self.ready(use) for use in wanted) and all(adapter in self._device.sizes for adapter in warm)
        if settled:  # nearly every step of a settled server
            return AdapterPlan()
        draft = Draft(self._device.copy(), self._host.copy(), self._quotas.copy(), sizes)
        for use in reversed(wanted):  # what is wanted soonest leaves last
            draft.device.touch(use.adapter)
            draft.host.touch(use.adapter)
        on_device = {*(use.adapter for use in running), *self._pinned, *self._merged}
        stays = _Stays(on_device, set(self._fetching), set(running))
        for use in wanted:
            self._advance(draft, use, stays)
        for adapter in warm:
            if adapter not in draft.device.sizes:
                self._fetch_or_place(draft, adapter, _evict_nobody, _evict_nobody)
        return draft.plan()

    def _advance(self, draft: Draft, use: AdapterUse, stays: _Stays) -> None:
        """Bring an adapter one tier closer to whoever wants it, if the tenant's quota and both tiers have room."""
        adapter, counted = use.adapter, not draft.quotas.admits(use)
        given_up = _given_up(draft, use, stays) if counted else ()
        if given_up is None:  # what is in host memory already is kept for when the tenant's own requests have ended
            stays.host.add(adapter)
            return
        unused = tuple(one for one in given_up if _unused(draft, AdapterUse(one, use.tenant), stays))
        there = adapter in draft.device.sizes
        if there:
            draft.evict(unused)
        elif not self._fetch_or_place(draft, adapter, stays.device.__contains__, stays.host.__contains__, unused):
            draft.note_no_room(use)
        if counted and adapter in draft.device.sizes:
            draft.exchange(use, given_up)
        elif counted:
            draft.reserve(use)
        stays.quotas.add(use)
        stays.device.add(adapter)
        if not self.on_device(adapter) or adapter not in draft.device.sizes:  # then its host copy is not to spare
            stays.host.add(adapter)

    def _fetch_or_place(
        self,
        draft: Draft,
        adapter: AdapterId,
        stays_on_device: Callable[[AdapterId], bool],
        stays_on_host: Callable[[AdapterId], bool],
        unused: tuple[AdapterId, ...] = (),
    ) -> bool:
        """Fetch or place it, those who are `unused` leaving first. False for want of room."""
        if adapter in self._fetching or draft.fetches(adapter):
            return True
        if adapter in draft.host.sizes:
            return draft.place(adapter, stays_on_device, unused)
        if len(self._fetching) + draft.num_fetches >= self._max_fetches:
            return True
        return draft.fetch(adapter, stays_on_host)

    # Commands

    def apply(self, plan: AdapterPlan, sizes: Mapping[AdapterId, int], used: Iterable[AdapterUse] = ()) -> None:
        """Make a plan of this residency's own come true, and note who was `used` in this step."""
        self._changes += plan.moves or bool(plan.taken)
        for adapter in plan.off_device:
            del self._device.sizes[adapter]
            self._quotas.evicted(adapter)
        for adapter in plan.off_host:
            del self._host.sizes[adapter]
        for adapter in plan.fetch:
            self._host.sizes[adapter] = self._fetching[adapter] = sizes[adapter]
        for adapter in plan.place:
            self._device.sizes[adapter] = sizes[adapter]
        for use in plan.given_up:
            self._quotas.give_up(use)
        for use in plan.taken:
            self._quotas.take(use, sizes[use.adapter])
        for use in used:
            self._device.touch(use.adapter)
            self._host.touch(use.adapter)
            if self._quotas.limits_anybody:
                self._quotas.take(use, self._device.sizes[use.adapter])

    def fetched(self, adapter: AdapterId) -> None:
        """Its bytes have arrived in host memory."""
        self._changes += 1
        del self._fetching[adapter]

    def fetch_failed(self, adapter: AdapterId) -> None:
        self._changes += 1
        del self._fetching[adapter]
        del self._host.sizes[adapter]

    def place_failed(self, adapter: AdapterId) -> None:
        """It did not reach the device after all."""
        self._changes += 1
        del self._device.sizes[adapter]
        self._quotas.evicted(adapter)

    def pin(self, adapter: AdapterId, size: int) -> None:
        """Keep it on the device from when it gets there. Ask `fits` first."""
        self._changes += 1
        self._pinned[adapter] = size

    def unpin(self, adapter: AdapterId) -> None:
        self._changes += 1
        self._pinned.pop(adapter, None)

    def hold_merged(self, adapter: AdapterId) -> None:
        """Keep an adapter on the device while it is merged, so that unmerging never waits for a read."""
        self._merged[adapter] = self._device.sizes[adapter]

    def release_merged(self, adapter: AdapterId) -> None:
        del self._merged[adapter]

    def forget(self, adapter: AdapterId) -> None:
        """Drop an adapter that was deleted from both tiers. It must not be fetching."""
        assert adapter not in self._fetching, "wait for the fetch to end"
        assert adapter not in self._merged, "unmerge it first"
        self.unpin(adapter)
        self._device.sizes.pop(adapter, None)
        self._quotas.evicted(adapter)
        self._host.sizes.pop(adapter, None)

    def check_integrity(self) -> None:
        """Assert both budgets and that whatever is being fetched has its room."""
        assert self._device.used <= self._device.budget
        assert self._host.used <= self._host.budget
        assert self._fetching.keys() <= self._host.sizes.keys()
        assert self._merged.keys() <= self._device.sizes.keys()
        self._quotas.check_integrity()


def _evict_nobody(_: AdapterId) -> bool:
    return True


def _given_up(draft: Draft, use: AdapterUse, stays: _Stays) -> tuple[AdapterId, ...] | None:
    """What the tenant gives up of its own for `use`; None while it can give up none, but has to.

    At its quota, the room on the device is made of its own as well, before anybody else's.
    """
    adapter, tenant = use
    given_up = draft.quotas.room_for(use, draft.sizes[adapter], stays.quotas.__contains__)
    if not given_up or adapter in draft.device.sizes:
        return given_up
    more = list(given_up)
    lacking = draft.device.used + draft.sizes[adapter] - draft.device.budget
    lacking -= sum(draft.device.sizes[one] for one in given_up if _unused(draft, AdapterUse(one, tenant), stays))
    for one in draft.quotas.held(tenant or ""):
        own = AdapterUse(one, tenant)
        if lacking > 0 and one not in more and own not in stays.quotas and _unused(draft, own, stays):
            more.append(one)
            lacking -= draft.device.sizes[one]
    return tuple(more)


def _unused(draft: Draft, use: AdapterUse, stays: _Stays) -> bool:
    """Whether nobody needs it on the device once this tenant has given it up."""
    others = draft.quotas.users(use.adapter) - {use.tenant}
    return use.adapter in draft.device.sizes and use.adapter not in stays.device and not others
