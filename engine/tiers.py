"""Adapters on their way: what the residency decides, done by the mover, at step boundaries.

Owns the meeting of policy and bytes, and what has failed to load. Knows neither sequences nor torch.
"""

import logging
from collections.abc import Collection, Sequence
from queue import Empty, SimpleQueue
from time import monotonic

from adapters.device_quotas import AdapterUse
from adapters.errors import AdapterCorrupt, AdapterError, InvalidAdapter
from adapters.manifest import AdapterId
from adapters.mover import Arrival, Mover
from adapters.moves import AdapterPlan
from adapters.residency import Residency, Tier
from engine.errors import AdapterTooLarge, DeviceQuotaTooSmall, EngineError
from engine.events import AdapterEvicted, AdapterFailed, AdapterLoaded, Observer

log = logging.getLogger(__name__)


PATIENCE = 64
"""Steps that a pin or a merge waits for room; as long as a request may be overtaken."""


class AdapterTiers:
    """Every method is called between steps, on the engine's thread; reads end whenever they end, and are noted then."""

    def __init__(self, residency: Residency, mover: Mover, observe: Observer) -> None:
        self.residency = residency  # for others to ask, not to change
        self._mover = mover
        self._observe = observe
        self._arrivals: SimpleQueue[Arrival] = SimpleQueue()
        self._warm: list[AdapterId] = []
        self._deleted_while_read: set[AdapterId] = set()
        self._placed_at: dict[AdapterId, float] = {}
        self.moved: dict[AdapterId, int] = {}  # bytes that the latest `move` sent up a tier
        self._no_room: frozenset[AdapterUse] = frozenset()
        self._steps_without_room = 0  # steps for which a pin or a merge has found no room
        self.wake = _no_wake

    def tier(self, adapter: AdapterId) -> Tier:
        return self.residency.tier(adapter)

    def ready(self, adapter: AdapterId) -> bool:
        return self.residency.on_device(adapter)

    def admits(self, use: AdapterUse) -> bool:
        """Whether a request may come in with it: it is on the device, and the tenant's quota has it."""
        return self.residency.ready(use)

    def needs_room(self, use: AdapterUse) -> bool:
        """Whether others must make room for it: not for one that is being read, or that waits for its own quota."""
        limited = self.residency.quotas.quota_of(use.tenant).limited
        return not self.loading(use.adapter) and (not limited or use in self._no_room)

    def loading(self, adapter: AdapterId) -> bool:
        """Whether it is being read from disk, which no eviction would speed up."""
        return self.residency.is_fetching(adapter)

    def placed_at(self, adapter: AdapterId) -> float:
        """When it last came onto the device."""
        return self._placed_at[adapter]

    def check(self, adapter: AdapterId, tenant: str | None = None) -> None:
        """Raises AdapterTooLarge if no eviction could make room for it, DeviceQuotaTooSmall if its tenant may not have
        that much, UnknownAdapter if there is no such blob.
        """
        size, residency = self._mover.size(adapter), self.residency
        if not residency.quotas.fits(AdapterUse(adapter, tenant), size):
            raise DeviceQuotaTooSmall(size, residency.quotas.quota_of(tenant).bytes)
        if not residency.fits(adapter, size):
            left = residency.device_budget - residency.kept_bytes(adapter)
            raise AdapterTooLarge(
                f"This adapter takes {size} bytes, but pinned and merged adapters leave it {left} of "
                f"{residency.device_budget} on the device, and host memory for adapters has {residency.host_budget}. "
                "Unpin or unmerge others, or raise --adapter-device-memory and --adapter-host-memory."
            )

    @property
    def must_drain(self) -> bool:
        """Whether a pin or a merge has waited too long for room that running adapters hold, and they should drain."""
        return self._steps_without_room > PATIENCE

    def move(
        self, running: Collection[AdapterUse], wanted: Sequence[AdapterUse], urgent: Sequence[AdapterId] = ()
    ) -> dict[AdapterId, Exception]:
        """Note what has arrived, then make the next moves; pins and what is `urgent` go before what is `wanted`.

        Gives back the adapters that failed to load, or are wanted but have lost their room to pins, and why.
        """
        wanted = (*(AdapterUse(adapter) for adapter in urgent), *wanted)
        failed = self._note_arrivals() | self._beyond_room(wanted)
        pinned = (AdapterUse(adapter) for adapter in self.residency.pinned)
        still_wanted = [use for use in (*pinned, *wanted) if use.adapter not in failed]
        self._warm = [adapter for adapter in self._warm if self.tier(adapter) is not Tier.DEVICE]
        warm = [adapter for adapter in self._warm if adapter not in failed]
        named = {*(use.adapter for use in (*running, *still_wanted)), *warm}
        sizes = {adapter: self._mover.size(adapter) for adapter in named}
        plan = self.residency.plan(sizes, running, tuple(dict.fromkeys(still_wanted)), warm)
        self.residency.apply(plan, sizes, used=running)
        self._no_room = plan.no_room
        self.moved = {adapter: sizes[adapter] for adapter in (*plan.fetch, *plan.place)}
        failed |= self._make_moves(plan)
        first = {*self.residency.pinned, *urgent} - failed.keys()
        waiting = any(not self.ready(adapter) and not self.loading(adapter) for adapter in first)
        self._steps_without_room = self._steps_without_room + 1 if waiting else 0
        return failed

    def pin(self, adapter: AdapterId) -> None:
        """Load it at the next step and keep it on the device. Raises AdapterTooLarge."""
        self.check(adapter)
        self.residency.pin(adapter, self._mover.size(adapter))

    def unpin(self, adapter: AdapterId) -> None:
        """Let it leave the device when others need the room."""
        self.residency.unpin(adapter)

    def hold_merged(self, adapter: AdapterId) -> None:
        """Keep an adapter on the device while it is merged."""
        self.residency.hold_merged(adapter)

    def release_merged(self, adapter: AdapterId) -> None:
        self.residency.release_merged(adapter)

    def prefetch(self, adapters: Sequence[AdapterId]) -> None:
        """Load these into room that is free, now and as it comes free. One that cannot be served is only logged."""
        for adapter in dict.fromkeys(adapters):
            try:
                self.check(adapter)
            except (AdapterError, AdapterTooLarge) as error:
                log.warning("adapter %s is not warmed up: %s", adapter, error)
            else:
                self._warm += [] if adapter in self._warm else [adapter]

    def restore(self, pinned: Collection[AdapterId], resident: Sequence[AdapterId]) -> None:
        """Have again what another engine had. What cannot be served any more is only logged."""
        for adapter in pinned:
            try:
                self.pin(adapter)
            except (AdapterError, AdapterTooLarge) as error:
                log.warning("adapter %s is not pinned again: %s", adapter, error)
        self.prefetch(resident)

    def forget(self, adapter: AdapterId) -> None:
        """Drop an adapter that was deleted and that nobody uses."""
        self._warm = [other for other in self._warm if other != adapter]
        if self.residency.is_fetching(adapter):
            self._deleted_while_read.add(adapter)
            return
        if self.ready(adapter):
            self._mover.drop_device(adapter)
        self._mover.drop_host(adapter)
        self.residency.forget(adapter)
        self._placed_at.pop(adapter, None)

    @property
    def busy(self) -> bool:
        """Whether a step would move something: an arrival waits, or something warm or pinned is not there yet."""
        to_come = (*self._warm, *self.residency.pinned)
        return not self._arrivals.empty() or (self.residency.idle and any(not self.ready(one) for one in to_come))

    def check_integrity(self) -> None:
        self.residency.check_integrity()

    def close(self) -> None:
        self._mover.close()

    def _note_arrivals(self) -> dict[AdapterId, Exception]:
        failed: dict[AdapterId, Exception] = {}
        while True:
            try:
                arrival = self._arrivals.get_nowait()
            except Empty:
                return failed
            adapter = arrival.adapter
            if arrival.error is not None:
                self.residency.fetch_failed(adapter)
            else:
                self.residency.fetched(adapter)
                self._observe(AdapterLoaded(adapter, "disk", arrival.seconds, self._mover.size(adapter)))
            if adapter in self._deleted_while_read:  # whoever wants it now has uploaded it again: it is read anew
                self._deleted_while_read.discard(adapter)
                self.forget(adapter)
            elif arrival.error is not None:
                failed[adapter] = self._give_up(adapter, arrival.error)

    def _give_up(self, adapter: AdapterId, error: Exception) -> Exception:
        """Try no more to load it until somebody asks again."""
        log.error("adapter %s could not be loaded", adapter, exc_info=error)
        self._observe(AdapterFailed(adapter, explain(error)[1]))
        self.residency.unpin(adapter)
        self._warm = [other for other in self._warm if other != adapter]
        return error

    def _beyond_room(self, wanted: Sequence[AdapterUse]) -> dict[AdapterId, Exception]:
        failed: dict[AdapterId, Exception] = {}
        for adapter in dict.fromkeys(use.adapter for use in wanted):
            try:
                if not self.ready(adapter):
                    self.check(adapter)
            except AdapterTooLarge as error:
                failed[adapter] = error
        return failed

    def _make_moves(self, plan: AdapterPlan) -> dict[AdapterId, Exception]:
        """Make the moves; gives back what could not be placed, because the device has less memory than budgeted."""
        failed: dict[AdapterId, Exception] = {}
        for adapter in plan.off_device:
            self._mover.drop_device(adapter)
            self._observe(AdapterEvicted(adapter, "device"))
        for adapter in plan.off_host:
            self._mover.drop_host(adapter)
            self._observe(AdapterEvicted(adapter, "host"))
        for adapter in plan.fetch:
            self._mover.fetch(adapter, self._on_arrival)
        for adapter in plan.place:
            started = monotonic()
            try:
                self._mover.place(adapter)
            except Exception as error:
                self.residency.place_failed(adapter)
                failed[adapter] = self._give_up(adapter, error)
                continue
            self._placed_at[adapter] = monotonic()
            self._observe(AdapterLoaded(adapter, "host", monotonic() - started, self._mover.size(adapter)))
        return failed

    def _on_arrival(self, arrival: Arrival) -> None:
        """Called on a reader's thread."""
        self._arrivals.put(arrival)
        self.wake()


def explain(error: Exception) -> tuple[str, str]:
    """What a waiting request is told about its adapter, and the code for it."""
    if isinstance(error, AdapterCorrupt):
        return str(error), "adapter_corrupt"
    if isinstance(error, InvalidAdapter):
        return str(error), "adapter_overflow"  # uploads were judged: only whether its numbers fit the dtype was not
    if isinstance(error, AdapterError | EngineError):
        return str(error), "adapter_unavailable"
    return "The adapter could not be loaded. The server's log has the reason. Try again.", "adapter_unavailable"


def _no_wake() -> None:
    pass
