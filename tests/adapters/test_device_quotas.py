"""Each tenant's device quota: it gives up its own for its own, and nobody else notices."""

from collections.abc import Iterable, Mapping

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adapters.device_quotas import AdapterUse, DeviceQuota, DeviceQuotas
from adapters.manifest import AdapterId
from adapters.moves import AdapterPlan
from adapters.residency import Residency, Tier

NAMES = "abcdef"
SIZES = {AdapterId(name): 10 for name in NAMES}


def use(adapter: str, tenant: str) -> AdapterUse:
    return AdapterUse(AdapterId(adapter), tenant)


def step(residency: Residency, wanted: Iterable[AdapterUse] = (), running: Iterable[AdapterUse] = ()) -> AdapterPlan:
    """One turn in which every read ends at once."""
    running = list(running)
    plan = residency.plan(SIZES, running, list(wanted))
    residency.apply(plan, SIZES, used=running)
    for adapter in plan.fetch:
        residency.fetched(adapter)
    residency.check_integrity()
    return plan


def furnished(quotas: DeviceQuotas, *uses: AdapterUse, device: int = 60) -> Residency:
    """All of these on the device, the first used longest ago."""
    residency = Residency(device, 200, quotas=quotas)
    for each in uses:
        step(residency, [each])
        step(residency, [each])
        step(residency, running=[each])
        assert residency.ready(each)
    return residency


def on_device(residency: Residency) -> str:
    return "".join(sorted(adapter for adapter, tier, _ in residency.residents() if tier is Tier.DEVICE))


def test_at_its_quota_a_tenant_gives_up_its_own_that_it_used_longest_ago() -> None:
    quotas = DeviceQuotas(tenants={"t": DeviceQuota(adapters=2)})
    residency = furnished(quotas, use("f", "other"), use("a", "t"), use("b", "t"))
    step(residency, running=[use("a", "t")])
    step(residency, [use("c", "t")])
    plan = step(residency, [use("c", "t")])
    assert plan.off_device == ("b",) and on_device(residency) == "acf", "the other's, older and idle, stays"


def test_at_its_quota_a_tenant_makes_room_of_its_own_before_anybody_elses() -> None:
    """The next adapter is larger than the one that is given up, and the other's was used longest ago."""
    sizes = SIZES | {AdapterId("c"): 20}
    for adapters, leaving in ((2, ("a", "b")), (3, ("f", "a"))):  # below its quota it takes room as everybody does
        quotas = DeviceQuotas(tenants={"t": DeviceQuota(adapters=adapters)})
        residency = furnished(quotas, use("f", "other"), use("a", "t"), use("b", "t"), device=30)
        residency.apply(residency.plan(sizes, (), [use("c", "t")]), sizes)
        residency.fetched(AdapterId("c"))
        plan = residency.plan(sizes, (), [use("c", "t")])
        assert (plan.off_device, plan.place) == (leaving, ("c",))


def test_what_did_not_reach_the_device_counts_for_nobody() -> None:
    residency = furnished(DeviceQuotas(tenants={"t": DeviceQuota(adapters=1)}), use("a", "t"))
    assert residency.quotas.held("t") == {"a": 10}
    residency.place_failed(AdapterId("a"))
    assert residency.quotas.held("t") == {}


def test_what_counts_for_nobody_leaves_before_what_was_used_longest_ago() -> None:
    """A warm start that nobody came for takes room that belongs to no quota."""
    residency = furnished(DeviceQuotas(DeviceQuota(adapters=1)), use("a", "t"), device=30)
    for _ in range(2):
        residency.apply(plan := residency.plan(SIZES, (), (), [AdapterId("b"), AdapterId("c")]), SIZES)
        for adapter in plan.fetch:
            residency.fetched(adapter)
    assert on_device(residency) == "abc"
    for wanted, there in (("d", "acd"), ("e", "ade")):
        for _ in range(2):
            step(residency, [use(wanted, f"who wants {wanted}")])
        assert on_device(residency) == there


def test_a_quota_may_be_bytes() -> None:
    quotas = DeviceQuotas(DeviceQuota(bytes=25))
    residency = furnished(quotas, use("a", "t"), use("b", "t"))
    step(residency, [use("c", "t")])
    assert step(residency, [use("c", "t")]).off_device == ("a",)
    assert quotas.held("t") == {"b": 10, "c": 10}
    assert quotas.fits(use("a", "t"), 25) and not quotas.fits(use("a", "t"), 26)


def test_it_waits_while_all_of_its_own_run_and_others_come_in() -> None:
    residency = furnished(DeviceQuotas(tenants={"t": DeviceQuota(adapters=1)}), use("a", "t"))
    mine, theirs, running = use("b", "t"), use("c", "other"), [use("a", "t")]
    for _ in range(5):
        plan = step(residency, [mine, theirs], running)
        assert "b" not in (*plan.fetch, *plan.place) and mine not in plan.no_room
    assert on_device(residency) == "ac"
    step(residency, [mine])
    assert step(residency, [mine]).off_device == ("a",) and residency.ready(mine)


def test_an_adapter_counts_for_all_who_use_it_and_stays_for_those_who_still_do() -> None:
    quotas = DeviceQuotas(DeviceQuota(adapters=1))
    residency = furnished(quotas, use("a", "t"))
    assert not residency.ready(use("a", "u")), "it is there, and u has not taken it"
    plan = step(residency, [use("a", "u")])
    assert residency.ready(use("a", "u")) and not (plan.fetch or plan.place), "which costs no move"
    for _ in range(2):
        step(residency, [use("b", "t")], [use("a", "u")])
    assert on_device(residency) == "ab" and quotas.held("t") == {"b": 10} and quotas.held("u") == {"a": 10}
    for _ in range(2):
        step(residency, [use("c", "u")])
    assert on_device(residency) == "bc", "now nobody uses it"


def test_who_has_no_quota_loses_nothing_by_anothers() -> None:
    residency = furnished(DeviceQuotas(tenants={"t": DeviceQuota(adapters=1)}), use("a", "free"), use("b", "free"))
    step(residency, [use("a", "t")])
    for _ in range(2):
        step(residency, [use("c", "t")])
    assert on_device(residency) == "abc"


def test_what_is_pinned_stays_when_its_tenant_gives_it_up() -> None:
    residency = furnished(DeviceQuotas(DeviceQuota(adapters=1)), use("a", "t"))
    residency.pin(AdapterId("a"), 10)
    for _ in range(2):
        step(residency, [use("b", "t")])
    assert on_device(residency) == "ab" and not residency.ready(use("a", "t"))


def test_nothing_is_given_up_before_there_is_room_for_the_next() -> None:
    quotas = DeviceQuotas(tenants={"t": DeviceQuota(adapters=1)})
    residency = furnished(quotas, use("a", "t"), use("b", "u"), device=20)
    sizes = SIZES | {AdapterId("c"): 15}
    for _ in range(3):
        plan = residency.plan(sizes, [use("b", "u")], [use("c", "t")])
        residency.apply(plan, sizes)
        for adapter in plan.fetch:
            residency.fetched(adapter)
    assert residency.ready(use("a", "t")) and plan.no_room == {use("c", "t")}


def test_what_leaves_the_device_counts_for_nobody() -> None:
    quotas = DeviceQuotas(DeviceQuota(adapters=2))
    residency = furnished(quotas, use("a", "t"))
    residency.forget(AdapterId("a"))
    assert quotas.held("t") == {}


def test_how_full_quotas_are_is_told_without_whose_they_are() -> None:
    quotas = DeviceQuotas(
        DeviceQuota(bytes=40),
        {"few": DeviceQuota(bytes=100, adapters=2), "free": DeviceQuota(), "idle": DeviceQuota(adapters=1)},
    )
    residency = furnished(quotas, use("a", "t"), use("b", "few"), use("c", "free"))
    assert quotas.fractions_used() == (0.5, 0.25)
    changes = residency.changes
    step(residency, [use("c", "t")])
    assert quotas.fractions_used() == (0.5, 0.5) and residency.changes > changes, (
        "it was there already, and counts for t now"
    )
    residency.forget(AdapterId("b"))
    assert quotas.fractions_used() == (0.5,)


LIMITS = {
    "one": DeviceQuota(adapters=1),
    "two": DeviceQuota(adapters=2),
    "bytes": DeviceQuota(bytes=30),
    "free": DeviceQuota(),
}
ROOM = {"one": 30, "two": 60, "bytes": 30}
"""What each tenant with a quota can come to, where no adapter is larger than 30."""
uses = st.builds(use, st.sampled_from(NAMES), st.sampled_from([*LIMITS]))


class Tenants(RuleBasedStateMachine):
    """Requests of several tenants, in whatever order; a turn lets in whoever is ready."""

    @initialize(data=st.data(), device=st.integers(30, 120))
    def start(self, data: st.DataObject, device: int) -> None:
        self.quotas = DeviceQuotas(tenants=LIMITS)
        self.residency = Residency(device, 200, max_fetches=2, quotas=self.quotas)
        self.sizes = {AdapterId(name): data.draw(st.integers(1, 30)) for name in NAMES}
        self.device = device
        self.queue: list[AdapterUse] = []
        self.running: list[AdapterUse] = []
        self.warm: list[AdapterId] = []

    def turn(self) -> None:
        wanted = tuple(dict.fromkeys(self.queue))
        plan = self.residency.plan(self.sizes, set(self.running), wanted, self.warm)
        before = {tenant: self.quotas.held(tenant) for tenant in LIMITS}
        assert not {each.adapter for each in self.running} & set(plan.off_device), "what runs stays"
        for given in plan.given_up:
            assert given.adapter in before[given.tenant or ""], "a tenant gives up only what is its own"
            assert any(taken.tenant == given.tenant for taken in plan.taken), "and only for its own"
        self.check(plan, before)
        self.residency.apply(plan, self.sizes, used=self.running)
        self.warm = [adapter for adapter in self.warm if not self.residency.on_device(adapter)]
        for each in list(self.queue):
            if self.residency.ready(each):
                self.queue.remove(each)
                self.running.append(each)

    def check(self, plan: AdapterPlan, before: Mapping[str, Mapping[AdapterId, int]]) -> None:
        """What else is true of a turn; `before` is what each tenant held."""

    @rule(each=uses)
    def arrive(self, each: AdapterUse) -> None:
        self.queue.append(each)

    @rule()
    def step(self) -> None:
        self.turn()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))

    @rule(well=st.booleans())
    def reads_end(self, well: bool) -> None:
        for adapter in self.sizes:
            if self.residency.is_fetching(adapter):
                (self.residency.fetched if well else self.residency.fetch_failed)(adapter)

    @rule(name=st.sampled_from(NAMES))
    def forget(self, name: str) -> None:
        adapter = AdapterId(name)
        if not self.residency.is_fetching(adapter) and all(adapter != one for one, _ in (*self.queue, *self.running)):
            self.residency.forget(adapter)

    @invariant()
    def nobody_has_more_than_its_share(self) -> None:
        self.residency.check_integrity()
        for tenant, quota in LIMITS.items():
            held = self.quotas.held(tenant)
            assert quota.adapters is None or len(held) <= quota.adapters
            assert quota.bytes is None or sum(held.values()) <= quota.bytes
            assert all(self.residency.on_device(adapter) for adapter in held)
        for each in self.running:
            assert self.residency.ready(each), "what runs is there, and counts"

    def teardown(self) -> None:
        """Nobody starves: once what runs has ended, whoever is first in the queue gets in within a few turns."""
        if not hasattr(self, "residency"):
            return
        while self.queue:
            self.running = []
            first, waited = self.queue[0], 0
            while first in self.queue:
                assert waited < 2 + len(NAMES), f"{first} is wanted first, and never got in"
                self.turn()
                self.reads_end(well=True)
                self.running, waited = [], waited + 1


class Apart(Tenants):
    """Everybody has a quota, and all quotas together fit the device, where warm starts are that nobody uses yet."""

    @initialize(data=st.data(), device=st.just(sum(ROOM.values())))
    def start(self, data: st.DataObject, device: int) -> None:
        super().start(data, device)
        self.sizes = {name: data.draw(st.integers(25, 30)) for name in self.sizes}

    @rule(each=uses)
    def arrive(self, each: AdapterUse) -> None:
        if each.tenant in ROOM:
            self.queue.append(each)

    @rule(name=st.sampled_from(NAMES))
    def warm_up(self, name: str) -> None:
        self.warm.append(AdapterId(name))
        self.settle()

    @rule()
    def settle(self) -> None:
        """All that can come in comes in, and all that runs ends."""
        for _ in range(3):
            self.turn()
            self.reads_end(well=True)
        self.turn()
        self.running = []

    def check(self, plan: AdapterPlan, before: Mapping[str, Mapping[AdapterId, int]]) -> None:
        for adapter in plan.off_device:
            for tenant in ROOM:
                own = AdapterUse(adapter, tenant)
                assert adapter not in before[tenant] or own in plan.given_up, "nobody loses what it did not give up"


TestTenants = Tenants.TestCase
TestTenants.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestApart = Apart.TestCase
TestApart.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
