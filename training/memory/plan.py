"""Predicts the peak memory of a training run from the base's config.json and the run's config.

Owns the moments of a step and their sums. Imports no torch: the plan is made before anything is loaded.

A step has several moments that could be the peak. Activations are freed while gradients appear, so both are never
whole at once, unless gradients are summed over several micro-batches.
"""

from collections.abc import Callable
from dataclasses import dataclass

from loader.anatomy import Anatomy
from training.config import TrainConfig
from training.memory import loss_head
from training.memory.activations import Batch, autocast_copies, layer_bytes
from training.memory.grafts import Graft, grafts_of
from training.memory.optimizer_states import optimizer_states, trained_tensors
from training.memory.regime import FP32, Regime, regime_of
from training.memory.weights import base_bytes, dequantized_bytes

MIB = 1 << 20
CUDA_CONTEXT = 1024 * MIB
"""Driver, kernels and what the allocator cannot reuse; 0.5 to 1.4 GB are seen."""
HOST_CONTEXT = 600 * MIB
"""The interpreter, torch, transformers and trl."""

HeadFunction = Callable[[Anatomy, Regime, int], loss_head.LossMemory]


@dataclass(frozen=True, slots=True)
class Row:
    """One part of the peak, in bytes."""

    name: str
    bytes: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class TrainingMemoryPlan:
    """The peak of a run: its parts, when it is reached, and under which regime. All sizes are bytes.

    `trainable` and `parameters` count numbers. `pageable` is what the driver may move to the host; it is in no row.
    """

    regime: str
    moment: str
    rows: tuple[Row, ...]
    trainable: int
    parameters: int
    batch: Batch
    pageable: int = 0

    @property
    def total_bytes(self) -> int:
        """Everything, the libraries' own memory included: what the device must have."""
        return sum(row.bytes for row in self.rows)

    @property
    def tensor_bytes(self) -> int:
        """Without the libraries' own memory: what `torch.cuda.max_memory_allocated` counts."""
        return sum(row.bytes for row in self.rows if row.name != CONTEXT)

    def bytes_of(self, name: str) -> int:
        """One row's bytes, 0 if the peak has no such row."""
        return sum(row.bytes for row in self.rows if row.name == name)


BASE, ADAPTERS, COPY, GRADIENTS, OPTIMIZER = "base weights", "adapters", "bf16 copies", "gradients", "optimizer states"
REFERENCE, REWARD, KV = "reference model", "reward model", "KV cache of sampling"
STORED, LAYER, PASSING, HEAD = "activations", "one layer", "passing gradients", "loss head"
DEQUANTIZED, CONTEXT = "one dense weight", "libraries"


def predict(
    config: TrainConfig, anatomy: Anatomy, *, tokens: int, bf16: bool = True, cuda: bool = True
) -> TrainingMemoryPlan:
    """The peak of `config` on sequences of `tokens` tokens each (prompt and completion), the longest there will be.

    `bf16`: the device multiplies it, which `precision: auto` asks; `cuda`: it is a GPU. Raises ConfigInvalid when the
    base has not the layers that the config names.
    """
    regime = regime_of(config, bf16=bf16, cuda=cuda)
    return at_peak(config, anatomy, regime, batch_of(config, tokens), _head_of(config))


def batch_of(config: TrainConfig, tokens: int) -> Batch:
    """A micro-batch of `config`. Sequences of different lengths, and packed ones, need a mask."""
    pairs = 2 if config.objective in ("dpo", "reward") else 1
    sequences = config.steps.micro_batch * pairs
    return Batch(sequences, tokens, masked=sequences > 1 or config.data.packing)


def _head_of(config: TrainConfig) -> HeadFunction:
    return loss_head.absent if config.objective == "reward" else loss_head.tiled


def at_peak(
    config: TrainConfig, anatomy: Anatomy, regime: Regime, batch: Batch, head_of: HeadFunction
) -> TrainingMemoryPlan:
    """The plan for a given precision regime and loss; `predict` chooses those that the trainers use."""
    grafts = grafts_of(config, anatomy)
    tensors = trained_tensors(anatomy, grafts, regime.full)
    states = optimizer_states(config.optimizer.name, tensors, regime.trained, regime.cuda)
    constant = _constant(config, anatomy, regime, grafts, states.device)
    moments = _moments(config, anatomy, regime, batch, head_of(anatomy, regime, batch.tokens), grafts, sum(tensors))
    moment = max(moments, key=lambda name: sum(row.bytes for row in moments[name]))
    context = Row(CONTEXT, CUDA_CONTEXT if regime.cuda else HOST_CONTEXT, "an estimate, 0.5 to 1.4 GB are seen")
    rows = tuple(row for row in (*constant, *moments[moment], context) if row.bytes)
    return TrainingMemoryPlan(regime.text, moment, rows, sum(tensors), anatomy.parameters, batch, states.pageable)


def _constant(
    config: TrainConfig, anatomy: Anatomy, regime: Regime, grafts: tuple[Graft, ...], states: int
) -> list[Row]:
    """What stays in memory from the end of the first step to the last."""
    weights = base_bytes(anatomy, regime.base, regime.quantized)
    added = sum(graft.parameters for graft in grafts)
    rows = [
        Row(BASE, weights, f"{anatomy.parameters:,} parameters"),
        Row(ADAPTERS, added * regime.trained, f"{added:,} parameters"),
        Row(OPTIMIZER, states, config.optimizer.name),
    ]
    samples = config.objective in ("grpo", "rloo")
    if regime.full and (config.objective == "dpo" or (samples and config.sampling.beta > 0)):
        rows.append(Row(REFERENCE, weights, "what it may not leave too far"))
    if samples:
        rows.append(Row(REWARD, anatomy.parameters * regime.base, "taken to be as large as the base"))
    return rows


def _moments(
    config: TrainConfig,
    anatomy: Anatomy,
    regime: Regime,
    batch: Batch,
    head: loss_head.LossMemory,
    grafts: tuple[Graft, ...],
    trained: int,
) -> dict[str, list[Row]]:
    """What is allocated and freed within a step, by moment."""
    by_path = {graft.linear.path: graft for graft in grafts}
    kept = [layer_bytes(anatomy, layer, regime, by_path, batch) for layer in anatomy.stack]
    checkpointing = config.steps.checkpointing
    boundary = batch.tokens * anatomy.hidden * regime.base
    ends = boundary + batch.tokens * (anatomy.hidden * FP32 + FP32)
    stored = ends + (boundary * anatomy.layers if checkpointing else sum(kept))
    layer = max(kept) if checkpointing else 0
    copy, gradients = autocast_copies(regime, grafts, anatomy), trained * regime.trained
    summed = gradients if config.steps.batch > config.steps.micro_batch else 0
    scratch = Row(DEQUANTIZED, _scratch(anatomy, regime, grafts))
    through = Row(LAYER, layer, "recomputed from its input")
    activations = Row(STORED, stored, "the layers' inputs alone" if checkpointing else "of every layer")
    passing = Row(PASSING, 2 * FP32 * batch.tokens * anatomy.intermediate, "gradients on their way through the MLP")
    last = 0 if checkpointing else copy
    return {
        "forward": [Row(GRADIENTS, summed), Row(COPY, copy), activations, Row(HEAD, head.forward)],
        "loss": [Row(GRADIENTS, summed), Row(COPY, last), activations, Row(HEAD, head.backward)],
        "backward, last layer": [Row(GRADIENTS, summed), Row(COPY, last), activations, through, passing, scratch],
        "backward, first layer": [Row(GRADIENTS, gradients), Row(LAYER, max(kept), "the last to be freed"), scratch],
        "sampling": [Row(KV, _kv_bytes(config, anatomy, regime, batch)), scratch],
    }


def _scratch(anatomy: Anatomy, regime: Regime, grafts: tuple[Graft, ...]) -> int:
    """The temporary tensors of one linear layer: its dequantized weight, and DoRA's identity before it is cast."""
    dense = dequantized_bytes(anatomy, regime.product) if regime.quantized else 0
    if not regime.dora:
        return dense
    widest = max((graft.linear for graft in grafts), key=lambda linear: linear.in_features)
    identity = FP32 * widest.in_features**2 if regime.autocast else 0
    return dense + identity + regime.product * widest.in_features * widest.out_features


def _kv_bytes(config: TrainConfig, anatomy: Anatomy, regime: Regime, batch: Batch) -> int:
    """Keys and values of all completions of a step, which are sampled at once."""
    if config.objective not in ("grpo", "rloo"):
        return 0
    return 2 * anatomy.layers * anatomy.kv_width * regime.product * config.steps.batch * batch.length
