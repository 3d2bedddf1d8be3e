"""The whole engine on a tiny Llama in float32: what is served is what transformers' own forward says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapters.manifest import Kind
from engine.sequence import FinishReason, SamplingParams
from tests.support.adapters import Tensors, write_adapter
from tests.support.constraints import Only, Script
from tests.support.engine_rig import Answer, EngineRig
from tests.support.models import VOCAB, tiny_model, tiny_model_dir

PROMPTS = [
    list(range(5, 45)),
    [7],
    list(range(100, 109)),
    [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2],
    [11, 12],
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture
def rig(model_dir: Path, tmp_path: Path) -> Iterator[EngineRig]:
    """Steps of 8 tokens and blocks of 4, so that all but the shortest prompts come in chunks."""
    made = EngineRig.load(model_dir, tmp_path, max_batch_tokens=8)
    yield made
    made.close()


@torch.inference_mode()
def logprobs(reference: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    """`[len(tokens), V]`: what the model says follows each token, from one forward over all of them."""
    logits: Tensor = reference(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return logits.log_softmax(-1)


def greedy(**changes: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=changes.get("logprobs", VOCAB))


def check(answer: Answer, prompt: Sequence[int], reference: PreTrainedModel) -> None:
    said = logprobs(reference, [*prompt, *answer.tokens])[len(prompt) - 1 : -1]
    assert answer.tokens == tuple(said.argmax(-1).tolist())
    for row, report in zip(said, answer.logprobs, strict=True):
        served = torch.empty(VOCAB)
        for token, value in report.top:
            served[token] = value
        assert torch.allclose(served, row, atol=1e-4)
        assert report.logprob == pytest.approx(float(row[report.token_id]), abs=1e-4)


def test_mixed_chunked_requests_say_what_a_full_forward_says(rig: EngineRig, reference: PreTrainedModel) -> None:
    ids = [rig.submit(prompt, greedy()) for prompt in PROMPTS]
    answers = rig.run()
    for id, prompt in zip(ids, PROMPTS, strict=True):
        check(answers[id], prompt, reference)


def test_prompt_logprobs_are_a_full_forwards_log_softmax(rig: EngineRig, reference: PreTrainedModel) -> None:
    params = [SamplingParams(max_tokens=number % 2, temperature=0, prompt_logprobs=3) for number in range(len(PROMPTS))]
    ids = [rig.submit(prompt, p) for prompt, p in zip(PROMPTS, params, strict=True)]
    answers = rig.run()
    for id, prompt in zip(ids, PROMPTS, strict=True):
        reports, said = answers[id].prompt_logprobs, logprobs(reference, prompt)
        assert reports is not None and reports[0] is None and len(reports) == len(prompt)
        for at, report in enumerate(reports[1:]):
            assert report is not None and report.token_id == prompt[at + 1]
            assert report.logprob == pytest.approx(float(said[at, prompt[at + 1]]), abs=1e-4)
            assert report.top[0][0] == int(said[at].argmax()) and len(report.top) == 3
        assert answers[id].finish_reason is FinishReason.LENGTH


def test_a_reused_prefix_changes_nothing(rig: EngineRig, reference: PreTrainedModel) -> None:
    first = rig.submit(PROMPTS[0], greedy())
    before = rig.run()[first]
    again, longer = rig.submit(PROMPTS[0], greedy()), rig.submit([*PROMPTS[0], 50, 51], greedy())
    answers = rig.run()
    assert rig.engine.scheduler.prefix_tokens_found == 36 + 40
    assert answers[again].tokens == before.tokens
    check(answers[longer], [*PROMPTS[0], 50, 51], reference)


def test_preemption_changes_nothing(model_dir: Path, tmp_path: Path, reference: PreTrainedModel) -> None:
    preempted: list[str] = []
    rig = EngineRig.load(
        model_dir, tmp_path, num_blocks=13, max_batch_tokens=16, observe=lambda e: preempted.append(type(e).__name__)
    )
    prompts = [[start, *range(20)] for start in (50, 60)]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=VOCAB, prompt_logprobs=0)
    ids = [rig.submit(prompt, params) for prompt in prompts]
    answers = rig.run()
    rig.close()
    assert "Preempted" in preempted
    for id, prompt in zip(ids, prompts, strict=True):
        check(answers[id], prompt, reference)
        assert len(answers[id].prompt_logprobs or ()) == len(prompt)


def test_rows_beside_a_constrained_one_have_the_same_bits(model_dir: Path, tmp_path: Path) -> None:
    """The third sequence is as long in both batches, and what it says is for it alone."""
    answers = []
    for name, constraint in (("free", None), ("constrained", Only(range(0, 256, 3)))):
        rig = EngineRig.load(model_dir, tmp_path / name)
        params = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=5, seed=7)
        ids = [rig.submit(prompt, params) for prompt in PROMPTS[:2]]
        third = rig.submit(PROMPTS[2], replace(params, ignore_eos=constraint is None), constraint=constraint)
        found = rig.run()
        rig.close()
        answers.append([(found[id].tokens, found[id].logprobs) for id in ids])
        assert len(found[third].tokens) == 12
        assert constraint is None or constraint.told == [t for t in found[third].tokens if t % 3 == 0]
    assert answers[0] == answers[1]


def test_preemption_leaves_a_constraint_where_it_was(model_dir: Path, tmp_path: Path) -> None:
    preempted: list[str] = []
    rig = EngineRig.load(
        model_dir, tmp_path, num_blocks=13, max_batch_tokens=16, observe=lambda e: preempted.append(type(e).__name__)
    )
    scripts = [Script(range(start, start + 12)) for start in (0, 100)]
    ids = [
        rig.submit([start, *range(20)], SamplingParams(max_tokens=20), constraint=script)
        for start, script in zip((50, 60), scripts, strict=True)
    ]
    answers = rig.run()
    rig.close()
    assert "Preempted" in preempted
    assert [answers[id].tokens for id in ids] == [tuple(script.tokens) for script in scripts]
    assert [script.told for script in scripts] == [list(script.tokens) for script in scripts]


def huge(tensors: Tensors) -> Tensors:
    """Finite, but B times A is not."""
    return {name: values * 1e38 for name, values in tensors.items()}


@pytest.mark.parametrize(("scored", "kind"), [(False, "lora"), (True, "lora"), (False, "dora")])
def test_b25_an_adapter_that_overflows_fails_its_own_requests_alone(
    rig: EngineRig, tmp_path: Path, reference: PreTrainedModel, scored: bool, kind: Kind
) -> None:
    bad = rig.add(write_adapter(tmp_path / "bad", rig.base.shape, change=huge, kind=kind))
    params = SamplingParams(max_tokens=0, prompt_logprobs=0) if scored else greedy()
    broken = [rig.submit(prompt, params, bad) for prompt in PROMPTS[2:4]]
    fine = [rig.submit(prompt, greedy()) for prompt in PROMPTS]
    answers = rig.run()
    assert [answers[id].error_code for id in broken] == ["adapter_overflow"] * 2
    for id, prompt in zip(fine, PROMPTS, strict=True):
        check(answers[id], prompt, reference)


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 3.4e38), ("float16", 7e4)])
def test_b25_numbers_that_overflow_the_bases_dtype_fail_their_own_requests_alone(
    model_dir: Path, tmp_path: Path, dtype: str, most: float
) -> None:
    """Finite in the file, and infinite in the base's dtype."""
    rig = EngineRig.load(model_dir, tmp_path, dtype=dtype)
    alone = rig.submit(PROMPTS[0], greedy())
    before = rig.run()[alone].tokens
    bad = rig.add(write_adapter(tmp_path / "bad", rig.base.shape, change=filled(most)))
    fine, broken = rig.submit(PROMPTS[0], greedy()), rig.submit(PROMPTS[0], greedy(), bad)
    answers = rig.run()
    rig.close()
    assert answers[broken].error_code == "adapter_overflow" and answers[fine].tokens == before


def filled(value: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: np.full_like(values, value) for name, values in tensors.items()}


def test_blocks_that_held_nan_are_reused_without_a_trace(
    model_dir: Path, tmp_path: Path, reference: PreTrainedModel
) -> None:
    rig = EngineRig.load(model_dir, tmp_path, num_blocks=12)
    bad = rig.add(write_adapter(tmp_path / "bad", rig.base.shape, change=huge))
    for start in range(0, 150, 30):
        broken = rig.submit(range(start, start + 30), greedy(), bad)
        assert rig.run()[broken].error_code == "adapter_overflow", "otherwise no block held any"
    id = rig.submit(PROMPTS[3], greedy())
    check(rig.run()[id], PROMPTS[3], reference)
    rig.close()
