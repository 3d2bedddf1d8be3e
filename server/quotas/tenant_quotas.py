"""Holding tenants to their quotas: what is taken when a request comes in, and given back when it ends.

Owns the counts, and what a caller is told of them. Knows neither keys nor routes; everything runs on the event loop.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from time import monotonic

from server.errors import QuotaExceeded, RateLimited
from server.quotas.bucket import Bucket
from server.quotas.quota import Quota

BEGUN, ENDED = "uploads", "finished uploads"
"""The two ends of an upload. Each has the same limit a minute, so that none can be saved up in between."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a tenant has in the store: its adapters' names, and their bytes, every content counted once."""

    names: Set[str]
    bytes: int


@dataclass(slots=True)
class _Account:
    """One tenant's counts."""

    quota: Quota
    buckets: dict[str, Bucket]
    running: int = 0
    grants: list["UploadGrant"] = field(default_factory=list)
    named: list["UploadGrant"] = field(default_factory=list)


@dataclass(slots=True)
class RequestGrant:
    """One request that was let in. Close it once."""

    _account: _Account
    _tokens: int
    _closed: bool = field(default=False)

    def headers(self) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*`."""
        return _headers(self._account)

    def close(self, used: int) -> None:
        """The request has ended and `used` that many tokens. Idempotent."""
        if not self._closed:
            self._closed = True
            self._account.running -= 1
            if (tokens := self._account.buckets.get("tokens")) is not None:
                tokens.give_back(self._tokens - used)

    def cancel(self) -> None:
        """The request was not accepted after all, and counts for nothing."""
        if not self._closed and (requests := self._account.buckets.get("requests")) is not None:
            requests.give_back(1)
        self.close(0)


@dataclass(slots=True, eq=False)
class UploadGrant:
    """What one upload was granted, until it ends. Of several at once, the earlier ones have precedence."""

    _quotas: "Quotas"
    _account: "_Account"
    declared: int
    name: str | None = None

    def begin(self) -> None:
        """Raises RateLimited."""
        self._quotas.take(self._account, {BEGUN: 1})

    def end(self) -> None:
        """Before the bytes are judged. Raises RateLimited."""
        self._quotas.take(self._account, {ENDED: 1})

    def take_name(self, name: str) -> None:
        """What the upload is to be called."""
        self.name = name
        self._account.named.append(self)

    def ahead(self) -> Holdings:
        """What those that came before are about to store. To be asked before what is held: whoever ends in between
        then counts twice, and never not at all.
        """
        grants, named = self._account.grants, self._account.named
        bytes = sum(grant.declared for grant in grants[: grants.index(self)])
        return Holdings({grant.name or "" for grant in named[: named.index(self) if self in named else 0]}, bytes)

    def check(self, held: Holdings, ahead: Holdings) -> None:
        """Raises QuotaExceeded when the declared bytes, or the name, do not fit beside what the tenant holds. A new
        version of an old name is no name more.
        """
        quota, names = self._account.quota, held.names | ahead.names
        if quota.stored_bytes is not None and held.bytes + ahead.bytes + self.declared > quota.stored_bytes:
            raise QuotaExceeded(f"The tenant's adapters take {held.bytes} bytes, and may take {quota.stored_bytes}.")
        if quota.adapters is None or self.name is None or self.name in names:
            return
        if len(names) >= quota.adapters:
            raise QuotaExceeded(f"The tenant has {len(names)} adapters, and may have {quota.adapters}.")


class Quotas:
    """`default` holds for every tenant; `tenants` are the full quotas of those that have others."""

    def __init__(
        self,
        default: Quota | None = None,
        tenants: Mapping[str, Quota] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._default, self._tenants, self._clock = default or Quota(), dict(tenants or {}), clock
        self._accounts: dict[str, _Account] = {}

    def tokens_a_minute(self, tenant: str) -> int | None:
        """The most that one request of the tenant's can ever be granted; None where there is no limit."""
        return self._quota(tenant).tokens_per_minute

    def admit(self, tenant: str, tokens: int) -> RequestGrant:
        """Count one request that may use up to `tokens` tokens. Raises RateLimited, and then nothing was counted."""
        account = self._account(tenant)
        most = account.quota.concurrent_requests
        if most is not None and account.running >= most:
            message = f"{account.running} requests are running already, of {most} at once."
            raise RateLimited(message, 1, _headers(account))
        self.take(account, {"requests": 1, "tokens": tokens})
        account.running += 1
        return RequestGrant(account, tokens)

    def holds_storage(self, tenant: str) -> bool:
        """Whether what the tenant has stored matters, and `upload` asks for it."""
        quota = self._quota(tenant)
        return quota.adapters is not None or quota.stored_bytes is not None

    @contextmanager
    def upload(self, tenant: str, declared: int) -> Iterator["UploadGrant"]:
        """One upload of up to `declared` bytes, which count from now until it ends."""
        account = self._account(tenant)
        grant = UploadGrant(self, account, declared)
        account.grants.append(grant)
        try:
            yield grant
        finally:
            account.grants.remove(grant)
            if grant in account.named:
                account.named.remove(grant)

    def take(self, account: _Account, wanted: Mapping[str, int]) -> None:
        """Raises RateLimited, and then nothing was taken."""
        self._check(account, wanted)
        for name, count in wanted.items():
            if name in account.buckets:
                account.buckets[name].take(count)

    def _check(self, account: _Account, wanted: Mapping[str, int]) -> None:
        for name, count in wanted.items():
            bucket = account.buckets.get(name)
            if bucket is None or bucket.has(count):
                continue
            never = count > bucket.limit
            fix = "Ask for less: lower max_tokens, or shorten the prompt." if never else "Retry later."
            message = f"This asks for {count} {name} of {bucket.limit} a minute, and {bucket.remaining} are left. {fix}"
            raise RateLimited(message, None if never else bucket.wait_s(count), _headers(account))

    def _account(self, tenant: str) -> _Account:
        if tenant not in self._accounts:
            quota = self._quota(tenant)
            rates = {
                "requests": quota.requests_per_minute,
                "tokens": quota.tokens_per_minute,
                BEGUN: quota.uploads_per_minute,
                ENDED: quota.uploads_per_minute,
            }
            buckets = {name: Bucket(rate, self._clock) for name, rate in rates.items() if rate is not None}
            self._accounts[tenant] = _Account(quota, buckets)
        return self._accounts[tenant]

    def _quota(self, tenant: str) -> Quota:
        return self._tenants.get(tenant, self._default)


def _headers(account: _Account) -> dict[str, str]:
    headers = {}
    for name in ("requests", "tokens"):
        if (bucket := account.buckets.get(name)) is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(bucket.remaining)
            headers[f"x-ratelimit-reset-{name}"] = _duration(bucket.reset_s)
    return headers


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.0f}s" if minutes else f"{rest:.3g}s"
