"""Tenants side by side: who has their turn, what it costs, and how far apart two of them may come."""

from collections import defaultdict, deque
from itertools import count
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.fairness import Prices, VirtualCounters
from engine.scheduler import StepPlan
from engine.sequence import Sequence
from tests.support.engine_fakes import Bench, named
from tests.support.sequences import sequence

PRICES = Prices(input=1, output=2, adapter_byte=0.5)


@pytest.mark.parametrize(
    ("start", "stop", "price"),
    [(0, 4, 4), (0, 5, 5 + 2), (4, 5, 1 + 2), (5, 6, 2), (3, 8, 2 + 4 * 2), (0, 8, 5 + 4 * 2)],
)
def test_each_prompt_token_and_each_sampled_one_has_its_price(start: int, stop: int, price: float) -> None:
    """A prompt of 5: the position of its last token samples the first of the answer."""
    assert PRICES.price_of(5, start, stop) == price


class Paper:
    """Algorithm 2 of arXiv 2401.00588, line by line: queue Q, batch B, counters c."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.queue: list[tuple[str, int, int]] = []
        self.batch: list[tuple[str, int, int]] = []
        self.c: dict[str, float] = defaultdict(float)
        self.last: str | None = None
        self.weights = weights

    def arrives(self, client: str, number: int, prompt: int) -> None:
        if client not in {other for other, _, _ in self.queue}:
            if self.queue:
                self.c[client] = max(self.c[client], min(self.c[other] for other, _, _ in self.queue))
            elif self.last is not None:
                self.c[client] = max(self.c[client], self.c[self.last])
        self.queue.append((client, number, prompt))

    def admits(self, seats: int) -> list[int]:
        admitted = []
        while self.queue and len(self.batch) < seats:
            client = min((c for c, _, _ in self.queue), key=lambda c: self.c[c])
            request = next(each for each in self.queue if each[0] == client)
            self.c[client] += PRICES.input * request[2] / self.weights[client]
            self.queue.remove(request)
            self.batch.append(request)
            admitted.append(request[1])
            self.last = client
        return admitted

    def decodes(self) -> None:
        for client, _, _ in self.batch:
            self.c[client] += PRICES.output / self.weights[client]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_turns_are_those_of_the_papers_algorithm(data: st.DataObject) -> None:
    weights = {"a": 1.0, "b": 2.5, "c": 0.3}
    paper, ours = Paper(weights), VirtualCounters(PRICES, weights)
    waiting, running, numbers = deque[Sequence](), dict[int, str](), count()
    for _ in range(data.draw(st.integers(1, 20))):
        for client in data.draw(st.lists(st.sampled_from("abc"), max_size=3)):
            number, prompt = next(numbers), data.draw(st.integers(1, 9))
            paper.arrives(client, number, prompt)
            ours.enqueued(client, {each.tenant for each in waiting})
            waiting.append(sequence(str(number), [0] * prompt, tenant=client))
        admitted = []
        for each in ours.in_turn(list(waiting), ()):
            if len(running) == 3:
                break
            ours.admitted(each.tenant, ())
            ours.charge(each.tenant, PRICES.input * each.prompt_len)
            waiting.remove(each)
            running[int(each.id)] = each.tenant
            admitted.append(int(each.id))
        assert admitted == paper.admits(3)
        paper.decodes()
        for client in running.values():
            ours.charge(client, PRICES.output)
        for number in data.draw(st.lists(st.sampled_from(sorted(running)), max_size=2)) if running else ():
            running.pop(number, None)
        paper.batch = [each for each in paper.batch if each[1] in running]
        assert {client: pytest.approx(ours.counter(client)) for client in "abc"} == {c: paper.c[c] for c in "abc"}


def test_of_equal_counters_who_has_waited_longest_goes_first() -> None:
    """The next of each, not whose first one came before: with b1 and a1 in, both have paid 5."""
    counters = VirtualCounters(PRICES)
    waiting = [sequence(id, [0] * 5, tenant=id[0]) for id in ("b1", "a1", "a2", "b2")]
    order = []
    for each in counters.in_turn(waiting, ()):
        counters.charge(each.tenant, PRICES.input * each.prompt_len)
        order.append(each.id)
    assert order == ["b1", "a1", "a2", "b2"]
    behind = VirtualCounters(PRICES).in_turn(waiting, {"b"})
    assert next(behind).id == "a1", "before those who have something in the batch"


class Books:
    """What each tenant was served, counted from the plans alone: every position once, by its price, and every move of
    an adapter, whose name begins with its tenant's. `most_moved` is the most that moves cost it between two turns.
    """

    def __init__(self, bench: Bench, prices: Prices) -> None:
        self._bench, self._prices = bench, prices
        self._seen: set[tuple[str, int]] = set()
        self._moved: dict[str, float] = defaultdict(float)
        self.service: dict[str, float] = defaultdict(float)
        self.most_moved: dict[str, float] = defaultdict(float)

    def step(self) -> StepPlan | None:
        plan = self._bench.step()
        for adapter, size in self._bench.engine.tiers.moved.items():
            tenant, price = adapter[0], self._prices.adapter_byte * size
            self.service[tenant] += price
            self._moved[tenant] += price
            self.most_moved[tenant] = max(self.most_moved[tenant], self._moved[tenant])
        for admitted in plan.admitted if plan else ():
            self._moved.pop(admitted.tenant, None)
        for chunk in plan.chunks if plan else ():
            for position in range(chunk.start, chunk.stop):
                if (chunk.sequence.id, position) not in self._seen:
                    self._seen.add((chunk.sequence.id, position))
                    price = self._prices.price_of(chunk.sequence.prompt_len, position, position + 1)
                    self.service[chunk.sequence.tenant] += price
        return plan


PROMPT, ANSWER, SEATS = 30, 12, 4


def apart(
    data: st.DataObject, counters: VirtualCounters, weights: dict[str, float], adapters: dict[str, int]
) -> tuple[float, Books]:
    """How far the weighted services of two backlogged tenants come apart, at most, over any interval of a run."""
    bench = Bench(
        blocks=data.draw(st.integers(11, 60)), batch_tokens=data.draw(st.integers(5, 40)), sequences=SEATS,
        waiting=1000, counters=counters, adapters=adapters, host=200,
    )  # fmt: skip
    bench.mover.instant = data.draw(st.booleans())
    books, numbers, chance = Books(bench, counters.prices), count(), Random(data.draw(st.integers(0, 1 << 32)))
    kinds = {tenant: data.draw(st.tuples(st.integers(1, PROMPT), st.integers(1, ANSWER))) for tenant in "fgx"}

    def submit(tenant: str) -> None:
        prompt, answer = kinds[tenant]
        if chance.random() < 0.25:
            prompt, answer = chance.randint(1, PROMPT), chance.randint(1, ANSWER)
        number = next(numbers)
        tokens = [number, *range(prompt - 1)]  # no two begin alike, so that no prompt is cached
        own = [name for name in adapters if name.startswith(tenant)]
        adapter = chance.choice(own) if own and chance.random() < 0.4 else None
        bench.submit(str(number), tokens, adapter=adapter, tenant=tenant, max_tokens=answer)

    def able(tenant: str) -> int:
        """How many wait that no adapter keeps out."""
        return sum(each.tenant == tenant and each.adapter is None for each in bench.engine.scheduler.waiting)

    for _ in range(data.draw(st.integers(0, 10))):  # a past, which is to be no credit
        submit("x")
        submit(chance.choice("fg"))
        books.step()
    differences = []
    for _ in range(80):
        for tenant in "fg":
            while able(tenant) < SEATS + 1:
                submit(tenant)
        if chance.random() < 0.1:
            submit("x")
        for adapter in [each for each in bench.mover.reading if chance.random() < 0.5]:
            bench.mover.arrive(adapter)
        books.step()
        differences.append(books.service["f"] / weights["f"] - books.service["g"] / weights["g"])
    return max(differences) - min(differences), books


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([{"f": 1.0, "g": 1.0}, {"f": 1.0, "g": 3.0}, {"f": 0.2, "g": 0.5}]))
def test_two_backlogged_tenants_stay_within_the_bound(data: st.DataObject, weights: dict[str, float]) -> None:
    bound = PRICES.input * PROMPT + PRICES.output * SEATS * ANSWER
    found, _ = apart(data, VirtualCounters(PRICES, weights), weights, {})
    assert found <= sum(bound / weight for weight in weights.values())


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([{"f": 1.0, "g": 1.0}, {"f": 1.0, "g": 3.0}, {"f": 0.2, "g": 0.5}]))
def test_loads_move_two_tenants_apart_by_what_they_cost_and_no_more(
    data: st.DataObject, weights: dict[str, float]
) -> None:
    """Two adapters of five fit the device, and four the host, so they come and go all the time."""
    bound = PRICES.input * PROMPT + PRICES.output * SEATS * ANSWER
    adapters = {name: 45 for name in ("f1", "f2", "g1", "g2", "x1")}
    found, books = apart(data, VirtualCounters(PRICES, weights), weights, adapters)
    assume(all(books.most_moved[tenant] for tenant in weights))  # adapters were moved for both
    assert found <= sum((bound + books.most_moved[tenant]) / weight for tenant, weight in weights.items())


def test_without_prices_two_of_the_same_do_not() -> None:
    """So the bound is the counters' doing: when nothing costs anything, who sends long requests has most."""
    free = Prices(0, 0, 0)
    bench = Bench(batch_tokens=200, sequences=SEATS, waiting=1000, counters=VirtualCounters(free))
    books, numbers = Books(bench, PRICES), count()
    for _ in range(120):
        for tenant, prompt, answer in (("f", PROMPT, ANSWER), ("g", 1, 1)):
            while bench.engine.scheduler.num_waiting(tenant) < SEATS + 1:
                number = next(numbers)
                bench.submit(str(number), [number, *range(prompt - 1)], tenant=tenant, max_tokens=answer)
        books.step()
    assert books.service["f"] - books.service["g"] > 2 * (PRICES.input * PROMPT + PRICES.output * SEATS * ANSWER)


def test_a_weight_is_a_share() -> None:
    bench = Bench(waiting=1000, counters=VirtualCounters(PRICES, {"gold": 3.0}))
    books = Books(bench, PRICES)
    for number in range(150):
        bench.submit(f"gold {number}", [number] * 5, tenant="gold", max_tokens=8)
        bench.submit(f"free {number}", [number + 300] * 5, tenant="free", max_tokens=8)
    for _ in range(100):
        books.step()
    assert books.service["gold"] == pytest.approx(3 * books.service["free"], rel=0.1)


def test_work_is_never_held_back() -> None:
    """One tenant alone has all the seats, whatever it had before."""
    bench = Bench(counters=VirtualCounters(PRICES, {"small": 0.01}))
    for number in range(20):
        bench.submit(str(number), [number], tenant="small", max_tokens=10)
    plans = [bench.step() for _ in range(10)]
    assert [plan and len(plan.chunks) for plan in plans] == [4] * 10


@pytest.mark.parametrize("idle_steps", [0, 50])
def test_idle_time_is_no_credit(idle_steps: int) -> None:
    bench = Bench(waiting=1000, counters=VirtualCounters(PRICES))
    books = Books(bench, PRICES)
    for number in range(300):
        bench.submit(f"busy {number}", [number] * 3, tenant="busy")
    for _ in range(idle_steps):
        books.step()
    before = books.service["busy"]
    for number in range(300):
        bench.submit(f"back {number}", [number + 300] * 3, tenant="back")
    for _ in range(40):
        books.step()
    assert books.service["busy"] - before == pytest.approx(books.service["back"], rel=0.2)


def test_waiting_for_an_adapter_is_no_credit() -> None:
    bench = Bench(waiting=1000, adapters={"slow": 10}, counters=VirtualCounters(Prices(1, 2, 0)))
    bench.mover.instant = False
    bench.submit("waits", adapter="slow", tenant="patient")
    for number in range(300):
        bench.submit(f"busy {number}", [number] * 3, tenant="busy")
    for _ in range(50):
        bench.step()
    counters = bench.engine.scheduler.counters
    assert counters.counter("busy") - counters.counter("patient") <= 3 + 2 * 4 * 4
    bench.mover.arrive(named("slow"))
    bench.run_until("waits", steps=8)


@pytest.mark.parametrize("blocks", [8, 9, 12, 64])
def test_a_preempted_sequence_pays_for_nothing_twice(blocks: int) -> None:
    bench = Bench(blocks=blocks, counters=VirtualCounters(PRICES))
    for number in range(4):
        bench.submit(str(number), range(100 * number, 100 * number + 6), max_tokens=20, tenant="one")
    bench.run()
    assert blocks == 64 or any(plan.preempted for plan in bench.runner.plans)
    assert bench.engine.scheduler.counters.counter("one") == 4 * (6 * PRICES.input + 20 * PRICES.output)


def test_cached_tokens_are_free() -> None:
    bench = Bench(counters=VirtualCounters(PRICES))
    for name in ("first", "second"):
        bench.submit(name, range(10), tenant="one", max_tokens=1)
        bench.run()
    assert bench.engine.scheduler.counters.counter("one") == (10 + 2) * PRICES.input + 2 * PRICES.output


def test_a_load_is_paid_by_those_who_wait_for_it_and_a_pin_by_nobody() -> None:
    """The disk's bytes by who was to use it first; the device's by the next, since the first is not the poorest now."""
    bench = Bench(adapters={"a": 40, "b": 40}, counters=VirtualCounters(Prices(0, 0, adapter_byte=0.5)))
    counters = bench.engine.scheduler.counters
    bench.engine.tiers.pin(named("b"))
    bench.submit("1", adapter="a", tenant="first")
    bench.submit("2", adapter="a", tenant="second")
    bench.run()
    assert counters.counter("first") == counters.counter("second") == 0.5 * 40
    bench.submit("3", adapter="b", tenant="first")
    bench.run()
    assert counters.counter("first") == 0.5 * 40
