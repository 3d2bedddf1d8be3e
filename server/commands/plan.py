"""`rootstock plan`: what a training run and its serving will take, before anything is loaded.

Owns the command and how its numbers are printed. Reads a config.json and no weights; imports no torch.
"""

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.commands.options import BaseOption, Json, print_json

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.memory.compute import Compute
    from training.memory.plan import TrainingMemoryPlan
    from training.memory.serving_plan import ServingPlan
    from training.memory.suggestions import Suggestion

GB = GIGA = 1e9
SHOWN = 8


class Method(StrEnum):
    full, lora, qlora, dora, qdora = "full", "lora", "qlora", "dora", "qdora"


class Objective(StrEnum):
    sft, dpo, reward, grpo, rloo = "sft", "dpo", "reward", "grpo", "rloo"


class OptimizerName(StrEnum):
    adamw, adamw_8bit, paged_adamw_8bit = "adamw", "adamw_8bit", "paged_adamw_8bit"


class Precision(StrEnum):
    bfloat16, float32 = "bfloat16", "float32"


def plan(
    base: BaseOption = "embedded",
    method: Annotated[Method, typer.Option("--method", help="How the base is kept, and what learns.")] = Method.lora,
    objective: Annotated[
        Objective, typer.Option("--objective", help="What is learnt: examples, preferences or rewards.")
    ] = Objective.sft,
    rank: Annotated[int, typer.Option("--rank", min=1, max=256, help="The adapter's rank.")] = 16,
    targets: Annotated[str, typer.Option("--targets", help="all-linear, or names: q_proj,v_proj.")] = "all-linear",
    dropout: Annotated[float, typer.Option("--dropout", min=0, max=0.99, help="The adapter's dropout.")] = 0.0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences in a micro-batch; pairs for dpo.")] = 4,
    step: Annotated[int, typer.Option("--step", min=1, help="Sequences in a whole optimizer step.")] = 16,
    sequence: Annotated[int, typer.Option("--sequence", min=1, help="Tokens of the longest sequence.")] = 1024,
    optimizer: Annotated[OptimizerName, typer.Option("--optimizer", help="Its states are kept.")] = OptimizerName.adamw,
    checkpointing: Annotated[bool, typer.Option(help="Recompute activations instead of keeping them.")] = True,
    dtype: Annotated[Precision, typer.Option("--dtype", help="What products are computed in.")] = Precision.bfloat16,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="The GPU's memory: 48GB (decimal) or 48GiB; no limit by default.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Plan for training on the CPU.")] = False,
    requests: Annotated[int, typer.Option("--requests", min=1, help="Whole requests served at once.")] = 8,
    as_json: Json = False,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", dir_okay=False, help="Draw it as a picture, with what would fit."),
    ] = None,
) -> None:
    """Tell the memory that a training run takes at its peak, part by part, and what would fit instead."""
    from loader.anatomy import anatomy_of
    from loader.configs import read
    from training.memory.compute import training_flops
    from training.memory.grafts import grafts_of
    from training.memory.serving_plan import serving_plan
    from training.memory.suggestions import PlannedRun, suggestions, until_it_fits

    limit, whole = _bytes(gpu), -(-max(step, batch) // batch) * batch
    config = _config(
        method=method.value,
        objective=objective.value,
        precision=dtype.value,
        data={"train": "unused", "max_tokens": sequence},
        adapter={"rank": rank, "targets": _names(targets), "dropout": dropout},
        optimizer={"name": optimizer.value},
        steps={"micro_batch": batch, "batch": whole, "checkpointing": checkpointing},
    )
    found = read(base)
    anatomy = anatomy_of(found.values)
    run = PlannedRun(config, sequence, cuda=not cpu)
    made, instead = run.plan(anatomy), suggestions(run, anatomy)
    work = None if objective in (Objective.grpo, Objective.rloo) else training_flops(config, anatomy, made.trainable)
    path = until_it_fits(run, anatomy, limit) if limit is not None else ()
    quantized = config.quantized is not None
    grafts = grafts_of(config, anatomy)
    served = serving_plan(anatomy, grafts, length=sequence, requests=requests, limit=limit, quantized=quantized)
    if png is not None:
        asked = (f"{method.value}, as asked", made)
        _draw([asked, *((each.change, each.plan) for each in instead[:SHOWN])], limit, _title(found.id, config), png)
    if as_json:
        print_json(_as_json(found.id, made, work, limit, instead, path, served))
    else:
        typer.echo("\n".join(_text(found.id, config, made, work, limit, instead, path, served)))


def _draw(bars: "Sequence[tuple[str, TrainingMemoryPlan]]", limit: int | None, title: str, png: Path) -> None:
    from training.memory.plot import draw

    draw(bars, limit, title, png)


def _config(**values: Any) -> "TrainConfig":
    """A config of these keys. Its paths are never opened."""
    from training.config_file import parse_config

    if values["objective"] in ("grpo", "rloo"):
        values["reward"] = {"model": "unused"}
    return parse_config({"output": "unused", **values}, "The plan")


def _names(targets: str) -> str | tuple[str, ...]:
    if targets == "all-linear":
        return targets
    return tuple(name.strip() for name in targets.split(",") if name.strip())


def _bytes(text: str | None) -> int | None:
    """48GB, 48GiB or 48, which is in GB."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    if text is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(f"{text}GB" if text.strip().isdecimal() else text))
    except ValidationError:
        raise typer.BadParameter(f"{text} is no size. Write 48GB, or 48GiB.", param_hint="--gpu") from None


def _title(base: str, config: "TrainConfig") -> str:
    adapter = config.adapter
    names = adapter.targets if isinstance(adapter.targets, str) else ",".join(adapter.targets)
    detail = "" if config.method == "full" else f", rank {adapter.rank} on {names}"
    pairs = " pairs" if config.objective in ("dpo", "reward") else ""
    batch = f"{config.steps.micro_batch}{pairs} x {config.data.max_tokens} tokens"
    recomputed = "checkpointing" if config.steps.checkpointing else "no checkpointing"
    return f"{base}: {config.objective} by {config.method}{detail}; {batch}, {config.optimizer.name}, {recomputed}"


def _text(
    base: str,
    config: "TrainConfig",
    made: "TrainingMemoryPlan",
    work: "Compute | None",
    limit: int | None,
    instead: Sequence["Suggestion"],
    path: Sequence["Suggestion"],
    served: "ServingPlan",
) -> list[str]:
    trained = f"{made.trainable:,} of {made.parameters:,} parameters learn ({made.trainable / made.parameters:.3%})"
    lines = [_title(base, config), f"{trained}; {made.regime}", "", f"Training, at its peak ({made.moment}):"]
    lines += [f"  {row.name:<22}{_gb(row.bytes)}  {row.note}".rstrip() for row in made.rows]
    lines.append(f"  {'total':<22}{_gb(made.total_bytes)}{_verdict(made.total_bytes, limit)}")
    if made.pageable:
        lines.append(f"  and {_gb(made.pageable).strip()} of optimizer states that the driver may move to the host")
    if work is not None:
        beside = "" if config.method == "full" else f", {work.share:.0%} of a full fine-tune's"
        lines += ["", f"Compute: {work.flops / GIGA:.1f} GFLOP a token in products with weights{beside}"]
    if instead:
        lines += ["", "With one change:"]
        lines += [f"  {_gb(each.plan.total_bytes)}  {each.change}" for each in instead[:SHOWN]]
    if limit is not None and made.total_bytes > limit:
        lines += ["", *_way_out(path, limit)]
    return [*lines, "", *_serving_text(served, limit)]


def _verdict(total: int, limit: int | None) -> str:
    if limit is None:
        return ""
    room = limit - total
    return f"  fits in {_gb(limit).strip()}" if room >= 0 else f"  {_gb(-room).strip()} more than {_gb(limit).strip()}"


def _way_out(path: Sequence["Suggestion"], limit: int) -> list[str]:
    fits = bool(path) and path[-1].plan.total_bytes <= limit
    opening = f"To fit in {_gb(limit).strip()}:" if fits else f"Nothing here fits in {_gb(limit).strip()}; nearest:"
    return [opening, *(f"  {_gb(each.plan.total_bytes)}  {each.change}" for each in path)]


def _serving_text(served: "ServingPlan", limit: int | None) -> list[str]:
    lines = [
        "Serving:",
        f"  {'base weights':<22}{_gb(served.base)}",
        f"  {'KV cache, a token':<22}{served.kv_per_token / 1024:7.0f} KiB",
        f"  {'KV cache, a request':<22}{_gb(served.kv_per_request)}  {served.length} tokens",
    ]
    if served.adapter is not None:
        lines.append(f"  {'an adapter':<22}{_gb(served.adapter, 3)}  at its true rank, in bf16")
    if served.adapters is not None and limit is not None:
        beside = f"beside {served.requests} requests and {_gb(served.reserve).strip()} of libraries"
        lines.append(f"  {served.adapters:,} adapters fit in {_gb(limit).strip()}, {beside}")
    return lines


def _gb(count: int, digits: int = 2) -> str:
    return f"{count / GB:8.{digits}f} GB"


def _as_json(
    base: str,
    made: "TrainingMemoryPlan",
    work: "Compute | None",
    limit: int | None,
    instead: Sequence["Suggestion"],
    path: Sequence["Suggestion"],
    served: "ServingPlan",
) -> dict[str, Any]:
    return {
        "base": base,
        "parameters": made.parameters,
        "trainable": made.trainable,
        "regime": made.regime,
        "peak": made.moment,
        "rows": [asdict(row) for row in made.rows],
        "total_bytes": made.total_bytes,
        "tensor_bytes": made.tensor_bytes,
        "pageable_bytes": made.pageable,
        "flops_per_token": None if work is None else work.flops,
        "share_of_full_flops": None if work is None else work.share,
        "limit_bytes": limit,
        "fits": None if limit is None else made.total_bytes <= limit,
        "instead": [_change(each) for each in instead],
        "to_fit": [_change(each) for each in path],
        "serving": asdict(served),
    }


def _change(each: "Suggestion") -> dict[str, Any]:
    return {"change": each.change, "total_bytes": each.plan.total_bytes}
