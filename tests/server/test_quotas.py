"""Buckets and accounts on a clock that the test turns."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ByteSize

from adapters.device_quotas import DeviceQuota
from loader.plan import ServingMemoryPlan
from server.assembly import engine_config
from server.errors import QuotaExceeded, RateLimited
from server.quotas.bucket import Bucket
from server.quotas.quota import Quota
from server.quotas.tenant_quotas import Holdings, Quotas
from server.settings import Settings, SettingsError, read_settings

NOTHING = Holdings(frozenset(), 0)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_refills_evenly_and_never_beyond_its_limit() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert not bucket.has(1) and bucket.remaining == 0
    assert (bucket.wait_s(1), bucket.wait_s(30), bucket.reset_s) == (1.0, 30.0, 60.0)
    clock.now += 10
    assert bucket.has(10) and not bucket.has(11)
    clock.now += 3600
    assert bucket.remaining == 60 and bucket.reset_s == 0
    bucket.give_back(5)
    assert bucket.remaining == 60


def test_what_was_used_beyond_what_was_asked_is_a_debt() -> None:
    bucket = Bucket(60, Clock())
    bucket.take(10)
    bucket.give_back(10 - 80)
    assert bucket.remaining == 0 and bucket.wait_s(1) == 21


def test_tokens_are_counted_as_asked_and_put_right_at_the_end() -> None:
    quotas = Quotas(Quota(tokens_per_minute=100), clock=Clock())
    first = quotas.admit("a", 90)
    with pytest.raises(RateLimited) as refused:
        quotas.admit("a", 20)
    assert refused.value.status_code == 429
    assert refused.value.headers is not None and refused.value.headers["retry-after"] == "6"
    first.close(used=30)
    first.close(used=30)
    assert quotas.admit("a", 70).headers()["x-ratelimit-remaining-tokens"] == "0"


def test_a_refused_request_counts_for_nothing() -> None:
    quotas = Quotas(Quota(requests_per_minute=1, tokens_per_minute=100, concurrent_requests=1), clock=Clock())
    with pytest.raises(RateLimited, match="lower max_tokens") as never:
        quotas.admit("a", 101)
    assert never.value.headers is not None and never.value.headers["x-should-retry"] == "false"
    quotas.admit("a", 100).cancel()
    quotas.admit("a", 100).close(100)
    with pytest.raises(RateLimited):
        quotas.admit("a", 0)


def test_only_so_many_run_at_once() -> None:
    quotas = Quotas(Quota(requests_per_minute=10, concurrent_requests=2), clock=Clock())
    running = [quotas.admit("a", 5), quotas.admit("a", 5)]
    with pytest.raises(RateLimited, match="2 requests are running") as refused:
        quotas.admit("a", 5)
    assert refused.value.headers is not None, "what is left of the minute is told here too, and nothing of it was taken"
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "8"
    running[0].close(0)
    quotas.admit("a", 5)


def test_tenants_have_accounts_of_their_own() -> None:
    quotas = Quotas(Quota(requests_per_minute=1), {"big": Quota()}, clock=Clock())
    for tenant in ("a", "b"):
        quotas.admit(tenant, 1)
        with pytest.raises(RateLimited):
            quotas.admit(tenant, 1)
    for _ in range(100):
        assert quotas.admit("big", 1_000_000).headers() == {}


def held(names: str, bytes: int) -> Holdings:
    return Holdings(set(names.split()), bytes)


def test_i85_storage_is_refused_before_a_byte_is_read() -> None:
    quotas = Quotas(Quota(stored_bytes=ByteSize(100)), {"b": Quota()})
    with quotas.upload("a", 50) as first, quotas.upload("a", 20) as second, quotas.upload("b", 10**9) as other:
        first.check(held("one", 40), first.ahead())
        with pytest.raises(QuotaExceeded) as refused:
            second.check(held("one", 40), second.ahead())  # what is under way counts as well
        other.check(held("two", 10**12), other.ahead())
    assert refused.value.headers is not None and refused.value.headers["x-should-retry"] == "false"
    with quotas.upload("a", 60) as alone:
        alone.check(held("one", 40), alone.ahead())
        with pytest.raises(QuotaExceeded):
            alone.check(held("one two", 41), alone.ahead())  # asked again, when more is there


def test_i85_one_adapter_too_many() -> None:
    quotas = Quotas(Quota(adapters=1))
    with quotas.upload("a", 1) as first, quotas.upload("a", 1) as second:
        second.take_name("new")
        first.take_name("other")
        second.check(NOTHING, second.ahead())
        with pytest.raises(QuotaExceeded, match="may have 1"):
            first.check(NOTHING, first.ahead())  # of two at once, the one that was named first has precedence
    with quotas.upload("a", 1) as again:
        again.take_name("new")
        again.check(held("new", 1), again.ahead())
        with pytest.raises(QuotaExceeded):
            again.check(held("old", 1), again.ahead())


def test_i85_uploads_have_a_rate_at_both_ends() -> None:
    """So that what was begun minutes ago is not all judged at once."""
    clock = Clock()
    quotas = Quotas(Quota(uploads_per_minute=1), clock=clock)
    for end in ("begin", "end"):
        with quotas.upload("a", 1) as grant:
            getattr(grant, end)()
            with pytest.raises(RateLimited) as refused:
                getattr(grant, end)()
        assert refused.value.headers is not None and refused.value.headers["retry-after"] == "60"
    with quotas.upload("b", 1) as other:
        other.begin()
    clock.now += 60
    with quotas.upload("a", 1) as grant:
        grant.begin()
        grant.end()


def test_a_tenants_table_stands_over_the_default() -> None:
    default, own = Quota(requests_per_minute=10, adapters=3, weight=2), Quota(adapters=None, requests_per_minute=50)
    assert default.overridden(own) == Quota(requests_per_minute=50, adapters=None, weight=2)


def test_the_engine_is_told_of_device_quotas() -> None:
    acme = Quota(device_bytes=ByteSize(1 << 20))
    settings = Settings(quota=Quota(device_adapters=4), tenants={"acme": acme})
    config = engine_config(settings, ServingMemoryPlan(0, 8, 16, 0, 100, 100, ()), 64)
    assert config.device_quota == DeviceQuota(adapters=4)
    assert config.tenant_device_quotas == {"acme": DeviceQuota(bytes=1 << 20, adapters=4)}


def test_quotas_come_from_the_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "rootstock.toml"
    path.write_text('[quota]\nstored_bytes = "2GiB"\nweight = 2\n\n[tenants.acme]\nrequests_per_minute = 60\n')
    settings = read_settings({"config": path})
    assert settings.quota.stored_bytes == 2 << 30
    assert settings.tenant_quotas() == {"acme": Quota(stored_bytes=ByteSize(2 << 30), weight=2, requests_per_minute=60)}
    path.write_text("[tenants.acme]\nrequests_per_hour = 60\n")
    with pytest.raises(SettingsError, match=r"\[tenants.acme\] requests_per_hour"):
        read_settings({"config": path})
