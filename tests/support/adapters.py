"""Small valid adapters of every kind for any BaseShape, written with numpy and safetensors alone; no torch."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.expected import expected_tensors
from adapters.header import TensorSpec, write_header
from adapters.manifest import Graft, Kind
from loader.shape import BaseShape, LinearShape

KINDS: tuple[Kind, ...] = ("lora", "rslora", "dora", "rsdora")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

Array = NDArray[Any]
Tensors = dict[str, Array]


def llama_shape(layers: int = 2, hidden: int = 32, kv: int = 16, mlp: int = 64, vocab: int = 64) -> BaseShape:
    """The linears of a Llama with these sizes; `kv` is the width of keys and values."""
    widths = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, kv),
        "self_attn.v_proj": (hidden, kv),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, mlp),
        "mlp.up_proj": (hidden, mlp),
        "mlp.down_proj": (mlp, hidden),
    }
    linears = [
        LinearShape(f"model.layers.{layer}.{name}", wide_in, wide_out)
        for layer in range(layers)
        for name, (wide_in, wide_out) in widths.items()
    ]
    linears.append(LinearShape("lm_head", hidden, vocab))
    refused = {"model.embed_tokens": "it is an embedding", "model.layers.*.mlp.experts.gate_up_proj": "it is fused"}
    return BaseShape("tiny-llama", layers, {linear.path: linear for linear in linears}, refused)


def peft_config(**changes: Any) -> dict[str, Any]:
    """Every field that PEFT 0.21 writes for a plain LoRA of rank 4 and alpha 8 on q_proj and v_proj, with `changes`."""
    config: dict[str, Any] = {
        "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
        "base_model_name_or_path": "tiny-llama", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
        "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None,
        "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.0,
        "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
        "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4,
        "rank_pattern": {}, "revision": None, "target_modules": ["q_proj", "v_proj"], "target_parameters": None,
        "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_bdlora": None, "use_dora": False,
        "use_qalora": False, "use_rslora": False, "velora_config": None,
    }  # fmt: skip
    return config | changes


def grafts_for(
    shape: BaseShape,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    rank: int = 4,
    alpha: float = 8,
    kind: Kind = "lora",
    ranks: Mapping[str, int] | None = None,
) -> tuple[Graft, ...]:
    """Grafts on the linears whose last name is in `targets`; `ranks` gives some names a rank of their own."""
    grafts = []
    for path, linear in sorted(shape.linears.items()):
        if linear.name in targets:
            own = (ranks or {}).get(linear.name, rank)
            scaling = alpha / math.sqrt(own) if kind in ("rslora", "rsdora") else alpha / own
            grafts.append(
                Graft(path, linear.in_features, linear.out_features, own, scaling, kind in ("dora", "rsdora"))
            )
    return tuple(grafts)


def random_tensors(grafts: Sequence[Graft], seed: int = 0, scale: float = 0.05, dtype: str = "float32") -> Tensors:
    """Tensors for these grafts, normally distributed; magnitudes lie around 1. `dtype` may be "bfloat16"."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, size in expected_tensors(grafts).items():
        values = random.standard_normal(size).astype(np.float32) * scale
        tensors[name] = cast(values + 1 if name.endswith("magnitude_vector") else values, dtype)
    return tensors


def cast(values: Array, dtype: str) -> Array:
    """`values` as `dtype`; bfloat16, which numpy lacks, as its bits in uint16, truncated."""
    if dtype == "bfloat16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype(dtype)


_CODES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "float64": "F64", "int64": "I64", "int8": "I8"}


def write_safetensors(path: Path, tensors: Mapping[str, Array], order: Sequence[str] | None = None) -> Path:
    """The tensors in `order`, by default the mapping's; uint16 is written as BF16."""
    ordered = [(name, np.array(tensors[name], order="C")) for name in order or list(tensors)]
    specs = {name: TensorSpec(_CODES[array.dtype.name], array.shape, 0, array.nbytes) for name, array in ordered}
    head, _ = write_header(specs)
    path.write_bytes(head + b"".join(array.tobytes() for _, array in ordered))
    return path


def write_adapter(
    directory: Path,
    shape: BaseShape,
    *,
    kind: Kind = "lora",
    rank: int = 4,
    alpha: float = 8,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    ranks: Mapping[str, int] | None = None,
    seed: int = 0,
    scale: float = 0.05,
    dtype: str = "float32",
    change: Callable[[Tensors], Tensors] | None = None,
    **config: Any,
) -> Path:
    """A valid adapter in `directory`, unless `change` or the extra `config` fields spoil it; different per `seed`."""
    directory.mkdir(parents=True, exist_ok=True)
    grafts = grafts_for(shape, targets, rank, alpha, kind, ranks)
    tensors = random_tensors(grafts, seed, scale, dtype)
    fields: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(targets),
        "rank_pattern": dict(ranks or {}),
        "use_dora": kind in ("dora", "rsdora"),
        "use_rslora": kind in ("rslora", "rsdora"),
        "base_model_name_or_path": shape.base_id,
    }
    (directory / "adapter_config.json").write_text(json.dumps(peft_config(**(fields | config))))
    write_safetensors(directory / "adapter_model.safetensors", change(tensors) if change else tensors)
    return directory


def adapters(root: Path, shape: BaseShape, count: int) -> Iterator[Path]:
    """`count` different adapters, their kinds, ranks and targets taking turns."""
    for at in range(count):
        yield write_adapter(
            root / f"adapter-{at}",
            shape,
            kind=KINDS[at % len(KINDS)],
            rank=(1, 2, 4, 8)[at // 2 % 4],
            targets=(ATTENTION, ("q_proj", "v_proj"), MLP)[at % 3],
            seed=at,
        )
