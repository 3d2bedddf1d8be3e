"""Who is fetched, placed and evicted: budgets hold, running and pinned stay, whoever is wanted gets there."""

from collections.abc import Callable, Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adapters.device_quotas import AdapterUse
from adapters.manifest import AdapterId
from adapters.moves import AdapterPlan
from adapters.residency import Residency, Tier


def ids(*names: str) -> tuple[AdapterId, ...]:
    return tuple(AdapterId(name) for name in names)


def uses(*adapters: AdapterId) -> list[AdapterUse]:
    return [AdapterUse(adapter, "tenant") for adapter in adapters]


A, B, C, D = ids("a", "b", "c", "d")
SIZES = {A: 10, B: 10, C: 10, D: 25}


def step(residency: Residency, wanted: Sequence[AdapterId] = (), running: Sequence[AdapterId] = ()) -> AdapterPlan:
    """One turn in which every read ends at once."""
    plan = residency.plan(SIZES, uses(*running), uses(*wanted))
    residency.apply(plan, SIZES, used=uses(*running))
    for adapter in plan.fetch:
        residency.fetched(adapter)
    residency.check_integrity()
    return plan


def placed(residency: Residency, *adapters: AdapterId) -> Residency:
    for adapter in adapters:
        step(residency, [adapter])
        step(residency, [adapter])
    return residency


def test_an_adapter_goes_from_disk_to_host_to_device() -> None:
    residency = Residency(20, 40)
    assert residency.tier(A) is Tier.DISK
    plan = residency.plan(SIZES, (), uses(A))
    assert plan == AdapterPlan(fetch=(A,))
    residency.apply(plan, SIZES)
    assert residency.tier(A) is Tier.DISK and residency.is_fetching(A) and residency.host_used == 10
    residency.fetched(A)
    assert residency.tier(A) is Tier.HOST
    assert step(residency, [A]) == AdapterPlan(place=(A,))
    assert residency.tier(A) is Tier.DEVICE and residency.device_used == 10


def test_planning_changes_nothing() -> None:
    residency = placed(Residency(20, 20), A, B)
    before = list(residency.residents())
    residency.plan(SIZES, (), uses(C))
    assert list(residency.residents()) == before


def test_least_recently_used_leaves_first() -> None:
    residency = placed(Residency(20, 40), A, B)
    step(residency, running=[A])
    assert step(residency, [C]).fetch == (C,)
    assert step(residency, [C]) == AdapterPlan(off_device=(B,), place=(C,))


def test_least_recently_used_leaves_host_memory_first() -> None:
    residency = placed(Residency(40, 20), A, B)
    step(residency, running=[A])
    assert step(residency, [C]) == AdapterPlan(off_host=(B,), fetch=(C,))


def test_what_is_wanted_soonest_leaves_last() -> None:
    residency = placed(Residency(20, 40), A, B)
    step(residency, [C, A, B])
    assert step(residency, [C, A, B]) == AdapterPlan(off_device=(B,), place=(C,)), "though it came later than A"


def test_so_many_are_read_at_once_and_no_more() -> None:
    residency = Residency(100, 100, max_fetches=2)
    for fetch in ((A, B), ()):
        plan = residency.plan(SIZES, (), uses(A, B, C))
        assert plan.fetch == fetch
        residency.apply(plan, SIZES)
    residency.fetched(A)
    assert residency.plan(SIZES, (), uses(B, C)).fetch == (C,)


def test_whatever_moves_or_is_pinned_is_a_change() -> None:
    """Otherwise what others see of it stays as it was."""
    residency = Residency(20, 40)
    seen = [residency.changes]
    changes: tuple[Callable[[], None], ...] = (
        lambda: residency.apply(residency.plan(SIZES, (), uses(A)), SIZES),
        lambda: residency.fetched(A),
        lambda: residency.apply(residency.plan(SIZES, (), uses(A)), SIZES),
        lambda: residency.place_failed(A),
        lambda: residency.pin(A, 10),
        lambda: residency.unpin(A),
        lambda: residency.apply(residency.plan(SIZES, (), uses(B)), SIZES),
        lambda: residency.fetch_failed(B),
        lambda: residency.apply(AdapterPlan(off_host=(A,)), SIZES),
    )
    for change in changes:
        change()
        seen.append(residency.changes)
    assert seen == sorted(set(seen))
    residency.apply(AdapterPlan(), SIZES)
    assert residency.changes == seen[-1]


def test_running_and_pinned_stay() -> None:
    residency = placed(Residency(20, 40), A, B)
    residency.pin(A, 10)
    step(residency, [C], running=[B])
    assert step(residency, [C], running=[B]) == AdapterPlan()
    assert step(residency, [C]) == AdapterPlan(off_device=(B,), place=(C,))
    residency.unpin(A)
    assert step(residency, [B], running=[C]) == AdapterPlan(off_device=(A,), place=(B,))


def test_who_is_wanted_earlier_is_not_pushed_out_by_who_is_wanted_later() -> None:
    residency = placed(Residency(10, 40), A)
    step(residency, [A, B])
    assert step(residency, [A, B]) == AdapterPlan()
    assert step(residency, [B, A]) == AdapterPlan(off_device=(A,), place=(B,))


def test_a_place_does_not_cost_a_neighbour_its_host_copy_in_the_same_turn() -> None:
    residency = Residency(20, 20)
    step(residency, [A, B])
    plan = step(residency, [A, B, C])
    assert set(plan.place) == {A, B} and C not in plan.fetch and plan.off_host == ()
    assert step(residency, [A, B, C], running=[A, B]).fetch == (C,)  # now the copies may leave


def test_who_is_pushed_off_the_device_keeps_the_host_room_it_is_given_in_the_same_turn() -> None:
    residency = placed(Residency(10, 11), A)
    sizes = {A: 10, B: 1, C: 1}
    for adapter in (B, C):
        residency.apply(AdapterPlan(off_host=(A,) if adapter == B else (), fetch=(adapter,)), sizes)
        residency.fetched(adapter)
    plan = residency.plan(sizes, (), uses(B, A, C))
    residency.apply(plan, sizes)
    residency.check_integrity()
    assert plan == AdapterPlan(off_device=(A,), off_host=(C,), fetch=(A,), place=(B,))


def test_warm_takes_free_room_only() -> None:
    residency = placed(Residency(20, 20), A, B)
    plan = residency.plan(SIZES, (), (), warm=[C])
    assert plan == AdapterPlan()
    residency.forget(A)
    assert residency.plan(SIZES, (), (), warm=[C]) == AdapterPlan(fetch=(C,))


def test_fits_counts_what_others_keep_but_not_oneself() -> None:
    residency = Residency(30, 100)
    assert residency.fits(D, 25)
    residency.pin(D, 25)
    assert residency.fits(D, 25), "a pinned adapter fits where it is pinned"
    assert not residency.fits(A, 10), "even before the pinned one has been placed"
    residency.unpin(D)
    assert residency.fits(A, 10)
    assert not Residency(30, 20).fits(D, 25), "it must pass through host memory"


def test_a_merged_adapter_is_kept_like_a_pinned_one() -> None:
    residency = placed(Residency(30, 100), D)
    residency.hold_merged(D)
    assert residency.fits(D, 25) and not residency.fits(A, 10)
    step(residency, [A])
    assert step(residency, [A]) == AdapterPlan()
    residency.release_merged(D)
    assert step(residency, [A]).off_device == (D,)


def test_a_failed_fetch_gives_its_room_back() -> None:
    residency = Residency(20, 10)
    residency.apply(residency.plan(SIZES, (), uses(A)), SIZES)
    assert not list(residency.residents()), "what is being read is not there yet"
    assert residency.plan(SIZES, (), uses(B)) == AdapterPlan(), "the room is reserved"
    residency.fetch_failed(A)
    assert residency.host_used == 0 and residency.idle
    assert residency.plan(SIZES, (), uses(B)) == AdapterPlan(fetch=(B,))


def test_residents_are_told_device_first_and_latest_first() -> None:
    residency = placed(Residency(20, 40), A, B, C)
    assert list(residency.residents()) == [(C, Tier.DEVICE, 10), (B, Tier.DEVICE, 10), (A, Tier.HOST, 10)]


ADAPTERS = ids(*"abcdef")
some = st.lists(st.sampled_from(ADAPTERS), unique=True, max_size=4)


class Tiers(RuleBasedStateMachine):
    """Requests come, run and end; reads end when they like; adapters are pinned, merged and deleted."""

    @initialize(data=st.data(), device=st.integers(10, 40), host=st.integers(10, 40))
    def start(self, data: st.DataObject, device: int, host: int) -> None:
        self.residency = Residency(device, host)
        self.sizes = {adapter: data.draw(st.integers(1, 20)) for adapter in ADAPTERS}
        self.queue: list[AdapterId] = []
        self.running: list[AdapterId] = []
        self.merged: AdapterId | None = None

    def servable(self, adapter: AdapterId) -> bool:
        return self.residency.fits(adapter, self.sizes[adapter])

    def turn(self, warm: Sequence[AdapterId] = ()) -> AdapterPlan:
        residency = self.residency
        self.queue = [adapter for adapter in self.queue if self.servable(adapter)]
        wanted = tuple(dict.fromkeys([*sorted(residency.pinned), *self.queue]))
        on_device = {adapter for adapter in ADAPTERS if residency.on_device(adapter)}
        plan = residency.plan(self.sizes, set(uses(*self.running)), uses(*wanted), warm)
        left, kept = set(plan.off_device), residency.pinned | set(self.running) | {self.merged}
        assert left <= on_device and not left & kept
        for pusher in plan.place:
            if pusher in wanted and left & set(wanted):
                latest = min(wanted.index(victim) for victim in left & set(wanted))
                assert latest > min(wanted.index(one) for one in plan.place if one in wanted)
        if not wanted:
            assert not plan.off_device and not plan.off_host, "warm evicts nobody"
        residency.apply(plan, self.sizes, used=uses(*self.running))
        return plan

    @rule(adapter=st.sampled_from(ADAPTERS))
    def arrive(self, adapter: AdapterId) -> None:
        self.queue.append(adapter)

    @rule(warm=some)
    def step(self, warm: list[AdapterId]) -> None:
        self.turn(warm)
        for adapter in list(self.queue):
            if self.residency.on_device(adapter):
                self.queue.remove(adapter)
                self.running.append(adapter)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))

    @rule(data=st.data(), well=st.booleans())
    def read_ends(self, data: st.DataObject, well: bool) -> None:
        reading = [adapter for adapter in ADAPTERS if self.residency.is_fetching(adapter)]
        if reading:
            adapter = data.draw(st.sampled_from(reading))
            (self.residency.fetched if well else self.residency.fetch_failed)(adapter)

    @rule(adapter=st.sampled_from(ADAPTERS))
    def pin(self, adapter: AdapterId) -> None:
        if self.servable(adapter):
            self.residency.pin(adapter, self.sizes[adapter])

    @rule(adapter=st.sampled_from(ADAPTERS))
    def unpin(self, adapter: AdapterId) -> None:
        self.residency.unpin(adapter)

    @rule(adapter=st.sampled_from(ADAPTERS))
    def merge_or_unmerge(self, adapter: AdapterId) -> None:
        if self.merged is not None:
            self.residency.release_merged(self.merged)
            self.merged = None
        elif self.residency.on_device(adapter) and self.servable(adapter):
            self.residency.hold_merged(adapter)
            self.merged = adapter

    @rule(adapter=st.sampled_from(ADAPTERS))
    def forget(self, adapter: AdapterId) -> None:
        if adapter not in (*self.running, *self.queue, self.merged) and not self.residency.is_fetching(adapter):
            self.residency.forget(adapter)
            assert self.residency.tier(adapter) is Tier.DISK

    @invariant()
    def budgets_hold(self) -> None:
        self.residency.check_integrity()
        assert all(self.residency.on_device(adapter) for adapter in self.running)

    def teardown(self) -> None:
        """Once everything that runs has ended, the first in the queue is placed within two turns and a read."""
        if not hasattr(self, "residency"):
            return
        self.running = []
        while True:
            self.queue = [adapter for adapter in self.queue if self.servable(adapter)]
            if not self.queue:
                return
            for _ in range(2 + len(ADAPTERS)):
                self.turn()
                for adapter in ADAPTERS:
                    if self.residency.is_fetching(adapter):
                        self.residency.fetched(adapter)
            first = self.queue.pop(0)
            assert self.residency.on_device(first), f"{first} is wanted first and fits, but never got there"


TestTiers = Tiers.TestCase
TestTiers.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
