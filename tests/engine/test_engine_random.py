"""Whatever comes in whatever order: every accepted request ends once, with the right tokens, and nothing leaks."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from adapters.device_quotas import DeviceQuota, DeviceQuotas
from adapters.manifest import AdapterId
from engine.errors import AdapterTooLarge, DeviceQuotaTooSmall, PromptTooLong, QueueFull
from engine.events import Finished
from engine.sequence import FinishReason, Request, SamplingParams
from tests.support.engine_fakes import Bench, expected_tokens, named

SIZES = {"a": 30, "bb": 40, "ccc": 60, "dddd": 90, "eeeee": 200}
adapters = st.sampled_from([None, None, *SIZES])


class Traffic(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(4, 20),
        batch=st.integers(4, 20),
        sequences=st.integers(1, 4),
        device=st.sampled_from([90, 130]),
        quota=st.sampled_from(
            [DeviceQuota(), DeviceQuota(), DeviceQuota(adapters=1), DeviceQuota(adapters=2), DeviceQuota(bytes=80)]
        ),
    )
    def start(self, blocks: int, batch: int, sequences: int, device: int, quota: DeviceQuota) -> None:
        self.bench = Bench(
            blocks=blocks, batch_tokens=batch, sequences=sequences, waiting=12, adapters=SIZES, device=device, host=200,
            patience=2, quotas=DeviceQuotas(tenants={"acme": quota}),
        )  # fmt: skip
        self.bench.mover.instant = False
        self.accepted: dict[str, Request] = {}
        self.aborted: set[str] = set()

    @rule(
        start=st.integers(0, 3),
        length=st.integers(1, 30),
        max_tokens=st.integers(0, 12),
        adapter=adapters,
        tenant=st.sampled_from(["", "acme"]),
        scored=st.booleans(),
        fault=st.sampled_from(["", "", "", "", "", "raises", "overflows"]),
    )
    def submit(
        self, start: int, length: int, max_tokens: int, adapter: str | None, tenant: str, scored: bool, fault: str
    ) -> None:
        id = f"r{len(self.accepted)}"
        params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=0 if scored else None)
        try:
            prompt = range(start, start + length)
            request = self.bench.submit(id, prompt, adapter=adapter, tenant=tenant, params=params)
        except (PromptTooLong, QueueFull, AdapterTooLarge, DeviceQuotaTooSmall):
            return
        self.accepted[id] = request
        if fault:
            getattr(self.bench.runner, fault).add(id)

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.bench.step()

    @rule(data=st.data(), well=st.integers(0, 4))
    def read_ends(self, data: st.DataObject, well: int) -> None:
        if self.bench.mover.reading:
            adapter = data.draw(st.sampled_from(sorted(self.bench.mover.reading)))
            (self.bench.mover.corrupt.discard if well else self.bench.mover.corrupt.add)(adapter)
            self.bench.mover.arrive(adapter)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.accepted:
            id = data.draw(st.sampled_from(sorted(self.accepted)))
            if self.bench.reason(id) is None:
                self.aborted.add(id)
            self.bench.engine.abort(id)
            self.bench.engine.check_integrity()

    @rule(adapter=st.sampled_from([*SIZES]), on=st.booleans())
    def pin(self, adapter: str, on: bool) -> None:
        try:
            if on:
                self.bench.engine.tiers.pin(named(adapter))
            else:
                self.bench.engine.tiers.residency.unpin(named(adapter))
        except AdapterTooLarge:
            assert on

    @rule(adapter=st.sampled_from([*SIZES]), on=st.booleans())
    def merge(self, adapter: str, on: bool) -> None:
        if not on:
            self.bench.engine.unmerge()
            return
        try:
            self.bench.engine.merge(named(adapter))
        except AdapterTooLarge:
            return

    @rule(adapter=st.sampled_from([*SIZES]))
    def forget(self, adapter: str) -> None:
        using: set[AdapterId | None] = {
            request.adapter for id, request in self.accepted.items() if self.bench.reason(id) is None
        }
        if named(adapter) not in using:
            self.bench.engine.forget(named(adapter))

    @rule(adapters=st.lists(st.sampled_from([*SIZES]), max_size=3))
    def prefetch(self, adapters: list[str]) -> None:
        self.bench.engine.tiers.prefetch([named(adapter) for adapter in adapters])

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        for _ in range(400):
            if not bench.engine.scheduler.has_work:
                break
            for adapter in list(bench.mover.reading):
                bench.mover.arrive(adapter)
            bench.step()
        for id, request in self.accepted.items():
            self.check_end(id, request)
        ends = [event for event in bench.events if isinstance(event, Finished)]
        assert len(ends) == len(self.accepted), "each ends, and once"
        assert bench.engine.pool.num_used == 0

    def check_end(self, id: str, request: Request) -> None:
        reason, tokens = self.bench.reason(id), self.bench.tokens(id)
        assert tokens == expected_tokens(request)[: len(tokens)]
        if id in self.aborted:
            return
        assert reason in (FinishReason.LENGTH, FinishReason.ERROR), id
        if reason is FinishReason.LENGTH:
            assert len(tokens) == request.params.max_tokens
            if request.params.prompt_logprobs is not None:
                scored = self.bench.outputs[id][0].prompt_logprobs
                assert scored is not None and len(scored) == len(request.prompt)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
