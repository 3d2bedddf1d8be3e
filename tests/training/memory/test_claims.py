"""What is commonly written of full fine-tuning, LoRA and QLoRA, and what the configs say: docs/memory.md's figures.

GB are 1e9 bytes. Each figure is rounded as the text gives it.
"""

from dataclasses import replace

import pytest

from loader import configs
from loader.anatomy import Anatomy, anatomy_of
from loader.estimate import quantized_bytes
from training.config import Method, TrainConfig
from training.config_file import parse_config
from training.memory.activations import Batch
from training.memory.grafts import grafts_of
from training.memory.loss_head import whole
from training.memory.optimizer_states import optimizer_states, trained_tensors
from training.memory.plan import CONTEXT, at_peak, batch_of, predict
from training.memory.regime import BF16, FP32, Regime, regime_of
from training.memory.serving_plan import serving_plan
from training.memory.weights import base_bytes

GB = 1e9
QV, QKVO = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = "all-linear"


def shape(name: str) -> Anatomy:
    return anatomy_of(configs.read(name).values)


def config(
    method: Method = "lora", targets: str | tuple[str, ...] = ALL, rank: int = 16, optimizer: str = "adamw"
) -> TrainConfig:
    """One sequence a step, with checkpointing."""
    values = {
        "output": "x",
        "data": {"train": "x"},
        "method": method,
        "adapter": {"targets": targets, "rank": rank},
        "steps": {"micro_batch": 1, "batch": 1},
        "optimizer": {"name": optimizer},
    }
    return parse_config(values)


def learning(name: str, targets: str | tuple[str, ...], rank: int = 16) -> int:
    return sum(graft.parameters for graft in grafts_of(config("lora", targets, rank), shape(name)))


@pytest.mark.parametrize(
    ("targets", "parameters", "share"), [(QV, 8.39, 0.124), (QKVO, 16.78, 0.249), (ALL, 39.98, 0.593)]
)
def test_1_how_many_parameters_an_adapter_of_rank_16_has(
    targets: str | tuple[str, ...], parameters: float, share: float
) -> None:
    counted = learning("llama-2-7b", targets)
    assert round(counted / 1e6, 2) == parameters
    assert round(100 * counted / shape("llama-2-7b").parameters, 3) == share


def test_2_bytes_of_an_adapter() -> None:
    attention, every = learning("llama-2-7b", QKVO), learning("llama-2-7b", ALL)
    assert round(attention * BF16 / 1e6, 1) == 33.6
    assert round(attention * FP32 / 1e6) == 67
    assert (round(every * BF16 / 1e6), round(every * FP32 / 1e6)) == (80, 160)
    assert [round(100 * every * size / GB) for size in (BF16, FP32)] == [8, 16]
    assert round(100 * shape("llama-2-7b").parameters * BF16 / 1e12, 2) == 1.35


def state(name: str, weight: int, gradient: int, moments: int) -> float:
    """GB of weights, gradients and optimizer at so many bytes a parameter each."""
    return shape(name).parameters * (weight + gradient + moments) / GB


def test_3_to_6_a_full_fine_tune_by_regime() -> None:
    assert round(state("llama-2-7b", 2, 2, 4), 1) == 53.9
    assert round(state("llama-2-7b", 0, 0, 8)) == 54
    assert round(state("llama-2-7b", 2, 2, 12), 1) == round(state("llama-2-7b", 4, 4, 8), 1) == 107.8
    assert state("llama-2-7b", 2, 2, 12) / state("llama-2-7b", 2, 0, 0) == 8
    assert round(base_bytes(shape("llama-2-7b"), BF16, False) / GB, 1) == 13.5


def test_3_to_6_the_plan_has_the_regimes() -> None:
    """In bf16 throughout 8 bytes a parameter, in fp32 16; and autocast's copies are 2 more where all is held."""
    seven = shape("llama-2-7b")
    for size, total in ((BF16, 53.9), (FP32, 107.8)):
        plan = at_peak(config("full"), seven, Regime(True, size, size, False), Batch(1, 16), whole)
        held = sum(plan.bytes_of(name) for name in ("base weights", "gradients", "optimizer states"))
        assert round(held / GB, 1) == total
    steps = config("full").steps.model_copy(update={"batch": 2})
    accumulating = predict(config("full").model_copy(update={"steps": steps}), seven, tokens=16)
    assert accumulating.bytes_of("bf16 copies") / seven.parameters == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("method", "article", "total"), [("lora", 15.1, 16.0), ("qlora", 5.6, 6.5)])
def test_7_a_7b_by_lora_and_qlora(method: Method, article: float, total: float) -> None:
    """The articles' figures hold for bf16 adapters and a whole loss, without libraries; then for what we train."""
    seven, asked = shape("llama-2-7b"), config(method)
    narrow = replace(regime_of(asked, bf16=True, cuda=True), trained=BF16, autocast=False)
    plan = at_peak(asked, seven, narrow, batch_of(asked, 2048), whole)
    assert plan.tensor_bytes / GB == pytest.approx(article, rel=0.02)
    ours = predict(asked, seven, tokens=2048)
    assert ours.total_bytes / GB == pytest.approx(total, abs=0.3)
    assert ours.total_bytes - ours.tensor_bytes == ours.bytes_of(CONTEXT) > 0


@pytest.mark.parametrize(
    ("name", "in_4_bits"),
    [("llama-2-7b", 3.87), ("llama-2-70b", 36.4), ("llama-3-70b", 39.5), ("llama-65b", 34.5)],
)
def test_8_10_13_a_4_bit_base_has_dense_parts(name: str, in_4_bits: float) -> None:
    assert base_bytes(shape(name), BF16, True) / GB == pytest.approx(in_4_bits, abs=0.05)


def test_9_adam_at_70b() -> None:
    assert round(state("llama-3-70b", 0, 0, 4)) == 282
    assert round(state("llama-3-70b", 0, 0, 8)) == 564
    assert round(state("llama-3-70b", 0, 0, 12)) == 847
    assert state("llama-3-70b", 2, 2, 4) < 640 < state("llama-3-70b", 2, 2, 12)
    assert [round(state("llama-3-70b", 2, 2, moments)) for moments in (4, 12)] == [564, 1129]


def test_11_adapters_at_70b() -> None:
    sizes = [learning("llama-3-70b", targets) * BF16 / 1e6 for targets in (QV, QKVO, ALL)]
    assert [round(size, 1) for size in sizes] == [65.5, 131.1, 414.2]


def test_13_a_65b() -> None:
    assert round(state("llama-65b", 2, 2, 8)) == 783
    assert round(state("llama-65b", 2, 2, 12)) == 1045
    assert predict(config("qlora"), shape("llama-65b"), tokens=1024).total_bytes < 48 * GB


def test_14_a_70b() -> None:
    assert round(state("llama-2-70b", 2, 2, 8)) == 828
    assert round(state("llama-3-70b", 2, 2, 8)) == 847
    seventy, asked = shape("llama-3-70b"), config("qlora")
    narrow = replace(regime_of(asked, bf16=True, cuda=True), trained=BF16, autocast=False)
    totals = [
        at_peak(asked, seventy, narrow, batch_of(asked, length), whole).total_bytes / GB for length in (2048, 1024)
    ]
    assert [round(total) for total in totals] == [48, 45]
    long, short = (predict(asked, seventy, tokens=length).total_bytes / GB for length in (2048, 1024))
    assert short < 46
    assert 47 < long < 48, "it fits, and nothing else does"
    summed = asked.model_copy(update={"steps": asked.steps.model_copy(update={"batch": 16})})
    assert predict(summed, seventy, tokens=2048).total_bytes > 48 * GB
    lightest = predict(config("qlora", QV, 1, "paged_adamw_8bit"), seventy, tokens=128)
    assert lightest.total_bytes > 32 * GB, "no consumer card holds it"


def test_15_double_quantization_saves_0_373_bit() -> None:
    single, double = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)
    assert round(single - double, 3) == 0.373
    elements = 4096 * 4096
    assert 8 * quantized_bytes(elements) / elements == pytest.approx(double, abs=0.001)


@pytest.mark.parametrize(("name", "factor"), [("llama-2-7b", 3.49), ("llama-3-8b", 2.82)])
def test_16_how_much_smaller_a_4_bit_base_is(name: str, factor: float) -> None:
    anatomy = shape(name)
    assert round(base_bytes(anatomy, BF16, False) / base_bytes(anatomy, BF16, True), 2) == pytest.approx(
        factor, abs=0.011
    )


def test_20_gpt_3() -> None:
    """96 layers of 12288: r=4 on queries and values."""
    learned = 96 * 2 * 4 * (12288 + 12288)
    assert round(learned / 1e6, 1) == 18.9
    assert round(175e9 / learned) == pytest.approx(9272, abs=1)
    assert round(learned * BF16 / 2**20) == 36


def test_moments_follow_what_learns() -> None:
    """8 bytes a parameter for fp32 adapters, 4 for bf16 ones, about 2.03 in 8 bits."""
    tensors = trained_tensors(shape("llama-2-7b"), grafts_of(config(), shape("llama-2-7b")), False)
    count = sum(tensors)
    assert optimizer_states("adamw", tensors, FP32, True).device == 8 * count
    assert optimizer_states("adamw", tensors, BF16, True).device == 4 * count
    small = optimizer_states("adamw_8bit", tensors, FP32, True)
    assert small.device / count == pytest.approx(2.03, abs=0.03)
    paged, unpaged = (optimizer_states("paged_adamw_8bit", tensors, FP32, cuda) for cuda in (True, False))
    assert paged.device + paged.pageable == small.device
    assert (unpaged.device, unpaged.pageable) == (small.device, 0), "nothing is paged without CUDA"


@pytest.mark.parametrize(("name", "kib"), [("llama-2-7b", 512), ("llama-3-8b", 128), ("llama-3-70b", 320)])
def test_keys_and_values_of_a_token(name: str, kib: int) -> None:
    plan = serving_plan(shape(name), (), length=1000, requests=1, limit=None, quantized=False)
    assert plan.kv_per_token == kib * 1024
    assert (plan.kv_per_request, plan.adapter, plan.adapters) == (1000 * kib * 1024, None, None)


def test_how_many_adapters_fit() -> None:
    anatomy = shape("llama-2-7b")
    grafts = grafts_of(config(), anatomy)
    plan = serving_plan(anatomy, grafts, length=2048, requests=4, limit=24 * 10**9, quantized=False)
    assert plan.adapter == learning("llama-2-7b", ALL) * BF16
    assert plan.adapters is not None and plan.fits
    used = plan.base + plan.reserve + plan.requests * plan.kv_per_request
    assert used + plan.adapters * plan.adapter <= 24 * 10**9 < used + (plan.adapters + 1) * plan.adapter
    nothing = serving_plan(anatomy, grafts, length=2048, requests=4, limit=10**9, quantized=False)
    assert (nothing.adapters, nothing.fits) == (0, False)
