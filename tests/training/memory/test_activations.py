"""The activation formula against what autograd saves: equal to the byte, for every family and every regime.

A layer's bytes are the difference between a model of three layers and one of two, so that ends do not count.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from loader import configs
from loader.anatomy import Anatomy, anatomy_of
from tests.support.footprint import Footprint, saved_bytes
from tests.support.tiny_shapes import SHAPES
from training.memory.activations import Batch, autocast_copies, layer_bytes
from training.memory.grafts import Graft
from training.memory.regime import Regime

# PEFT still asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

RANK = 4
BATCH = Batch(sequences=2, length=10)
BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Case:
    """A way to train, for torch (`base`, `adapter` dtypes) and for the formula (`regime`)."""

    base: torch.dtype
    adapter: torch.dtype
    regime: Regime
    dropout: float = 0.0


def case(base: torch.dtype, adapter: torch.dtype | None = None, autocast: bool = False, **more: Any) -> Case:
    """A full fine-tune without `adapter`."""
    full, trained = adapter is None, adapter or base
    regime = Regime(full, base.itemsize, trained.itemsize, autocast, cuda=False, **more)
    return Case(base, trained, regime, 0.1 if regime.dropout else 0.0)


CASES: Mapping[str, Case] = {
    "full, bf16": case(BF16),
    "full, fp32": case(FP32),
    "full, fp32, autocast": case(FP32, autocast=True),
    "bf16 adapters on bf16": case(BF16, BF16),
    "fp32 adapters on bf16, no autocast": case(BF16, FP32),
    "fp32 adapters on bf16, autocast": case(BF16, FP32, autocast=True),
    "the same with dropout": case(BF16, FP32, autocast=True, dropout=True),
    "the same with dora": case(BF16, FP32, autocast=True, dora=True),
    "fp32 adapters on fp32": case(FP32, FP32),
    "fp32 with dropout": case(FP32, FP32, dropout=True),
    "fp32 with dora": case(FP32, FP32, dora=True),
}
OURS = ("full, fp32, autocast", "fp32 adapters on bf16, autocast", "fp32 adapters on fp32")


def pairs() -> Iterator[tuple[str, str]]:
    """Llama in every regime; the others in those that the trainers use."""
    for family in SHAPES:
        for name in CASES if family == "llama" else OURS:
            yield family, name


def built(family: str, layers: int, case: Case) -> nn.Module:
    make: Any = AutoModelForCausalLM.from_config
    model = make(SHAPES[family](layers)).to(case.base)
    if not case.regime.full:
        names = sorted({linear.name for linear in anatomy(family).linears})
        config = LoraConfig(
            r=RANK, target_modules=names, lora_dropout=case.dropout, use_dora=case.regime.dora, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(case.adapter)
    grown: nn.Module = model.train()
    return grown


def anatomy(family: str) -> Anatomy:
    return anatomy_of(SHAPES[family](3).to_dict())


def kept(model: nn.Module, case: Case, batch: Batch = BATCH) -> int:
    ids = torch.zeros(batch.sequences, batch.length, dtype=torch.long)
    with torch.autocast("cpu", dtype=BF16) if case.regime.autocast else nullcontext():
        return saved_bytes(model, lambda: logits(model, ids))


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    result: Tensor = model(input_ids=ids, use_cache=False).logits
    return result


def told(family: str, regime: Regime, batch: Batch = BATCH) -> int:
    """The formula's bytes of the last layer, with the copies that autocast makes of its weights."""
    whole = anatomy(family)
    last = whole.stack[-1]
    grafts = () if regime.full else tuple(Graft(linear, RANK, regime.dora) for linear in last.linears)
    by_path = {graft.linear.path: graft for graft in grafts}
    return layer_bytes(whole, last, regime, by_path, batch) + autocast_copies(
        regime, grafts, replace(whole, stack=(last,))
    )


@pytest.mark.parametrize(("family", "name"), list(pairs()))
def test_the_formula_is_what_autograd_saves(family: str, name: str) -> None:
    case = CASES[name]
    measured = kept(built(family, 3, case), case) - kept(built(family, 2, case), case)
    assert told(family, case.regime) == measured


@pytest.mark.parametrize("name", ["full, bf16", "fp32 adapters on bf16, autocast"])
def test_a_mask_costs_the_repeated_heads_and_itself(name: str) -> None:
    case = CASES[name]
    batch = replace(BATCH, masked=True)
    ids = torch.zeros(batch.sequences, batch.length, dtype=torch.long)
    padded = torch.ones_like(ids)
    padded[0, :3] = 0

    def bytes_of(layers: int) -> int:
        model = built("llama", layers, case)
        with torch.autocast("cpu", dtype=BF16) if case.regime.autocast else nullcontext():
            return saved_bytes(model, lambda: model(input_ids=ids, attention_mask=padded, use_cache=False).logits)

    assert told("llama", case.regime, batch) == bytes_of(3) - bytes_of(2)


@pytest.mark.parametrize("name", ["full, bf16", "fp32 adapters on bf16, autocast", "fp32 adapters on fp32"])
def test_checkpointing_keeps_a_layers_input_alone(name: str) -> None:
    case = CASES[name]

    def live(layers: int) -> int:
        model = built("llama", layers, case)
        any_model: Any = model
        any_model.enable_input_require_grads()
        any_model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        ids = torch.zeros(BATCH.sequences, BATCH.length, dtype=torch.long)
        with Footprint() as footprint:
            footprint.watch((*model.parameters(), *model.buffers(), ids))
            before = footprint.live
            with torch.autocast("cpu", dtype=BF16) if case.regime.autocast else nullcontext():
                result = logits(model, ids)
            assert result.requires_grad
            return int(footprint.live - before)

    assert live(3) - live(2) == BATCH.tokens * anatomy("llama").hidden * case.regime.base


def test_a_4_bit_layer_keeps_no_more_than_a_dense_frozen_one(tmp_path: Any) -> None:
    case = CASES["fp32 adapters on bf16, autocast"]
    quantized = replace(case.regime, quantized=True)

    def bytes_of(layers: int) -> int:
        make: Any = AutoModelForCausalLM
        make.from_config(SHAPES["llama"](layers)).save_pretrained(tmp_path / str(layers))
        four = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=BF16,
        )
        base = make.from_pretrained(tmp_path / str(layers), dtype=BF16, quantization_config=four)
        names = sorted({linear.name for linear in anatomy("llama").linears})
        model = get_peft_model(base, LoraConfig(r=RANK, target_modules=names)).train()
        return kept(model, case)

    assert told("llama", quantized) == bytes_of(3) - bytes_of(2)


def test_what_the_articles_got_wrong_at_7b() -> None:
    """Llama-2-7B, one sequence of 2048: the hidden costs of fp32 adapters, of dropout and of DoRA."""
    seven = anatomy_of(configs.read("llama-2-7b").values)
    batch = Batch(1, 2048)

    def gigabytes(name: str) -> float:
        regime = CASES[name].regime
        grafts = {} if regime.full else {linear.path: Graft(linear, 16, regime.dora) for linear in seven.linears}
        return sum(layer_bytes(seven, layer, regime, grafts, batch) for layer in seven.stack) / 1e9

    full, small = gigabytes("full, bf16"), gigabytes("bf16 adapters on bf16")
    wide, ours = gigabytes("fp32 adapters on bf16, no autocast"), gigabytes("fp32 adapters on bf16, autocast")
    assert [round(each, 1) for each in (full, small, wide)] == [12.2, 11.2, 18.0]
    assert 1 - small / full == pytest.approx(0.07, abs=0.02)
    h, kv, f, a = 4096, 4096, 11008, 32
    written = 24 * h + 4 * kv + 8 * f + 14 * 16 + 4 * a + 8
    assert ours == pytest.approx(written * batch.tokens * seven.layers / 1e9)
    assert full < ours < wide
    assert gigabytes("the same with dropout") - ours == pytest.approx(4 * (6 * 4096 + 11008) * 2048 * 32 / 1e9)
    assert gigabytes("the same with dora") > 2 * ours
    stored = 2 * seven.hidden * batch.tokens * seven.layers
    assert round(stored / 1e9, 2) == 0.54
