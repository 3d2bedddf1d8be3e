"""Eval files: what their lines mean in tokens, and how well an adapter predicts them, through the engine.

Owns the reading and the measuring. A row is one prompt request without an answer, as `echo` makes it, and takes its
place among everybody's. Knows no routes; what is worse than what, the scores say.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapters.evaluations import EvalFile, Score
from adapters.version import Version
from engine.sequence import FinishReason, Request, SamplingParams, TokenLogprob
from server.deps import in_thread
from server.errors import ApiError, ChatRefused, GenerationFailed
from server.generation import Generation
from server.meter import Claim, MeteredRequest
from server.ports import Message, Services, Tokenizer
from server.principal import Principal
from training.data.jsonl import Line, parse
from training.data.rows import Row, detect, faults_of, parse_row

MAX_ROWS = 256
AT_ONCE = 4
"""So few rows are in the engine together: a promote is nobody's flood."""

_FILE = Path("eval.jsonl")
_PARAMS = SamplingParams(max_tokens=0, prompt_logprobs=1)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Item:
    """One row: `tokens[start:]` are the completion's."""

    tokens: tuple[int, ...]
    start: int


def read_eval(content: bytes, tokenizer: Tokenizer, max_len: int) -> list[Item]:
    """Raises ApiError 422 `invalid_eval` with the first faults, each with its line."""
    found = parse(content, _FILE)
    faults = list(found.faults)
    if len(found.lines) > MAX_ROWS:
        faults.append(f"{_FILE}: it has {len(found.lines)} rows. Give {MAX_ROWS} at most.")
        raise _invalid(faults)
    items = []
    for line in found.lines:
        wrong = list(_wrong(line))
        item = None if wrong else _item(parse_row(line.value, detect(line.value) or "text"), tokenizer)
        if isinstance(item, str):
            wrong = [item]
        elif item is not None and len(item.tokens) > max_len:
            wrong = [f"it has {len(item.tokens)} tokens, and the context {max_len}. Shorten it."]
        elif item is not None:
            items.append(item)
        faults += [f"{_FILE}:{line.number}: {fault}" for fault in wrong]
    if faults:
        raise _invalid(faults)
    return items


async def score(services: Services, version: Version, file: EvalFile, caller: Principal, request_id: str) -> Score:
    """`version`'s score on `file`: the remembered one, or measured now, at the caller's expense, and remembered.

    Raises what reading the file, leasing the version and submitting raise, and RateLimited before anything is measured.
    """
    served = services.tenant_catalog.base
    base = f"{await in_thread(lambda: served.weights)}/{served.quantization or 'none'}"
    known = version.score
    if known is not None and (known.sha256, known.base) == (file.sha256, base):
        return known
    items = await in_thread(read_eval, file.content, services.tokenizer, services.limits.max_model_len)
    # Not cancelled with whoever waits for it: the thread would take the lease all the same, and nobody end it.
    leasing = asyncio.create_task(in_thread(services.tenant_catalog.lease, f"{version.name}@{version.number}"))
    try:
        await asyncio.shield(leasing)
        reports = await _Measuring(services, items, version, caller, f"{request_id}-eval-{version.number}").reports()
    finally:
        await in_thread((await leasing).release)
    tokens = [report for row in reports for report in row]
    found = Score(
        sha256=file.sha256,
        base=base,
        mean_logprob=sum(token.logprob for token in tokens) / len(tokens),
        exact=sum(all(token.top[0][0] == token.token_id for token in row) for row in reports) / len(reports),
        rows=len(reports),
        tokens=len(tokens),
    )
    await in_thread(services.tenant_catalog.remember_score, version, found)
    return found


@dataclass(slots=True)
class _Measuring:
    """One version on one file, as one request of its caller's: for the quotas, and in the ledger under `id`."""

    services: Services
    items: Sequence[Item]
    version: Version
    caller: Principal
    id: str
    metered: MeteredRequest = field(init=False)
    accepted_tokens: int = 0
    finish_reason: FinishReason = FinishReason.ABORT

    async def reports(self) -> list[list[TokenLogprob]]:
        """For each row, its completion's tokens with their probabilities and the likeliest token in their place."""
        whole = sum(len(item.tokens) for item in self.items)
        claim = Claim(self.id, f"{self.version.name}@{self.version.number}", whole, max_tokens=0)
        self.metered = self.services.meter.admit(self.caller, claim)
        try:
            return await self._all()
        except GenerationFailed:
            self.finish_reason = FinishReason.ERROR
            raise
        finally:
            if self.accepted_tokens:
                self.metered.end(0, 0, self.finish_reason.value)
            else:
                self.metered.refuse()

    async def _all(self) -> list[list[TokenLogprob]]:
        reports: list[list[TokenLogprob]] = []
        for place in range(0, len(self.items), AT_ONCE):
            reports += await self._few(place, self.items[place : place + AT_ONCE])
        self.finish_reason = FinishReason.LENGTH
        return reports

    async def _few(self, place: int, items: Sequence[Item]) -> list[list[TokenLogprob]]:
        adapter, tenant = self.version.id, self.caller.tenant
        requests = [
            Request(f"{self.id}-{place + index}", item.tokens, _PARAMS, adapter, tenant)
            for index, item in enumerate(items)
        ]
        rows: dict[int, list[TokenLogprob]] = {}
        generation = await Generation.start(self.services.worker, requests)
        self.accepted_tokens += sum(len(item.tokens) for item in items)
        self.metered.accepted(self.accepted_tokens)
        try:
            async for index, output in generation:
                if output.prompt_logprobs is not None:
                    rows[index] = [one for one in output.prompt_logprobs[items[index].start :] if one is not None]
        finally:
            await generation.aclose()
        return [rows[index] for index in range(len(items))]


def _wrong(line: Line) -> Iterator[str]:
    format = detect(line.value)
    if format not in ("messages", "prompt_completion"):
        yield "it is neither `prompt` and `completion` nor `messages`. Write one of the two."
        return
    yield from faults_of(line.value, format, answered=True)


def _item(row: Row, tokenizer: Tokenizer) -> Item | str:
    """The row in tokens, or what is wrong with it."""
    try:
        prompt = (
            tokenizer.encode(row.prompt)
            if isinstance(row.prompt, str)
            else tokenizer.encode_chat([Message(turn.role, turn.content) for turn in row.prompt])  # type: ignore[arg-type]
        )
    except ChatRefused as error:
        return str(error)
    answer = tokenizer.encode_answer(row.answers[0])
    if not prompt or not answer:
        return "a prompt or a completion of no tokens tells nothing. Fill it or remove the line."
    return Item((*prompt, *answer), len(prompt))


def _invalid(faults: Sequence[str]) -> ApiError:
    shown = " ".join(ascii(fault)[1:-1][:200] for fault in faults[:_SHOWN])
    more = f" And {len(faults) - _SHOWN} more." if len(faults) > _SHOWN else ""
    return ApiError(422, f"The eval file is invalid. {shown}{more}", param="eval", code="invalid_eval")
