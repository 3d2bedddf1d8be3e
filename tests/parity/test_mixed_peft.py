"""Requests over many adapters, served mixed and concurrently, against PEFT's own output for each alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from engine.sequence import SamplingParams
from tests.support.engine_rig import Answer, EngineRig
from tests.support.kernels import kernels
from tests.support.models import ARCHITECTURES, tiny_model_dir
from tests.support.peft_adapters import KINDS, PeftReference, write_adapter

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

NEW_TOKENS = 6
PROMPTS = [[7 + (3 * i * i + 5 * i * n) % 200 for i in range(n)] for n in (3, 21, 11)]
FP32_BOUND = 1e-4


@dataclass(frozen=True, slots=True)
class Precision:
    """A reduced precision, and how far log-probabilities may be from PEFT's: on average, and nine in ten of them.

    Both sides round, at different places. The adapters here are some hundred times larger than trained ones (they move
    log-probabilities by whole units), and so is the rounding; where it sends a token of a mixture of experts to
    another expert, single log-probabilities move by units too, so that the largest difference says nothing.
    """

    dtype: str
    quantization: str | None = None
    mean: float = 0.1
    most: float = 0.2


PRECISIONS = {
    "bfloat16": Precision("bfloat16"),
    "float16": Precision("float16", mean=0.03, most=0.05),
    "nf4": Precision("bfloat16", "nf4", most=0.25),
    "fp4": Precision("bfloat16", "fp4", most=0.25),
}


@dataclass(frozen=True, slots=True)
class Written:
    """A tiny model and one PEFT adapter of each kind for it."""

    model: Path
    adapters: Mapping[str, Path]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp(request.param)
    model = tiny_model_dir(request.param, root)
    adapters = {kind: write_adapter(model, root / kind, config, n) for n, (kind, config) in enumerate(KINDS.items())}
    return Written(model, adapters)


@pytest.fixture
def rig(written: Written, tmp_path: Path) -> Iterator[EngineRig]:
    rig = EngineRig.load(written.model, tmp_path)
    yield rig
    rig.close()


def test_mixed_greedy_answers_are_those_of_peft_alone(written: Written, rig: EngineRig) -> None:
    answers = _ask(rig, written, SamplingParams(NEW_TOKENS, temperature=0.0, ignore_eos=True, logprobs=1))
    model = AutoModelForCausalLM.from_pretrained(written.model, dtype=torch.float32)
    reference = PeftReference(model, written.adapters)
    for (adapter, n), answer in answers.items():
        assert list(answer.tokens) == reference.greedy(adapter, PROMPTS[n], NEW_TOKENS), (adapter, n)
        expected = reference.logprobs(adapter, [*PROMPTS[n], *answer.tokens])[len(PROMPTS[n]) - 1 : -1]
        served = torch.tensor([report.logprob for report in answer.logprobs])
        chosen = expected.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        torch.testing.assert_close(served, chosen, rtol=0, atol=FP32_BOUND)


def test_the_adapters_change_what_is_said(written: Written, rig: EngineRig) -> None:
    """Otherwise the parity above would prove nothing."""
    answers = _ask(rig, written, SamplingParams(max_tokens=0, prompt_logprobs=0))
    base = _prompt_logprobs(answers[None, 1])
    for kind in KINDS:
        assert (_prompt_logprobs(answers[kind, 1]) - base).abs().max() > 1.0, kind


@pytest.mark.parametrize("name", PRECISIONS)
def test_reduced_precision_stays_within_its_bound(written: Written, tmp_path: Path, name: str) -> None:
    precision = PRECISIONS[name]
    rig = EngineRig.load(
        written.model,
        tmp_path,
        dtype=precision.dtype,
        quantization=precision.quantization,
        kernels=kernels() if precision.quantization else None,
    )
    answers = _ask(rig, written, SamplingParams(max_tokens=0, prompt_logprobs=0))
    rig.close()
    reference = PeftReference(_quantized(written.model, precision), written.adapters)
    differences = []
    for (adapter, n), answer in answers.items():
        expected = reference.logprobs(adapter, PROMPTS[n])[:-1].gather(1, torch.tensor(PROMPTS[n][1:])[:, None])[:, 0]
        differences.append((_prompt_logprobs(answer) - expected).abs())
    every = torch.cat(differences)
    assert every.mean() <= precision.mean
    assert every.quantile(0.9) <= precision.most


def _quantized(model: Path, precision: Precision) -> PreTrainedModel:
    """The model as PEFT's users load it: bitsandbytes configured by hand, nothing of ours involved.

    It multiplies the weights that are stored: for some processors bitsandbytes packs them anew and rounds their scales.
    """
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision.dtype]
    config = None
    if precision.quantization is not None:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=precision.quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, quantization_config=config)
    assert isinstance(loaded, PreTrainedModel)
    for module in loaded.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return loaded


def _ask(rig: EngineRig, written: Written, params: SamplingParams) -> dict[tuple[str | None, int], Answer]:
    """Every prompt to every adapter and the base, all at once."""
    ids = {kind: rig.add(path) for kind, path in written.adapters.items()}
    asked = {
        (kind, n): rig.submit(prompt, params, ids[kind] if kind else None)
        for n, prompt in enumerate(PROMPTS)
        for kind in (None, *ids)
    }
    answers = rig.run()
    return {key: answers[request_id] for key, request_id in asked.items()}


def _prompt_logprobs(answer: Answer) -> torch.Tensor:
    assert answer.prompt_logprobs is not None
    return torch.tensor([report.logprob for report in answer.prompt_logprobs if report is not None])
