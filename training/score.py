"""The task score: a model's greedy answers to held-out prompts, compared with the answers in the data.

Owns the metrics and the generation, batched and on the trainer's own model. Knows nothing of training or files, nor
whether the model is the base or the trained one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.config import Score
from training.data.examples import Example
from training.eval_mode import eval_mode
from training.padding import pad
from training.report import BeforeAfter, Sample

SAMPLES = 4
"""Answers that the card shows, before the first wrong one is added."""
BATCH = 16
"""Prompts in one batch. More would take memory for the cache and gain little on a CPU."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A held-out prompt as the model saw it, the expected answer, the model's answer, and whether it is right."""

    prompt: str
    expected: str
    given: str
    right: bool


def answer_heldout(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, heldout: Sequence[Example], settings: Score
) -> tuple[Answer, ...]:
    """The model's answers to the first `settings.limit` examples that have one to give; empty if none has."""
    asked = [(example, example.answer) for example in heldout if example.answer is not None][: settings.limit]
    prompts = [example.prompt_ids for example, _ in asked]
    given = greedy_answers(model, tokenizer, prompts, max_new_tokens=settings.max_new_tokens)
    return tuple(
        Answer(str(tokenizer.decode(list(prompt))), expected, answer, is_right(settings, answer, expected))
        for prompt, (_, expected), answer in zip(prompts, asked, given, strict=True)
    )


def task_score(base: Sequence[Answer], trained: Sequence[Answer]) -> BeforeAfter | None:
    """The share of right answers of both models; None where nothing was asked."""
    if not base or not trained:
        return None
    before, after = (sum(answer.right for answer in given) / len(given) for given in (base, trained))
    return BeforeAfter(before, after)


def samples(base: Sequence[Answer], trained: Sequence[Answer]) -> tuple[Sample, ...]:
    """For the card: the first answers as they come, and the first wrong one of the trained model if there is one."""
    wrong = [index for index, answer in enumerate(trained) if not answer.right][:1]
    chosen = [*range(min(SAMPLES, len(trained))), *(index for index in wrong if index >= SAMPLES)]
    return tuple(
        Sample(trained[i].prompt, trained[i].expected, base[i].given, trained[i].given, trained[i].right)
        for i in chosen
    )


def is_right(settings: Score, answer: str, expected: str) -> bool:
    """Whether an answer is right; white space around it never matters.

    exact: the same text. json: the same JSON value, so spaces and the order of keys do not matter. contains: the
    answer holds each of `settings.words`, or else every line of the expected text, in any case of letters.
    """
    answer, expected = answer.strip(), expected.strip()
    if settings.metric == "json":
        return _same_json(answer, expected)
    if settings.metric == "contains":
        required = settings.words or tuple(line.strip() for line in expected.splitlines())
        return all(words.lower() in answer.lower() for words in required)
    return answer == expected


def _same_json(answer: str, expected: str) -> bool:
    try:
        # json would keep the last of two equal keys and take 1 for true: neither is what was asked for.
        given, wanted = (_comparable(json.loads(text, object_pairs_hook=tuple)) for text in (answer, expected))
        return bool(given == wanted)
    except (ValueError, RecursionError):
        return False


def _comparable(value: Any) -> Any:
    """A JSON value that compares by type and by sorted keys. Objects come in as tuples of pairs."""
    if isinstance(value, tuple):
        return "object", sorted((key, _comparable(inner)) for key, inner in value)
    if isinstance(value, list):
        return "array", [_comparable(inner) for inner in value]
    kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    return kind, value


@torch.inference_mode()
def greedy_answers(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
) -> list[str]:
    """Greedy completions of token-id prompts as text, up to the end of turn or `max_new_tokens`; in their order."""
    ends = end_tokens(model, tokenizer)
    given = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with eval_mode(model):
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            rows = _greedy(model, [prompts[index] for index in part], ends, max_new_tokens)
            for index, row in zip(part, rows, strict=True):
                given[index] = str(tokenizer.decode(row, skip_special_tokens=True))
    return given


def end_tokens(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The token ids that end an answer in the server: those of generation_config and the tokenizer's EOS."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return frozenset(id for id in (*listed, tokenizer.eos_token_id) if isinstance(id, int))


def _greedy(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], ends: frozenset[int], limit: int
) -> list[list[int]]:
    """Up to `limit` tokens for each prompt, without the one that ended it. Shorter prompts are padded on the left."""
    device = next(model.parameters()).device
    ids, mask = pad(prompts, min(ends, default=0), device, on_the_left=True)
    rows: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    cache: Any = None
    for _ in range(limit):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=_positions(mask)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        for row, token in enumerate(ids[:, 0].tolist()):
            if row in open_rows and token in ends:
                open_rows.remove(row)
            elif row in open_rows:
                rows[row].append(token)
        if not open_rows:
            break
    return rows


def _positions(mask: Tensor) -> Tensor:
    """The position of each token in its own row `[rows, width]`, padding not counted."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
