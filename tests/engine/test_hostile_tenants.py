"""What one tenant's flood does to another: nothing much, counted in steps. Cases are numbered as in the threat list."""

from itertools import count

import pytest

from adapters.device_quotas import DeviceQuota, DeviceQuotas
from engine.errors import DeviceQuotaTooSmall, QueueFull
from engine.events import AdapterEvicted
from engine.fairness import Prices, VirtualCounters
from engine.sequence import FinishReason
from tests.support.engine_fakes import Bench, expected_tokens, named


def steps_to_first_token(bench: Bench, id: str, steps: int = 500) -> int:
    for step in range(1, steps):
        bench.step()
        if bench.tokens(id):
            return step
    raise AssertionError(f"{id} had no token after {steps} steps")


@pytest.mark.parametrize("prompt", [3, 16, 40])
@pytest.mark.parametrize("flood", [(3, 100), (90, 1), (60, 100)])
@pytest.mark.parametrize("blocks", [64, 500])
def test_i83_a_flood_leaves_anothers_first_token_within_twice_of_idle(
    prompt: int, flood: tuple[int, int], blocks: int
) -> None:
    """A fills its queue again and again, the seats and, in the small cache, the blocks; B sends now and then."""
    idle = Bench(blocks=blocks, batch_tokens=32)
    idle.submit("b", range(prompt))
    alone = steps_to_first_token(idle, "b")

    bench = Bench(blocks=blocks, batch_tokens=32, waiting=900)
    length, answer = flood
    numbers = count()

    def flood_on() -> None:
        with pytest.raises(QueueFull):
            for number in numbers:
                bench.submit(f"a{number}", [number, *range(length - 1)], tenant="a", max_tokens=answer)

    flood_on()
    for _ in range(20):
        bench.step()
    for turn in range(4):
        flood_on()
        request = bench.submit(f"b{turn}", [turn, *range(prompt - 1)], tenant="b")
        assert steps_to_first_token(bench, f"b{turn}") <= 2 * alone
        bench.run_until(f"b{turn}")
        assert bench.tokens(f"b{turn}") == expected_tokens(request)
        for _ in range(15):  # B asks for less than its share of the batch; asking for more, it waits for its turn
            bench.step()


def test_i83_two_floods_and_a_third_tenant_all_go_on() -> None:
    bench = Bench(waiting=1000)
    for number in range(60):
        for place, tenant in enumerate("xy"):
            bench.submit(f"{tenant}{number}", [1000 * place + number], tenant=tenant, max_tokens=30)
    for _ in range(20):
        bench.step()
    ends_before = len([id for id in bench.outputs if bench.reason(id)])
    for turn in range(20):
        bench.submit(f"b{turn}", tenant="b", max_tokens=2)
        bench.run_until(f"b{turn}", steps=4)
    assert len([id for id in bench.outputs if bench.reason(id)]) > ends_before + 20, "the floods are served as well"
    bench.run(2000)
    assert all(bench.reason(id) is FinishReason.LENGTH for id in bench.outputs)


@pytest.mark.parametrize("seats", [2, 3])
@pytest.mark.parametrize("tenants", [("", ""), ("a", "b")])
@pytest.mark.parametrize("patience", [0, 4, 16])
def test_i84_no_adapter_starves_behind_another_that_has_the_only_slot(
    seats: int, tenants: tuple[str, str], patience: int
) -> None:
    """A, B, A, A, A, ... and room for one: B is served within (patience + 1) * L + 2 steps, L steps a request runs.

    B is overtaken at most `patience` times, by one at least in every L steps; then those with A end within L, B is
    placed, and it runs. No two with A end in one step, so that A is never idle by itself.
    """
    bench = Bench(adapters={"a": 60, "b": 60}, device=100, patience=patience, sequences=seats, waiting=10_000)
    length = 5
    numbers = count()

    def send_a(length: int = length) -> str:
        id = f"a{next(numbers)}"
        bench.submit(id, adapter="a", tenant=tenants[0], max_tokens=length)
        return id

    first = [send_a(length - place) for place in range(seats)]
    while not all(bench.tokens(id) for id in first):
        bench.step()
    bench.submit("b", adapter="b", tenant=tenants[1], max_tokens=length)
    for _ in range((patience + 1) * length + 2):
        for _ in range(seats + 1):
            send_a()
        bench.step()
        if bench.tokens("b"):
            break
    assert bench.tokens("b")
    bench.run(100_000)
    assert all(bench.reason(id) is FinishReason.LENGTH for id in bench.outputs)


@pytest.mark.parametrize("prices", [Prices(), Prices(1, 2, 1000)])
def test_i85_one_tenants_loads_hold_up_nobody_elses(prices: Prices) -> None:
    """A asks for 200 adapters, of which few fit; B's adapter is read next, whatever A still waits for."""
    adapters = {f"a{number}": 10 for number in range(200)} | {"b": 10}
    bench = Bench(adapters=adapters, device=40, host=60, fetches=2, waiting=1000, counters=VirtualCounters(prices))
    bench.mover.instant = False
    for number in range(200):
        bench.submit(f"a{number}", adapter=f"a{number}", tenant="a")
    for _ in range(10):
        bench.step()
    bench.submit("b", adapter="b", tenant="b")
    ahead = 0
    while ahead <= 2 and "b" not in bench.mover.reading and "b" not in bench.mover.host:
        bench.step()
        if bench.mover.reading and "b" not in bench.mover.reading:
            bench.mover.arrive(next(iter(bench.mover.reading)))
            ahead += 1
    assert ahead <= 2, "what was under way already"
    for adapter in list(bench.mover.reading):
        bench.mover.arrive(adapter)
    bench.run_until("b", steps=12)
    while bench.engine.scheduler.has_work:
        for adapter in list(bench.mover.reading):
            bench.mover.arrive(adapter)
        bench.step()
    assert all(bench.reason(id) is FinishReason.LENGTH for id in bench.outputs)


@pytest.mark.parametrize("quota", [DeviceQuota(adapters=1), DeviceQuota(bytes=15)])
@pytest.mark.parametrize("patience", [2, 16])
def test_i85_a_tenant_at_its_device_quota_holds_up_itself_alone(quota: DeviceQuota, patience: int) -> None:
    """A may have one adapter, and keeps it busy while it wants another; B's adapters come in as on an idle server.

    A's other adapter is placed as well: within (patience + 1) * L + 3 steps, L steps a request runs.
    """
    quotas = DeviceQuotas(tenants={"a": quota})
    bench = Bench(
        adapters=dict.fromkeys(["a0", "a1", *(f"b{n}" for n in range(40))], 10),
        device=60, sequences=8, batch_tokens=64, patience=patience, quotas=quotas, waiting=10_000,
        counters=VirtualCounters(weights={"a": 1000.0}),  # it is always A's turn first
    )  # fmt: skip
    length, numbers = 5, count()

    def send_a() -> None:
        bench.submit(f"a{next(numbers)}", [next(numbers)], adapter="a0", tenant="a", max_tokens=length)

    send_a()
    bench.step()
    bench.submit("other", adapter="a1", tenant="a", max_tokens=length)
    waited: list[int] = []
    for turn in range((patience + 1) * length + 3):
        send_a()
        if turn % 4 == 0:
            bench.submit(f"b{turn}", [turn], adapter=f"b{turn // 4 % 40}", tenant="b", max_tokens=2)
            waited.append(steps_to_first_token(bench, f"b{turn}"))
        else:
            bench.step()
        if bench.tokens("other"):
            break
    assert bench.tokens("other"), "A's requests with a0 made way for it"
    assert max(waited) <= 3, "a read, a placement and a step: nobody drained for A's quota"
    bench.run(100_000)
    assert all(bench.reason(id) is FinishReason.LENGTH for id in bench.outputs)


def test_i85_with_device_quotas_nobodys_flood_costs_another_its_place() -> None:
    """A asks for 60 adapters in turn; B's two, used now and then, stay where they are. Without a quota they do not."""
    left: list[int] = []
    for quota in (DeviceQuota(adapters=3), DeviceQuota()):
        adapters = dict.fromkeys([*(f"a{n}" for n in range(60)), "b0", "b1"], 10)
        bench = Bench(adapters=adapters, device=50, quotas=DeviceQuotas(tenants={"a": quota}), waiting=1000)
        for turn in range(120):
            bench.submit(f"a{turn}", [turn], adapter=f"a{turn % 60}", tenant="a", max_tokens=2)
            if turn % 20 == 0:
                bench.submit(f"b{turn}", [turn], adapter=f"b{turn // 20 % 2}", tenant="b", max_tokens=2)
            bench.step()
        bench.run()
        assert all(bench.reason(id) is FinishReason.LENGTH for id in bench.outputs)
        mine = {named("b0"), named("b1")}
        evicted = [each for each in bench.of(AdapterEvicted) if isinstance(each, AdapterEvicted)]
        left.append(sum(each.adapter in mine and each.tier == "device" for each in evicted))
    assert left[0] == 0 < left[1]


def test_i85_an_adapter_larger_than_its_tenants_device_quota_is_refused_at_once() -> None:
    bench = Bench(adapters={"large": 30}, quotas=DeviceQuotas(tenants={"a": DeviceQuota(bytes=20)}))
    with pytest.raises(DeviceQuotaTooSmall, match="takes 30 bytes .* may take 20"):
        bench.submit("r", adapter="large", tenant="a")
    bench.submit("r", adapter="large", tenant="b")
    bench.run()
    assert bench.reason("r") is FinishReason.LENGTH


@pytest.mark.parametrize("adapter", [None, "shared"])
def test_h82_anothers_cached_prompt_is_no_shorter_way(adapter: str | None) -> None:
    """Neither cached tokens nor a step less tell B that A has sent the same prompt."""
    cached = []
    for warm in (False, True):
        bench = Bench(adapters={"shared": 10}, batch_tokens=8)
        bench.submit("load", [9] * 3, adapter=adapter, tenant="a")
        bench.run()
        if warm:
            for turn in range(3):
                bench.submit(f"a{turn}", range(40), adapter=adapter, tenant="a")
                bench.run()
                admission = bench.outputs[f"a{turn}"][0].admission
                assert admission is not None and admission.cached_tokens == (36 if turn else 0)
        for turn in range(2):
            bench.submit(f"b{turn}", range(40), adapter=adapter, tenant="b")
            steps = steps_to_first_token(bench, f"b{turn}")
            bench.run()
            admission = bench.outputs[f"b{turn}"][0].admission
            assert admission is not None
            cached.append((admission.cached_tokens, steps))
    assert cached[:2] == cached[2:] == [(0, 5), (36, 1)], "B finds its own prompts, and nobody else's"
