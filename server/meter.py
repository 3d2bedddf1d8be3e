"""What a request costs its caller: taken from the quota when it is accepted, written to the ledger when it ends.

Owns the meeting of quotas and ledger around one answer. Knows no response format.
"""

from dataclasses import dataclass, field
from time import monotonic, time

from server.principal import Principal
from server.quotas.keeper import Pass, Quotas
from server.usage.ledger import Ledger, Usage
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

    def admit(self, caller: Principal, claim: Claim) -> "Reading":
        """Raises RateLimited."""
        return Reading(self, caller, claim, self.quotas.admit(caller.tenant, claim.prompt_tokens + claim.max_tokens))


class Reading:
    """One request's. It ends once: refused by the engine, or with what it used."""

    def __init__(self, meter: Meter, caller: Principal, claim: Claim, let_in: Pass) -> None:
        self._meter, self._caller, self._claim, self._pass = meter, caller, claim, let_in
        self._started, self._began = time(), monotonic()

    def headers(self) -> dict[str, str]:
        return self._pass.headers()

    def refuse(self) -> None:
        """The engine did not take it."""
        self._pass.cancel()

    def end(
        self, cached_tokens: int, generated_tokens: int, finish_reason: str, prompt_tokens: int | None = None
    ) -> None:
        """It was accepted, and has ended one way or another. Less than the claim's prompts may have been accepted."""
        claim, caller = self._claim, self._caller
        prompt = claim.prompt_tokens if prompt_tokens is None else prompt_tokens
        self._pass.close(prompt + generated_tokens)
        if self._meter.writer is None:
            return
        self._meter.writer.record(
            Usage(
                id=claim.id,
                tenant=caller.tenant,
                project=caller.project,
                key=caller.key,
                adapter=claim.adapter,
                prompt_tokens=prompt,
                cached_tokens=cached_tokens,
                generated_tokens=generated_tokens,
                finish_reason=finish_reason,
                started=self._started,
                ended=self._started + monotonic() - self._began,  # a clock set meanwhile does not change what it took
            )
        )
