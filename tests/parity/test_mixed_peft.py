"""Requests over many adapters, served mixed and concurrently, against PEFT's own output for each alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from adapters.manifest import AdapterId
from engine.sequence import SamplingParams
from tests.support.models import ARCHITECTURES, tiny_model_dir
from tests.support.peft_adapters import KINDS, PeftReference, write_adapter
from tests.support.serving import House

NEW_TOKENS = 6
PROMPTS = [[7 + (3 * i * i + 5 * i * n) % 200 for i in range(n)] for n in (3, 21, 11)]
FP32_BOUND = 1e-4
# Rounding differs: PEFT multiplies bf16 activations by float32 adapters, we multiply in the base's precision and
# add low-rank products in another order. Largest seen over all architectures and kinds, with headroom.
HALF_BOUNDS = {"bfloat16": 0.5, "nf4": 0.5}


@dataclass(frozen=True, slots=True)
class Written:
    """A tiny model and one PEFT adapter of each kind for it; None is the plain base."""

    model: Path
    adapters: Mapping[str, Path | None]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp(request.param)
    model = tiny_model_dir(request.param, root)
    adapters: dict[str, Path | None] = {"base": None}
    for seed, (kind, config) in enumerate(KINDS.items()):
        adapters[kind] = write_adapter(model, root / kind, config, seed)
    return Written(model, adapters)


@pytest.fixture
def house(written: Written, tmp_path: Path) -> Iterator[House]:
    house = House.of(written.model, tmp_path)
    yield house
    house.close()


def test_mixed_greedy_answers_are_those_of_peft_alone(written: Written, house: House) -> None:
    ids = _upload(house, written)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True, logprobs=1)
    asked = {(kind, n): house.submit(PROMPTS[n], params, id) for n in range(len(PROMPTS)) for kind, id in ids.items()}
    answers = house.run()
    for kind, adapter in written.adapters.items():
        reference = PeftReference.of(AutoModelForCausalLM.from_pretrained(written.model, dtype=torch.float32), adapter)
        for n, prompt in enumerate(PROMPTS):
            answer = answers[asked[kind, n]]
            assert list(answer.tokens) == reference.greedy(prompt, NEW_TOKENS), (kind, n)
            expected = reference.logprobs([*prompt, *answer.tokens])[len(prompt) - 1 : -1]
            served = torch.tensor([report.logprob for report in answer.logprobs])
            chosen = expected.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
            torch.testing.assert_close(served, chosen, rtol=0, atol=FP32_BOUND)


def test_the_adapters_change_what_is_said(written: Written, house: House) -> None:
    """Otherwise the parity above would prove nothing."""
    ids = _upload(house, written)
    params = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=0)
    asked = {kind: house.submit(PROMPTS[1], params, id) for kind, id in ids.items()}
    answers = house.run()
    said = {kind: tuple(r.logprob for r in answers[a].prompt_logprobs or () if r) for kind, a in asked.items()}
    for kind in KINDS:
        difference = max(abs(a - b) for a, b in zip(said[kind], said["base"], strict=True))
        assert difference > 1.0, kind


@pytest.mark.parametrize("precision", HALF_BOUNDS)
def test_reduced_precision_stays_within_its_bound(written: Written, tmp_path: Path, precision: str) -> None:
    nf4 = precision == "nf4"
    house = House.of(written.model, tmp_path, dtype="bfloat16", quantization="nf4" if nf4 else None)
    ids = _upload(house, written)
    params = SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=0)
    asked = {(kind, n): house.submit(PROMPTS[n], params, id) for n in range(len(PROMPTS)) for kind, id in ids.items()}
    answers = house.run()
    house.close()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    for kind, adapter in written.adapters.items():
        model = AutoModelForCausalLM.from_pretrained(
            written.model, dtype=torch.bfloat16, **({"quantization_config": quantization} if nf4 else {})
        )
        reference = PeftReference.of(model, adapter)
        for n, prompt in enumerate(PROMPTS):
            reports = answers[asked[kind, n]].prompt_logprobs
            assert reports is not None
            served = torch.tensor([report.logprob for report in reports if report is not None])
            expected = reference.logprobs(prompt)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
            torch.testing.assert_close(served, expected, rtol=0, atol=HALF_BOUNDS[precision])


def _upload(house: House, written: Written) -> dict[str, AdapterId | None]:
    return {kind: None if path is None else house.add(path) for kind, path in written.adapters.items()}
