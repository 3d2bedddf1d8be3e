"""What a request costs its caller: taken from the quota and noted in the ledger when it is accepted, told when it ends.

Owns the meeting of quotas and ledger around one answer. Knows no response format.
"""

from asyncio import TimerHandle, get_running_loop
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import floor
from time import monotonic, time

from server.principal import Principal
from server.quotas.tenant_quotas import Quotas, RequestGrant
from server.usage.ledger import Ledger, UsageStart
from server.usage.writer import LedgerWriter


@dataclass(frozen=True, slots=True)
class Claim:
    """A request's `id`, its adapter as `name@version` or "" for the base, and how many tokens it may come to."""

    id: str
    adapter: str
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Meter:
    """Without quotas nothing is refused, without a ledger nothing is written."""

    quotas: Quotas = field(default_factory=Quotas)
    writer: LedgerWriter | None = None

    @property
    def ledger(self) -> Ledger | None:
        """Where what was written can be read."""
        return None if self.writer is None else self.writer.ledger

    def admit(self, caller: Principal, claim: Claim) -> "MeteredRequest":
        """Raises RateLimited."""
        return MeteredRequest(
            self, caller, claim, self.quotas.admit(caller.tenant, claim.prompt_tokens + claim.max_tokens)
        )


class MeteredRequest:
    """One request and what it costs. It ends once: refused by the engine, or with what it used."""

    def __init__(self, meter: Meter, caller: Principal, claim: Claim, grant: RequestGrant) -> None:
        self._writer, self._grant, self._began = meter.writer, grant, monotonic()
        self._timer: TimerHandle | None = None
        self._begun = UsageStart(
            claim.id, caller.tenant, caller.project, caller.key, claim.adapter, claim.prompt_tokens, started=time()
        )

    def headers(self) -> dict[str, str]:
        return self._grant.headers()

    def refuse(self) -> None:
        """The engine did not take it."""
        self._grant.cancel()

    def accepted(self, prompt_tokens: int | None = None) -> None:
        """The engine took it, or so far only `prompt_tokens` of the claim's: told again when it has taken more.

        From here on the request is in the ledger whatever becomes of the server.
        """
        if prompt_tokens is not None:
            self._begun = replace(self._begun, prompt_tokens=prompt_tokens)
        if self._writer is not None:
            self._writer.record(self._begun)

    def follow(self, so_far: Callable[[], int]) -> None:
        """Note the tokens that it got `so_far` about once a second until its end, in case the server is killed, whether
        its client reads or not."""
        if self._writer is not None:
            self._later(1.0, so_far)

    def _later(self, wait_s: float, so_far: Callable[[], int]) -> None:
        """At the first whole second after `wait_s`: whenever they began, all that run are noted in one write."""
        now = monotonic()
        self._timer = get_running_loop().call_later(floor(now + wait_s) + 1.0 - now, self._note, so_far)

    def _note(self, so_far: Callable[[], int]) -> None:
        assert self._writer is not None
        if (tokens := so_far()) > self._begun.generated_tokens:
            self._begun = replace(self._begun, generated_tokens=tokens)
            self._writer.record(self._begun)
        self._later(0.0, so_far)

    def end(self, cached_tokens: int, generated_tokens: int, finish_reason: str) -> None:
        """It was accepted, and has ended one way or another."""
        if self._timer is not None:
            self._timer.cancel()
        self._grant.close(self._begun.prompt_tokens + generated_tokens)
        if self._writer is not None:
            ended = self._begun.started + monotonic() - self._began  # a clock set meanwhile does not change its length
            self._writer.record(self._begun.ended(cached_tokens, generated_tokens, finish_reason, ended))
