"""The activation memory of one decoder layer: the bytes of all tensors that autograd saves for the backward pass.

Owns that sum, in the order in which the modules run: norms, attention, MLP or experts, adapters. Each term equals what
autograd saves, to the byte, for every family and regime in tests/training/memory/test_activations.py.

In the code, e is bytes per number in a matrix product, q and kv are the widths of queries and keys. A cast to float in
a model's code saves a copy in fp32, hence the terms with FP32.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loader.anatomy import Anatomy, Layer
from loader.shape import LinearShape
from training.memory.experts import expert_bytes
from training.memory.grafts import Graft
from training.memory.regime import FP32, Regime


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch: `sequences` of `length` tokens. `masked`: padding or packing needs a mask of length x length."""

    sequences: int
    length: int
    masked: bool = False

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


def layer_bytes(anatomy: Anatomy, layer: Layer, regime: Regime, grafts: Mapping[str, Graft], batch: Batch) -> int:
    """Bytes that autograd saves in one layer without checkpointing. `grafts` by the path of their linear layer."""
    learning = [linear for linear in layer.linears if regime.full or linear.path in grafts]
    token = (
        _norms(anatomy, regime)
        + _attention(anatomy, regime, batch)
        + _mlp(anatomy, layer, regime)
        + _inputs(anatomy, layer, regime, learning)
    )
    fixed = FP32 * _offsets(anatomy)
    if layer.experts is not None:
        per_token, once = expert_bytes(layer.experts, anatomy.hidden, regime)
        token, fixed = token + per_token, fixed + once
    for linear in learning:
        graft = grafts.get(linear.path)
        if graft is not None:
            token += _graft_token(graft, regime)
            fixed += _graft_once(graft, regime)
    return token * batch.tokens + fixed


def autocast_copies(regime: Regime, grafts: Sequence[Graft], anatomy: Anatomy) -> int:
    """Bytes of the bf16 copies that autocast makes of trainable fp32 weights; they live until the forward pass ends."""
    if not regime.autocast or regime.trained != FP32:
        return 0
    if regime.full:
        routers = sum(layer.experts.count * anatomy.hidden for layer in anatomy.stack if layer.experts)
        return regime.product * (sum(_weight(linear) for linear in anatomy.linears) + routers)
    return regime.product * sum(graft.rank * (_inout(graft.linear)) for graft in grafts)


def _norms(anatomy: Anatomy, regime: Regime) -> int:
    """Bytes for each token. A norm saves its input in fp32 and the inverse root; if trained, also the normalized x."""
    family = anatomy.family
    scaled = (FP32 if family.offset_norm else regime.base) if regime.full else 0
    total = family.norms * (anatomy.hidden * (FP32 + scaled) + FP32)
    if family.head_norms:
        scaled = (FP32 if family.offset_norm else regime.product) if regime.full else 0
        widths, count = anatomy.q_width + anatomy.kv_width, anatomy.heads + anatomy.kv_heads
        total += widths * (FP32 + scaled) + FP32 * count
    return total


def _offsets(anatomy: Anatomy) -> int:
    """Numbers of the `1 + w` that offset norms keep."""
    family = anatomy.family
    if not family.offset_norm:
        return 0
    return family.norms * anatomy.hidden + (2 * anatomy.head_dim if family.head_norms else 0)


def _attention(anatomy: Anatomy, regime: Regime, batch: Batch) -> int:
    """Bytes for each token: queries, keys, values, result, and one number a head; in eager attention every score."""
    e, q, kv = regime.product, anatomy.q_width, anatomy.kv_width
    if anatomy.family.eager:
        scores = (e if anatomy.softcapped else 0) + FP32 + (e if e != FP32 else 0)
        return 3 * q * e + anatomy.heads * batch.length * scores
    masked = _masked(anatomy, batch)
    # With a mask the kernel takes no grouped heads: keys and values are repeated for it, and the mask is kept.
    keys_values = 2 * (q if masked else kv) * e
    if anatomy.family.fused and not (masked and q != kv):
        # The values are a view of the fused projection, which stays whole.
        keys_values += (q + kv) * e
    return 2 * q * e + keys_values + FP32 * anatomy.heads + (batch.length * e if masked else 0)


def _masked(anatomy: Anatomy, batch: Batch) -> bool:
    return batch.masked or (anatomy.window is not None and anatomy.window < batch.length)


def _mlp(anatomy: Anatomy, layer: Layer, regime: Regime) -> int:
    """Bytes for each token: gate, activated gate and up. A shared expert also saves its result and its gate."""
    e = regime.product
    if layer.experts is None:
        return 3 * anatomy.intermediate * e
    shared = layer.experts.shared
    return (3 * shared + anatomy.hidden + 1) * e if shared else 0


def _inputs(anatomy: Anatomy, layer: Layer, regime: Regime, learning: Sequence[LinearShape]) -> int:
    """Bytes that trained or adapted linear layers save of their inputs, for each token; frozen ones save nothing.

    Layers with the same input share it, unless each makes a copy in its own precision.
    """
    e = regime.product
    if regime.full:
        own = regime.base != e
        return sum(_full_inputs(anatomy, layer, own, e))
    if regime.trained == regime.base and not regime.dropout:
        groups = {_source(linear): linear.in_features for linear in learning}
        if not (anatomy.family.fused or anatomy.family.eager):
            groups.pop("o_proj", None)  # the attention kernel keeps it already
        return sum(groups.values()) * e
    copy = e if regime.autocast else regime.trained
    mask = (1 if regime.cuda else regime.trained) if regime.dropout else 0
    return sum(linear.in_features * (copy + mask) for linear in learning)


def _full_inputs(anatomy: Anatomy, layer: Layer, own: bool, e: int) -> Iterator[int]:
    """Bytes a token of each input. `own`: the norms' results are fp32, and each layer makes its copy."""
    seen = set()
    for linear in layer.linears:
        source = _source(linear)
        if source == "o_proj" and not (anatomy.family.fused or anatomy.family.eager):
            continue
        if source in seen and not (own and source in ("attention", "mlp")):
            continue
        seen.add(source)
        yield linear.in_features * e
    if layer.experts is not None and (own or "mlp" not in seen):
        yield anatomy.hidden * e  # the router's


def _source(linear: LinearShape) -> str:
    """The name of a layer's input: a norm's result, which several layers share, or one of its own."""
    if linear.name in ("q_proj", "k_proj", "v_proj", "qkv_proj"):
        return "attention"
    if linear.name in ("gate_proj", "up_proj", "gate_up_proj", "shared_expert_gate"):
        return "mlp"
    return linear.name


def _graft_token(graft: Graft, regime: Regime) -> int:
    """Bytes for each token: the r numbers between A and B; for DoRA also the results of base and adapter."""
    width = regime.product if regime.autocast else regime.trained
    return width * (graft.rank + (2 * graft.linear.out_features if graft.dora else 0))


def _graft_once(graft: Graft, regime: Regime) -> int:
    """Bytes once: for the norm of DoRA's adapted weight, PEFT multiplies an identity of in x in by A and B."""
    if not graft.dora:
        return 0
    width = regime.product if regime.autocast else regime.trained
    rows = graft.linear.in_features
    return width * rows * (rows + graft.rank) + 3 * FP32 * graft.linear.out_features


def _weight(linear: LinearShape) -> int:
    return linear.in_features * linear.out_features


def _inout(linear: LinearShape) -> int:
    return linear.in_features + linear.out_features
