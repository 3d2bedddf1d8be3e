"""An engine with compiled kernels says what one without says, for every architecture; and says it whoever is beside."""

from pathlib import Path
from typing import cast
from weakref import ref

import pytest
from torch import nn

from adapters.layer import GraftedLinear
from adapters.manifest import AdapterId, Kind
from engine.compiled_attention import CompiledAttention
from engine.compiled_layer import CompiledLayers
from engine.sequence import SamplingParams
from loader.base import load
from loader.pointwise import CompiledMLP, CompiledNorm
from loader.product import FastLinear
from loader.source import resolve
from native.build import Arithmetic
from native.kernels import Kernels
from tests.support.adapters import write_adapter
from tests.support.engine_rig import Answer, EngineRig
from tests.support.kernels import kernels
from tests.support.models import tiny_model_dir

PROMPTS = [tuple(range(30, 73)), (5, 6, 7, 8), (42, 17) * 9, (99,)]
SCORED = SamplingParams(max_tokens=0, prompt_logprobs=0)
DECODED = SamplingParams(max_tokens=6, temperature=0.0, logprobs=0, ignore_eos=True)


def engine_rig(
    arch: str, root: Path, compiled: Kernels | None, quantization: str | None = None, head_dim: int = 16
) -> EngineRig:
    model = tiny_model_dir(arch, root, head_dim=head_dim)
    return EngineRig.load(
        model,
        root / f"served-{compiled is not None}",
        dtype="bfloat16",
        quantization=quantization,
        kernels=compiled,
    )


def add(served: EngineRig, root: Path) -> list[AdapterId | None]:
    """The base, a LoRA, a DoRA, and an adapter of another rank."""
    kinds: tuple[tuple[Kind, int], ...] = (("lora", 8), ("dora", 4), ("rslora", 20))
    shape = served.base.shape
    targets = tuple({path.rpartition(".")[2] for path in shape.linears})
    written = [
        write_adapter(root / kind, shape, kind=kind, rank=rank, targets=targets, seed=rank, scale=0.15)
        for kind, rank in kinds
    ]
    return [None, *(served.add(directory) for directory in written)]


def said(served: EngineRig, adapters: list[AdapterId | None]) -> list[list[float]]:
    """The log-probabilities of every prompt, each under another adapter, all at once."""
    ids = [served.submit(prompt, SCORED, adapter) for prompt, adapter in zip(PROMPTS, adapters, strict=True)]
    answers = served.run()
    return [logprobs(answers[id]) for id in ids]


def logprobs(answer: Answer) -> list[float]:
    assert answer.prompt_logprobs is not None
    return [entry.logprob for entry in answer.prompt_logprobs if entry is not None]


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize(
    ("arch", "arithmetic"),
    [
        *((arch, None) for arch in ("llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3")),
        *(("llama", arithmetic) for arithmetic in Arithmetic),
    ],
)
def test_it_says_what_torch_says(
    arch: str, arithmetic: Arithmetic | None, quantization: str | None, tmp_path: Path
) -> None:
    plain, compiled = (engine_rig(arch, tmp_path, one, quantization) for one in (None, kernels(arithmetic)))
    theirs, ours = (said(served, add(served, tmp_path / str(i))) for i, served in enumerate((plain, compiled)))
    for want, got in zip(theirs, ours, strict=True):
        errors = [abs(a - b) for a, b in zip(want, got, strict=True)]
        assert sum(errors) <= 0.1 * len(errors), errors
    plain.close()
    compiled.close()


def test_what_was_merged_gives_its_memory_back(tmp_path: Path) -> None:
    served = engine_rig("llama", tmp_path, kernels())
    adapter = add(served, tmp_path)[1]
    assert adapter is not None
    said(served, [adapter] * len(PROMPTS))
    served.engine.merge(adapter)
    said(served, [adapter] * len(PROMPTS))
    grafted = [module for module in served.base.model.modules() if isinstance(module, GraftedLinear)]
    merged = [ref(cast(FastLinear, module.merged).weight) for module in grafted if module.merged]
    assert merged and all(weight() is not None for weight in merged)
    served.engine.unmerge()
    assert all(weight() is None for weight in merged)
    served.close()


@pytest.mark.parametrize(
    ("arch", "replaced"),
    [
        ("llama", {CompiledLayers, CompiledAttention, CompiledMLP, CompiledNorm}),
        ("qwen2", {CompiledMLP, CompiledNorm}),  # this one has a sliding window
        ("qwen3", {CompiledLayers, CompiledAttention, CompiledMLP, CompiledNorm}),
        ("gemma2", set()),  # its norms add 1 to their weights, its activation is another, its scores are capped
    ],
)
def test_what_a_model_lets_be_replaced(arch: str, replaced: set[type[nn.Module]], tmp_path: Path) -> None:
    served = engine_rig(arch, tmp_path, kernels())
    found = {type(module) for module in served.base.model.modules()}
    assert found & {CompiledLayers, CompiledAttention, CompiledMLP, CompiledNorm} == replaced
    served.close()


def test_a_layer_that_has_more_stays_as_it_is_and_the_others_are_replaced_one_by_one(tmp_path: Path) -> None:
    whole = engine_rig("llama", tmp_path, kernels())
    base = load(resolve(str(tiny_model_dir("llama", tmp_path)), tmp_path), dtype="bfloat16", kernels=kernels())
    layers = cast(nn.ModuleList, base.model.base_model.layers)
    layers[1].add_module("more", nn.Identity())
    apart = EngineRig(base, tmp_path / "apart", whole.config)
    assert [isinstance(layer, CompiledLayers) for layer in layers] == [i != 1 for i in range(len(layers))]
    for want, got in zip(said(whole, add(whole, tmp_path / "a")), said(apart, add(apart, tmp_path / "b")), strict=True):
        errors = [abs(a - b) for a, b in zip(want, got, strict=True)]
        assert sum(errors) <= 0.1 * len(errors), errors
    whole.close()
    apart.close()


@pytest.mark.parametrize("head_dim", [16, 32])  # the latter is multiplied as bf16 where there are dot products
@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_an_answer_does_not_depend_on_its_neighbours(arithmetic: Arithmetic, head_dim: int, tmp_path: Path) -> None:
    """Bit for bit, the log-probabilities included: alone, in a batch, in other chunks."""
    served = engine_rig("llama", tmp_path, kernels(arithmetic), head_dim=head_dim)
    adapters = add(served, tmp_path)
    together = said(served, adapters)
    for prompt, adapter, want in zip(PROMPTS, adapters, together, strict=True):
        served.engine.pool.forget_content()
        id = served.submit(prompt, SCORED, adapter)
        assert logprobs(served.run()[id]) == want
    served.close()


@pytest.mark.parametrize("many", [11, 21])
@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_what_is_decoded_does_not_depend_on_its_neighbours(arithmetic: Arithmetic, many: int, tmp_path: Path) -> None:
    """Where there are enough adapters, a thread expands each by itself; otherwise beside the products. Each has two to
    six rows, which are expanded in twos."""
    served = engine_rig("llama", tmp_path, kernels(arithmetic))
    adapters = add(served, tmp_path)
    asked = [(PROMPTS[(i + i // 4) % 4], adapters[i % 4]) for i in range(many)]
    ids = [served.submit(prompt, DECODED, adapter) for prompt, adapter in asked]
    together = served.run()
    for (prompt, adapter), id in zip(asked, ids, strict=True):
        alone = served.submit(prompt, DECODED, adapter)
        assert served.run()[alone].logprobs == together[id].logprobs
    served.close()


@pytest.mark.parametrize("adapter_number", [1, 2])
def test_a_merged_adapter_alone_and_beside_others_says_what_torch_says(adapter_number: int, tmp_path: Path) -> None:
    """Alone it takes its own weights through the whole layer; mixed with others, module by module."""
    plain, compiled = (engine_rig("llama", tmp_path, one) for one in (None, kernels()))
    heard: list[list[list[float]]] = []
    for i, served in enumerate((plain, compiled)):
        adapters = add(served, tmp_path / str(i))
        merged = adapters[adapter_number]
        assert merged is not None
        said(served, adapters)  # places them
        served.engine.merge(merged)
        heard.append([*said(served, [merged] * len(PROMPTS)), *said(served, adapters)])
    for want, got in zip(*heard, strict=True):
        errors = [abs(a - b) for a, b in zip(want, got, strict=True)]
        assert sum(errors) <= 0.1 * len(errors), errors
    plain.close()
    compiled.close()
