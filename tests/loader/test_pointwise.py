"""Norms by torch's own function: the definition, and only where a model's own modules are that."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loader.pointwise import TorchNorm, speed_up_pointwise


def test_it_is_the_definition() -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(3, 8) * 4, torch.randn(8)
    want = [[float(w * v / ((row**2).mean() + 1e-5) ** 0.5) for v, w in zip(row, weight, strict=True)] for row in x]
    assert torch.allclose(TorchNorm(weight, 1e-5)(x), torch.tensor(want), atol=1e-5)


def test_on_a_cpu_without_kernels_a_model_keeps_its_own() -> None:
    config = LlamaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = LlamaForCausalLM(config)
    speed_up_pointwise(model, None)
    assert not any(isinstance(module, TorchNorm) for module in model.modules())
