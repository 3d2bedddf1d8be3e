"""The plan against a trace of a training step at 7B: fake tensors, so that no number is computed and none is stored.

A trace takes time by the layer, so the model has one, two and three of its 32; the peak must grow by the same bytes
with each, and goes on to 32 on that line. The loss is transformers' own, with all logits.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, LlamaConfig

from loader import configs
from loader.anatomy import Anatomy, anatomy_of
from tests.support.footprint import Footprint
from training.config import Method, TrainConfig
from training.config_file import parse_config
from training.memory.loss_head import whole
from training.memory.plan import TrainingMemoryPlan, at_peak, batch_of
from training.memory.regime import regime_of

# PEFT still asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

LENGTH, LAYERS, RANK = 2048, 32, 16
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")
BLOCK, NESTED = 64, 256


def config(method: Method, checkpointing: bool) -> TrainConfig:
    steps = {"micro_batch": 1, "batch": 1, "checkpointing": checkpointing}
    return parse_config({"output": "x", "data": {"train": "x"}, "method": method, "steps": steps})


def shape(layers: int) -> dict[str, Any]:
    return dict(configs.read("llama-2-7b").values) | {"num_hidden_layers": layers}


def on_meta(method: Method, layers: int) -> nn.Module:
    """The model as the trainers have it: fp32 throughout, or fp32 adapters on a base in bf16 or 4 bits."""
    values = shape(layers)
    values.pop("dtype")
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model: nn.Module = make(LlamaConfig(**values), dtype=torch.float32 if method == "full" else torch.bfloat16)
        if method == "full":
            return model
        if method == "qlora":
            _put_in_4_bits(model)
        model.requires_grad_(False)
        peft: Any = get_peft_model
        grafted: nn.Module = peft(model, LoraConfig(r=RANK, target_modules=NAMES), autocast_adapter_dtype=False)
    for parameter in grafted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return grafted


def _put_in_4_bits(model: nn.Module) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and path != "lm_head":
            four: Any = Linear4bit
            quantized = four(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            model.set_submodule(path, quantized)


def materialize(model: nn.Module) -> Iterator[Tensor]:
    """Give the model fake tensors for the ones on meta; yields all that it holds."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if isinstance(module, Linear4bit):
                yield from _pack(module)
            else:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                yield fake
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _pack(module: Linear4bit) -> tuple[Tensor, ...]:
    """What bitsandbytes holds of a doubly quantized layer."""
    elements = module.in_features * module.out_features
    scales, codes = torch.empty(elements // BLOCK, dtype=torch.uint8), torch.empty(16)
    nested_scales, nested_codes, offset = torch.empty(elements // BLOCK // NESTED), torch.empty(256), torch.empty(())
    make: Any = QuantState
    nested = make(absmax=nested_scales, blocksize=NESTED, code=nested_codes, dtype=torch.float32)
    state = make(
        absmax=scales,
        shape=torch.Size((module.out_features, module.in_features)),
        dtype=torch.bfloat16,
        blocksize=BLOCK,
        quant_type="nf4",
        code=codes,
        offset=offset,
        state2=nested,
    )
    packed = torch.empty((elements // 2, 1), dtype=torch.uint8)
    weight: Any = nn.Parameter(packed, requires_grad=False)
    weight.quant_state = state
    module._parameters["weight"] = weight
    module.support_avx512bf16_for_cpu = False
    return packed, scales, codes, nested_scales, nested_codes, offset


@cache
def traced(method: Method, layers: int, checkpointing: bool = True) -> int:
    """Bytes at the peak of a step that is not the first: Adam's moments are there, gradients are not yet."""
    model: Any = on_meta(method, layers)
    with FakeTensorMode(allow_non_fake_inputs=True), Footprint() as footprint:
        held = list(materialize(model))
        footprint.watch(held)
        del held
        model.train()
        if checkpointing:
            model.enable_input_require_grads()
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        moments = [torch.empty_like(parameter) for parameter in learning for _ in range(2)]
        ids = torch.zeros(1, LENGTH, dtype=torch.long)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in learning)
        assert len(moments) == 2 * len(learning)
        return int(footprint.peak)


def planned(method: Method, layers: int, checkpointing: bool = True) -> TrainingMemoryPlan:
    asked, anatomy = config(method, checkpointing), anatomy_of(shape(layers))
    regime = regime_of(asked, bf16=True, cuda=False)
    return at_peak(asked, anatomy, regime, batch_of(asked, LENGTH), whole)


@pytest.mark.parametrize("method", METHODS)
def test_the_total_is_within_5_percent_of_a_trace_at_7b(method: Method) -> None:
    first, second, third = (traced(method, layers) for layers in (1, 2, 3))
    assert third - second == pytest.approx(second - first, rel=0.001), "each layer costs the same"
    at_32 = third + (LAYERS - 3) * (third - second)
    assert planned(method, LAYERS).tensor_bytes == pytest.approx(at_32, rel=0.05)


def test_so_it_is_without_checkpointing() -> None:
    second, third = (traced("lora", layers, checkpointing=False) for layers in (2, 3))
    at_32 = third + (LAYERS - 3) * (third - second)
    assert planned("lora", LAYERS, checkpointing=False).tensor_bytes == pytest.approx(at_32, rel=0.05)


def test_what_the_trace_holds_is_the_model_that_was_counted() -> None:
    """The 4-bit weights of the trace are the formula's to the byte, so that the two can only agree by the rest."""
    anatomy: Anatomy = anatomy_of(shape(2))
    model = on_meta("qlora", 2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        held = list(materialize(model))
    adapters = planned("qlora", 2).bytes_of("adapters")
    weights = planned("qlora", 2).bytes_of("base weights")
    assert sum(tensor.nbytes for tensor in held) == adapters + weights
    assert anatomy.layers == 2
