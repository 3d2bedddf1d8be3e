"""The schema of a training config: its keys, their defaults, and which of them contradict each other.

Owns the schema alone; training/config_file.py reads YAML files into it. Imports no torch, so a bad config fails at
once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Method = Literal["full", "lora", "qlora", "dora", "qdora"]
Objective = Literal["sft", "dpo", "reward", "grpo", "rloo"]
Format = Literal["messages", "prompt_completion", "text", "preference", "prompts"]
Tracker = Literal["tensorboard", "wandb", "trackio"]

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]

QUANTIZED: tuple[Method, ...] = ("qlora", "qdora")
REINFORCED: tuple[Objective, ...] = ("grpo", "rloo")
_READ_BY: dict[str, tuple[Objective, ...]] = {"preference": ("dpo",), "reward": REINFORCED, "sampling": REINFORCED}
_UNREAD_ADVICE = {
    "preference": "only dpo does. For grpo and rloo, sampling.beta is the weight of the divergence from the base.",
    "reward": "only grpo and rloo do. Remove it.",
    "sampling": "only grpo and rloo do. Remove it.",
}


class Section(BaseModel):
    """A mapping of the config file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """Where the examples are: JSONL, one object a line. Paths are relative to the working directory."""

    train: Path
    heldout: Path | None = Field(
        default=None, description="Held-out examples; without it `heldout_share` of `train` is."
    )
    heldout_share: Share = 0.1
    format: Literal["auto"] | Format = "auto"
    loss_on: Literal["auto", "completion", "assistant", "all"] = Field(
        default="auto",
        description="auto: the completion where there is one, the assistant's turns in a chat, else all.",
    )
    max_tokens: Positive = Field(default=1024, description="Longer examples are cut, and counted in the report.")
    packing: bool = False


class Adapter(Section):
    """LoRA's shape. The defaults are where the published evidence agrees: every linear layer, alpha = 2 r at r = 16."""

    rank: Annotated[int, Field(ge=1, le=256)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Share = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    layers: tuple[int, ...] | None = Field(
        default=None, description="Decoder layers that are adapted; all of them if unset."
    )
    rslora: bool = False
    init: Literal["default", "pissa"] = Field(
        default="default", description="pissa is exported as a plain LoRA of 2 r."
    )
    lora_plus_ratio: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="LoRA+: B learns this much faster."
    )
    saved_as: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="The precision of the files; PiSSA and DoRA's magnitudes stay in float32."
    )


class Optimizer(Section):
    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Unset: see training/learning_rates.py."
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = Field(default=0.05, description="Share of the steps over which the learning rate rises.")
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class Steps(Section):
    """How long, in what portions, and when to look. One step is `batch` examples over all processes."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Positive | None = None
    batch: Positive = Field(default=16, description="Examples a step; micro_batch x accumulation x processes.")
    micro_batch: Positive = 4
    checkpointing: bool = Field(default=True, description="Recompute activations instead of keeping them.")
    seed: int = 7
    eval_every: Positive | None = Field(
        default=None, description="Steps between held-out losses; unset: four times a run."
    )
    save_every: Positive | None = Field(
        default=None, description="Steps between checkpoints; unset: with every evaluation."
    )
    patience: Positive | None = Field(default=None, description="Stop after so many evaluations without improvement.")
    threads: Positive | None = Field(default=None, description="CPU threads; unset: torch decides.")


class Preference(Section):
    beta: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="DPO's temperature: how far it may leave the base."
    )


class Reward(Section):
    """What grpo and rloo are rewarded by: a folder that `objective: reward` wrote."""

    model: Path | None = None


class Sampling(Section):
    """The completions that grpo and rloo sample for each prompt."""

    completions: Annotated[int, Field(ge=2)] = 4
    max_new_tokens: Positive = 128
    temperature: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = Field(default=0.04, description="Weight of the divergence from the base.")


class Score(Section):
    """A task score on the held-out split, beside its loss: greedy answers compared with the ones in the data."""

    metric: Literal["exact", "json", "contains"] = "exact"
    words: tuple[str, ...] = Field(
        default=(), description="For contains: what each answer must hold; unset: the lines of its expected answer."
    )
    max_new_tokens: Positive = 64
    limit: Positive = Field(default=200, description="At most so many held-out examples are answered.")


class Gate(Section):
    """The comparison of the trainer's outputs with the serving path's, before anything is pushed."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    examples: Positive = 16
    enabled: bool = True


class Push(Section):
    """Where the adapter goes when it is done."""

    url: str
    name: str | None = Field(default=None, description="Its name on the server; unset: the output folder's.")
    alias: str | None = Field(default=None, description="A word to point at the new version, such as prod.")


class TrainConfig(Section):
    """One training run. See docs/training.md for each key."""

    output: Path = Field(description="The folder that appears when the run is done: the adapter, card and curves.")
    data: Data
    about: str | None = Field(default=None, description="What it is for, in a sentence; the card begins with it.")
    base: str = Field(
        default="embedded", description="As for `rootstock serve`: embedded, a directory, a GGUF, a hub id."
    )
    method: Method = "lora"
    objective: Objective = "sft"
    quantization: Literal["nf4", "fp4"] | None = Field(
        default=None, description="The base of qlora and qdora; nf4 if unset."
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="The base's while training. auto: bfloat16 where the device multiplies it, else float32.",
    )
    device: str = "auto"
    adapter: Adapter = Adapter()
    optimizer: Optimizer = Optimizer()
    steps: Steps = Steps()
    preference: Preference = Preference()
    reward: Reward = Reward()
    sampling: Sampling = Sampling()
    score: Score | None = None
    gate: Gate = Gate()
    push: Push | None = None
    track: tuple[Tracker, ...] = ()

    @property
    def quantized(self) -> str | None:
        """The base's 4-bit type while training, or None."""
        return (self.quantization or "nf4") if self.method in QUANTIZED else None

    @property
    def push_name(self) -> str:
        """The adapter's name on the server that it is pushed to."""
        return (self.push and self.push.name) or self.output.name

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "TrainConfig":
        faults = list(_contradictions(self))
        if faults:
            raise ValueError("\n".join(faults))
        return self


def _contradictions(config: TrainConfig) -> Iterator[str]:
    if config.quantization is not None and config.method not in QUANTIZED:
        yield f"quantization: {config.quantization} needs method: qlora or qdora, not {config.method}."
    if config.objective in REINFORCED and config.reward.model is None:
        yield f"objective: {config.objective} needs reward.model, a folder that `objective: reward` wrote."
    if config.steps.batch % config.steps.micro_batch:
        yield f"steps.batch: {config.steps.batch} is no multiple of steps.micro_batch, {config.steps.micro_batch}."
    if config.push is not None and (config.method == "full" or config.objective == "reward"):
        yield "push: only adapters are pushed; a full fine-tune or a reward model is a model of its own. Remove push."
    if config.adapter.init == "pissa" and config.method not in ("lora", "qlora"):
        yield "adapter.init: pissa needs method: lora or qlora."
    if config.adapter.init == "pissa" and config.adapter.rank > 128:
        yield "adapter.rank: pissa is exported at twice the rank, and 256 is the most. Use 128 or less."
    if config.adapter.init == "pissa" and (config.adapter.dropout or config.optimizer.weight_decay):
        yield "adapter.init: pissa needs adapter.dropout: 0 and optimizer.weight_decay: 0; what it starts from stays."
    if "lm_head" in config.adapter.targets:
        yield "adapter.targets: trainers read the weight of lm_head itself: an adapter there learns nothing. Drop it."
    yield from _ignored_settings(config)
    if config.objective in REINFORCED:
        yield from _sampling_contradictions(config)


def _ignored_settings(config: TrainConfig) -> Iterator[str]:
    """Settings that this objective ignores: whoever wrote them expects them to have an effect."""
    for section, objectives in _READ_BY.items():
        changed = getattr(config, section) != TrainConfig.model_fields[section].default
        if changed and config.objective not in objectives:
            yield f"{section}: objective: {config.objective} does not read it, {_UNREAD_ADVICE[section]}"
    if config.score is not None and config.objective != "sft":
        yield f"score: the examples of objective: {config.objective} have no answer to compare with. Remove score."
    if config.score is not None and config.score.words and config.score.metric != "contains":
        yield f"score.words: metric: {config.score.metric} does not look for words. Set score.metric to contains."
    if config.data.packing and config.objective != "sft":
        yield f"data.packing: objective: {config.objective} looks at whole answers. Set it to false."


def _sampling_contradictions(config: TrainConfig) -> Iterator[str]:
    batch, completions = config.steps.batch, config.sampling.completions
    if batch % completions:
        yield (
            f"steps.batch: {batch} is no multiple of sampling.completions, {completions}. A step takes "
            f"all answers to a prompt. Set steps.batch to {-(-batch // completions) * completions}."
        )
    if config.adapter.dropout and config.method != "full":
        yield (
            f"adapter.dropout: with objective: {config.objective}, another model would learn than the one that "
            "answered. Set it to 0."
        )
