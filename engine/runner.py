"""Computes a plan: packs its tokens, runs the model over the paged cache, samples.

Owns everything of the engine that is made of tensors. Decides nothing; the plan says what to compute.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from math import isfinite

import torch
from torch import Tensor

from adapters.bank import Bank
from adapters.layer import ActiveGrafts, Segment, Selection, Selections, graft
from adapters.manifest import AdapterId
from adapters.merge import Merger
from adapters.stage import Stage
from engine import attention
from engine.batch import in_batch_order, pack
from engine.compiled_attention import speed_up_attention
from engine.compiled_layer import speed_up_layers
from engine.compiled_model import logits_of
from engine.flash import Flash
from engine.graphs import RecordedDecoding
from engine.kv_cache import KVCache
from engine.recording import Recorder
from engine.result import ChunkResult
from engine.sampler import report_prompt, sample
from engine.scheduler import Chunk, StepPlan
from engine.sequence import TokenLogprob
from loader.base import Base

REPORTED_AT_ONCE = 64  # prompt rows whose log-probabilities are computed together: float32 over the vocabulary is large


class ModelRunner:
    """One base with its grafted linears, one KV cache, one bank."""

    def __init__(self, base: Base, cache: KVCache, bank: Bank, flash: Flash | None = None) -> None:
        attention.register()
        base.model.set_attn_implementation(attention.NAME)
        speed_up_attention(base.model, cache, base.kernels)
        self._base = base
        self._cache = cache
        self._bank = bank
        self._flash = flash
        self._recorded: RecordedDecoding | None = None
        self._merged: AdapterId | None = None
        self._active = ActiveGrafts()
        self._selections = Selections(bank)
        linears = graft(base.model, base.shape.linears, bank, self._active, base.head)
        self._layers = speed_up_layers(base.model, self._active, bank.numbers, cache, base.kernels)
        self._logits = logits_of(base.model, self._layers, cache, base.kernels)
        self._merger = Merger(base, linears)

    def record_decoding(self, recorder: Recorder, stage: Stage, max_rows: int, max_blocks: int) -> None:
        """From now on, record decode steps of at most `max_rows` sequences of `max_blocks`, and replay them."""
        self._recorded = RecordedDecoding(
            self._base, self._cache, stage, self._active, recorder, self._flash, max_rows, max_blocks
        )

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> list[ChunkResult]:
        chunks = in_batch_order(plan.chunks)
        rows = [_rows(chunk) for chunk in chunks]
        logits_XV = self._forward(chunks, rows)
        ends = list(accumulate(map(len, rows)))
        sampled = self._next_tokens(chunks, ends, logits_XV)
        results = {
            chunk.sequence.id: _reported(result, chunk, logits_XV[end - len(own) : end])
            if _prompt_positions(chunk)
            else result
            for chunk, own, end, result in zip(chunks, rows, ends, sampled, strict=True)
        }
        return [results[chunk.sequence.id] for chunk in plan.chunks]

    def merge(self, adapter: AdapterId) -> None:
        """Serve a placed adapter from merged weights of its own. Raises DoesNotFit, with numbers."""
        assert self._merged is None, "unmerge first"
        self._merger.merge(self._bank.claim(adapter))
        self._merged = adapter
        self._forget_merged()

    def unmerge(self) -> None:
        self._merger.unmerge()
        self._merged = None
        self._forget_merged()

    def _forget_merged(self) -> None:
        for layer in self._layers:
            layer.forget_merged()
        if self._recorded is not None:
            self._recorded.forget_merged()

    def _forward(self, chunks: Sequence[Chunk], rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits `[X, V]` of the rows that are needed of each chunk, in batch order."""
        firsts = accumulate((chunk.count for chunk in chunks), initial=0)
        wanted = [first + row for first, own in zip(firsts, rows, strict=False) for row in own]
        replayed = None if self._recorded is None else self._recorded.logits(chunks, self._merged)
        if replayed is not None:
            return replayed if len(wanted) == len(chunks) else replayed[wanted]
        ids = [token for chunk in chunks for token in chunk.sequence.tokens[chunk.start : chunk.stop]]
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.stop)]
        self._active.tokens = self._selection(chunks, [chunk.count for chunk in chunks])
        self._active.head = self._selection(chunks, [len(own) for own in rows])
        paged = pack(chunks, self._cache, self._base.device, self._base.kernels, self._flash)
        return self._logits(ids, positions, wanted, paged)

    def _selection(self, chunks: Sequence[Chunk], counts: Sequence[int]) -> Selection:
        return self._selections.of(list(_segments(chunks, counts)), self._merged)

    def _next_tokens(self, chunks: Sequence[Chunk], ends: Sequence[int], logits_XV: Tensor) -> list[ChunkResult]:
        """A sampled token for every chunk that catches up, an empty result for the others. `ends` of their logits."""
        sampled = [index for index, chunk in enumerate(chunks) if _samples(chunk)]
        results = [ChunkResult()] * len(chunks)
        if sampled:
            last = [ends[index] - 1 for index in sampled]
            # A batch that decodes samples all of its rows, which then need no copy.
            logits_SV = (logits_XV if len(last) == len(logits_XV) else logits_XV[last]).float()
            sequences = [chunks[index].sequence for index in sampled]
            for index, result in zip(sampled, sample(logits_SV, sequences, self._base.eos_token_ids), strict=True):
                results[index] = result
        return results


def _reported(token: ChunkResult, chunk: Chunk, rows_XV: Tensor) -> ChunkResult:
    """With what a chunk's prompt tokens were worth; a prompt that is only scored must not end in NaN either."""
    prompt = _prompt_report(chunk, rows_XV)
    if not all(isfinite(report.logprob) for report in prompt):
        return ChunkResult(finite=False)
    return replace(token, prompt=prompt)


def _samples(chunk: Chunk) -> bool:
    return chunk.catches_up and chunk.sequence.params.max_tokens > 0


def _prompt_positions(chunk: Chunk) -> range:
    """The computed positions whose logits say something about a prompt token that was asked about."""
    if chunk.sequence.params.prompt_logprobs is None:
        return range(0)
    return range(chunk.start, min(chunk.stop, chunk.sequence.prompt_len - 1))


def _rows(chunk: Chunk) -> list[int]:
    """The chunk's rows, from 0, whose logits are needed."""
    rows = [position - chunk.start for position in _prompt_positions(chunk)]
    return [*rows, chunk.count - 1] if _samples(chunk) else rows


def _segments(chunks: Sequence[Chunk], counts: Sequence[int]) -> Iterator[Segment]:
    """Neighbours with the same adapter become one segment."""
    start = stop = 0
    for index, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
        stop += count
        last = index + 1 == len(chunks)
        if last or chunks[index + 1].sequence.adapter != chunk.sequence.adapter:
            if stop > start:
                yield Segment(chunk.sequence.adapter, start, stop)
            start = stop


def _prompt_report(chunk: Chunk, rows_XV: Tensor) -> tuple[TokenLogprob, ...]:
    """What the prompt's own tokens were worth, for the positions this chunk computed."""
    alternatives, positions = chunk.sequence.params.prompt_logprobs, _prompt_positions(chunk)
    assert alternatives is not None, "nobody asked"
    tokens = chunk.sequence.tokens[positions.start + 1 : positions.stop + 1]
    return tuple(
        report
        for at in range(0, len(tokens), REPORTED_AT_ONCE)
        for report in report_prompt(
            rows_XV[at : at + REPORTED_AT_ONCE][: len(tokens) - at], tokens[at : at + REPORTED_AT_ONCE], alternatives
        )
    )
