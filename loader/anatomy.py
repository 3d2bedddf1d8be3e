"""What a config.json alone says of a decoder: its linear layers by name and size, and how many parameters it has.

Owns the families whose layers are known, each as transformers builds it. Imports no torch and no transformers, so that
a memory plan takes milliseconds. A family that is not known is refused by name: a wrong count is worse than none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loader.errors import UnsupportedBase
from loader.shape import LinearShape


@dataclass(frozen=True, slots=True)
class Family:
    """What a model type has beyond Llama's layer. `norms` counts the full-width norms of a layer.

    `offset_norm`: a norm scales by 1 + w, in fp32. `eager`: attention writes its scores out, for want of a kernel.
    `float_routing`: the experts' weights are made to sum to one, and stay in fp32.
    """

    norms: int = 2
    tied: bool = False
    head_dim: int | None = None
    qkv_bias: bool = False
    head_norms: bool = False
    fused: bool = False
    offset_norm: bool = False
    eager: bool = False
    experts_key: str | None = None
    float_routing: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(head_norms=True, head_dim=128),
    "gemma2": Family(norms=4, tied=True, head_dim=256, offset_norm=True, eager=True),
    "gemma3_text": Family(norms=4, tied=True, head_dim=256, head_norms=True, offset_norm=True),
    "phi3": Family(fused=True),
    "qwen2_moe": Family(qkv_bias=True, experts_key="num_experts"),
    "mixtral": Family(experts_key="num_local_experts", float_routing=True),
}


@dataclass(frozen=True, slots=True)
class Experts:
    """A layer's experts: `count` of `width`, of which each token visits `active`; and one for all, `shared` wide.

    `renormed`: the weights of those that a token visits are made to sum to one. `float_weights`: they stay in fp32.
    """

    count: int
    active: int
    width: int
    shared: int
    renormed: bool
    float_weights: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. `others` counts the parameters of norms and routers; experts are fused, and no linears."""

    linears: tuple[LinearShape, ...]
    experts: Experts | None
    expert_parameters: int
    others: int

    @property
    def parameters(self) -> int:
        return sum(map(size_of, self.linears)) + self.expert_parameters + self.others


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A decoder's shape. `intermediate` is the width of a dense layer's MLP; `window` the attention's, if it slides."""

    model_type: str
    family: Family
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    window: int | None
    softcapped: bool
    max_length: int | None
    stack: tuple[Layer, ...]

    @property
    def layers(self) -> int:
        return len(self.stack)

    @property
    def linears(self) -> tuple[LinearShape, ...]:
        """Every linear layer of the decoder, the head left out, as PEFT's `all-linear` means it."""
        return tuple(linear for layer in self.stack for linear in layer.linears)

    @property
    def head(self) -> LinearShape:
        """The output head; its weight is the embedding's when `tied`."""
        return LinearShape("lm_head", self.hidden, self.vocab)

    @property
    def embeddings(self) -> int:
        """Parameters of embedding and head together."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.embeddings + self.hidden + sum(layer.parameters for layer in self.stack)

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim


def size_of(linear: LinearShape) -> int:
    """Parameters of one linear layer, the bias included."""
    return linear.in_features * linear.out_features + (linear.out_features if linear.bias else 0)


def anatomy_of(config: Mapping[str, Any]) -> Anatomy:
    """Read a config.json. Raises UnsupportedBase for a family that is not known, or a key that is missing."""
    kind = config.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        known = ", ".join(FAMILIES)
        raise UnsupportedBase(
            f"The layers of model type {kind!r} are not known here, so they are not counted: {known}."
        )
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    return Anatomy(
        model_type=str(kind),
        family=family,
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or family.head_dim or hidden // heads),
        intermediate=_number(config, "intermediate_size"),
        vocab=_number(config, "vocab_size"),
        tied=_tied(config, family),
        window=_window(config),
        softcapped=bool(config.get("attn_logit_softcapping")),
        max_length=config.get("max_position_embeddings"),
        stack=tuple(_layer(config, family, index) for index in range(_number(config, "num_hidden_layers"))),
    )


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise UnsupportedBase(
            f"The config of {config.get('model_type')!r} gives no {key}. Take a complete config.json."
        )
    return value


def _tied(config: Mapping[str, Any], family: Family) -> bool:
    tied = config.get("tie_word_embeddings")
    return family.tied if tied is None else bool(tied)


def _window(config: Mapping[str, Any]) -> int | None:
    """The smallest window that any layer attends through."""
    if config.get("use_sliding_window") is False:
        return None
    return config.get("sliding_window") or None


def _layer(config: Mapping[str, Any], family: Family, index: int) -> Layer:
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    head_dim = int(config.get("head_dim") or family.head_dim or hidden // heads)
    experts = _experts(config, family, index)
    prefix = f"model.layers.{index}"
    linears = (
        *_attention(config, family, f"{prefix}.self_attn", hidden, head_dim),
        *_mlp(config, family, f"{prefix}.mlp", hidden, experts),
    )
    others = family.norms * hidden + (2 * head_dim if family.head_norms else 0)
    if experts is not None:
        others += experts.count * hidden
    fused = experts.count * 3 * hidden * experts.width if experts else 0
    return Layer(linears, experts, fused, others)


def _attention(
    config: Mapping[str, Any], family: Family, prefix: str, hidden: int, head_dim: int
) -> tuple[LinearShape, ...]:
    heads = _number(config, "num_attention_heads")
    q_width, kv_width = heads * head_dim, int(config.get("num_key_value_heads") or heads) * head_dim
    bias = family.qkv_bias or bool(config.get("attention_bias"))
    out = LinearShape(f"{prefix}.o_proj", q_width, hidden, bool(config.get("attention_bias")) and not family.qkv_bias)
    if family.fused:
        return LinearShape(f"{prefix}.qkv_proj", hidden, q_width + 2 * kv_width), out
    return (
        LinearShape(f"{prefix}.q_proj", hidden, q_width, bias),
        LinearShape(f"{prefix}.k_proj", hidden, kv_width, bias),
        LinearShape(f"{prefix}.v_proj", hidden, kv_width, bias),
        out,
    )


def _mlp(
    config: Mapping[str, Any], family: Family, prefix: str, hidden: int, experts: Experts | None
) -> tuple[LinearShape, ...]:
    if experts is not None:
        if not experts.shared:
            return ()
        shared = _gated(f"{prefix}.shared_expert", hidden, experts.shared, bias=False)
        return *shared, LinearShape(f"{prefix}.shared_expert_gate", hidden, 1)
    width, bias = _number(config, "intermediate_size"), bool(config.get("mlp_bias"))
    if family.fused:
        return (
            LinearShape(f"{prefix}.gate_up_proj", hidden, 2 * width),
            LinearShape(f"{prefix}.down_proj", width, hidden),
        )
    return _gated(prefix, hidden, width, bias)


def _gated(prefix: str, hidden: int, width: int, bias: bool) -> tuple[LinearShape, ...]:
    return (
        LinearShape(f"{prefix}.gate_proj", hidden, width, bias),
        LinearShape(f"{prefix}.up_proj", hidden, width, bias),
        LinearShape(f"{prefix}.down_proj", width, hidden, bias),
    )


def _experts(config: Mapping[str, Any], family: Family, index: int) -> Experts | None:
    """The experts of layer `index`; None where it has a dense MLP."""
    if family.experts_key is None:
        return None
    every = int(config.get("decoder_sparse_step") or 1)
    if index in (config.get("mlp_only_layers") or ()) or (index + 1) % every:
        return None
    return Experts(
        count=_number(config, family.experts_key),
        active=_number(config, "num_experts_per_tok"),
        width=int(config.get("moe_intermediate_size") or _number(config, "intermediate_size")),
        shared=int(config.get("shared_expert_intermediate_size") or 0),
        renormed=family.float_routing or bool(config.get("norm_topk_prob")),
        float_weights=family.float_routing,
    )
