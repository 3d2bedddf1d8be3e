"""Adapters on their way: what the residency decides, done by the mover, at step boundaries.

Owns the meeting of policy and bytes, and what has failed to load. Knows neither sequences nor torch.
"""

from collections.abc import Collection, Sequence
from queue import Empty, SimpleQueue
from time import monotonic

from adapters.manifest import AdapterId
from adapters.mover import Arrival, Mover
from adapters.residency import AdapterPlan, Residency, Tier
from engine.errors import AdapterTooLarge
from engine.events import AdapterEvicted, AdapterLoaded, Observer


class AdapterTiers:
    """Every method is called between steps, on the engine's thread; reads end whenever they end, and are noted then."""

    def __init__(self, residency: Residency, mover: Mover, observe: Observer) -> None:
        self.residency = residency
        self._mover = mover
        self._observe = observe
        self._arrivals: SimpleQueue[Arrival] = SimpleQueue()
        self._warm: list[AdapterId] = []
        self._doomed: set[AdapterId] = set()
        self._placed_at: dict[AdapterId, float] = {}
        self.wake = _nobody_sleeps

    def tier(self, adapter: AdapterId) -> Tier:
        return self.residency.tier(adapter)

    def ready(self, adapter: AdapterId) -> bool:
        return self.residency.on_device(adapter)

    def placed_at(self, adapter: AdapterId) -> float:
        """When it last came onto the device."""
        return self._placed_at[adapter]

    def check(self, adapter: AdapterId) -> None:
        """Raises AdapterTooLarge if no eviction could make room for it, UnknownAdapter if there is no such blob."""
        size, residency = self._mover.size(adapter), self.residency
        if not residency.fits(size):
            raise AdapterTooLarge(
                f"This adapter takes {size} bytes, but the budgets leave it only "
                f"{residency.device_budget - residency.pinned_bytes} on the device and {residency.host_budget} in host "
                "memory. Unpin others, or raise --adapter-device-memory and --adapter-host-memory."
            )

    def move(self, running: Collection[AdapterId], wanted: Sequence[AdapterId]) -> dict[AdapterId, Exception]:
        """Note what has arrived, then make the next moves. Gives back the adapters that failed to load, and why."""
        failed = self._note_arrivals()
        still_wanted = [adapter for adapter in (*self.residency.pinned, *wanted) if adapter not in failed]
        self._warm = [adapter for adapter in self._warm if self.tier(adapter) is not Tier.DEVICE]
        warm = [adapter for adapter in self._warm if adapter not in failed]
        sizes = {adapter: self._mover.size(adapter) for adapter in {*running, *still_wanted, *warm}}
        plan = self.residency.plan(sizes, running, tuple(dict.fromkeys(still_wanted)), warm)
        self.residency.apply(plan, sizes, used=running)
        self._obey(plan)
        return failed

    def pin(self, adapter: AdapterId) -> None:
        """Load it at the next step and keep it on the device. Raises AdapterTooLarge."""
        self.check(adapter)
        self.residency.pin(adapter)

    def prefetch(self, adapters: Sequence[AdapterId]) -> None:
        """Load these into room that is free, now and as it comes free."""
        self._warm += [adapter for adapter in adapters if adapter not in self._warm]

    def forget(self, adapter: AdapterId) -> None:
        """Drop an adapter that was deleted and that nobody uses."""
        self._warm = [other for other in self._warm if other != adapter]
        if self.residency.is_fetching(adapter):
            self._doomed.add(adapter)
            return
        if self.ready(adapter):
            self._mover.drop_device(adapter)
        self._mover.drop_host(adapter)
        self.residency.forget(adapter)

    @property
    def busy(self) -> bool:
        """Whether a step would move something: an arrival waits, or something warm or pinned is not there yet."""
        to_come = (*self._warm, *self.residency.pinned)
        return not self._arrivals.empty() or (self.residency.idle and any(not self.ready(one) for one in to_come))

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
                self.residency.unpin(adapter)
                self._warm = [other for other in self._warm if other != adapter]
                failed[adapter] = arrival.error
            else:
                self.residency.fetched(adapter)
                self._observe(AdapterLoaded(adapter, "disk", arrival.seconds, self._mover.size(adapter)))
            if adapter in self._doomed:
                self._doomed.discard(adapter)
                self.forget(adapter)

    def _obey(self, plan: AdapterPlan) -> None:
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
            self._mover.place(adapter)
            self._placed_at[adapter] = monotonic()
            self._observe(AdapterLoaded(adapter, "host", monotonic() - started, self._mover.size(adapter)))

    def _on_arrival(self, arrival: Arrival) -> None:
        """Called on a reader's thread."""
        self._arrivals.put(arrival)
        self.wake()


def _nobody_sleeps() -> None:
    pass
