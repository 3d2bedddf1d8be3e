"""Tiny random models of every architecture that is claimed, as directories that any loader can read.

Weights come from a fixed seed and are larger than a fresh model's, so that attention, biases and adapters all
show in the logits. Windows are shorter than the prompts in the tests. The tokenizer is byte-level, without merges.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BYTES = 256
EOS = BYTES + SPECIAL.index("<|im_end|>")
VOCAB = 272
WINDOW = 8
LAYERS = 4

SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": BYTES + SPECIAL.index("<|im_start|>"),
    "eos_token_id": EOS,
    "pad_token_id": BYTES,
}
EXPERTS: Mapping[str, Any] = {"num_experts_per_tok": 2}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _alternating() -> list[str]:
    return ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(LAYERS)]


CONFIGS: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    "qwen3": lambda: Qwen3Config(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=WINDOW),
    "gemma2": lambda: Gemma2Config(
        **SHAPE,
        layer_types=_alternating(),
        sliding_window=WINDOW,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=10.0,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **SHAPE, layer_types=_alternating(), sliding_window=WINDOW, query_pre_attn_scalar=16
    ),
    "phi3": lambda: Phi3Config(**SHAPE, sliding_window=WINDOW),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **SHAPE, **EXPERTS, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=64
    ),
    "mixtral": lambda: MixtralConfig(**SHAPE, **EXPERTS, num_local_experts=4),
}
ARCHITECTURES: tuple[str, ...] = tuple(CONFIGS)


def tiny_model_dir(arch: str, tmp: Path, **changes: object) -> Path:
    """The directory `tmp/<arch>` with a tiny random model in float32 and its tokenizer; made on the first call.

    `changes` to its config are part of the name.
    """
    target = tmp / "-".join([arch, *(f"{name}-{value}" for name, value in changes.items())])
    if not target.exists():
        tmp.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=tmp))
        tiny_model(arch, **changes).save_pretrained(scratch)
        tiny_tokenizer().save_pretrained(scratch)
        try:
            scratch.rename(target)
        except OSError:  # another worker of a parallel run was first
            shutil.rmtree(scratch)
    return target


def tiny_model(arch: str, **changes: object) -> PreTrainedModel:
    """A model of `arch` in float32, eval mode; the same weights on every call. `changes` are to its config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        make: Callable[[PreTrainedConfig], PreTrainedModel] = AutoModelForCausalLM.from_config
        config = CONFIGS[arch]()
        for name, value in changes.items():
            setattr(config, name, value)
        model = make(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
                elif "norm" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.eval()
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, then the three special tokens; a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return make(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )
