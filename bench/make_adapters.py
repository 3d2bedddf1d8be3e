"""`rootstock bench adapters`: random LoRA adapters in PEFT's format, to measure with: their answers mean nothing.

Owns the files it writes. Works from the base's directory alone, so that it needs neither torch nor PEFT.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import orjson
import typer
from numpy.typing import NDArray
from safetensors.numpy import save_file

from bench import options
from bench.errors import BenchError
from bench.weight_shapes import Linear, linears

SCALE = 0.02
"""Standard deviation of `A` and `B`: small enough that logits stay finite, large enough that answers change."""


def write(base: Path, target: Path, *, count: int, rank: int, seed: int = 0, modules: Sequence[str] = ()) -> list[Path]:
    """Write `count` adapters of `rank` as `target/a0`, `target/a1`, …; returns those paths.

    They touch every linear of `base`, or those named in `modules`. The same arguments write the same bytes. Weights
    are float16. Raises BenchError for a module that the base lacks.
    """
    every = linears(base)
    if missing := set(modules) - {layer.module for layer in every}:
        there = ", ".join(sorted({layer.module for layer in every}))
        raise BenchError(f"The base has no linear {', '.join(sorted(missing))}. It has {there}.")
    layers = [layer for layer in every if not modules or layer.module in modules]
    paths = [target / f"a{index}" for index in range(count)]
    for index, path in enumerate(paths):
        path.mkdir(parents=True, exist_ok=True)
        (path / "adapter_config.json").write_bytes(_config(layers, rank))
        save_file(_tensors(layers, rank, np.random.default_rng([seed, index])), path / "adapter_model.safetensors")
    return paths


def _config(layers: list[Linear], rank: int) -> bytes:
    names = sorted({layer.module for layer in layers})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": names,
    }
    return orjson.dumps(config, option=orjson.OPT_INDENT_2)


def _tensors(layers: list[Linear], rank: int, generator: np.random.Generator) -> dict[str, NDArray[np.float16]]:
    tensors = {}
    for layer in layers:
        prefix = f"base_model.model.{layer.path}"
        tensors[f"{prefix}.lora_A.weight"] = _normal(generator, (rank, layer.in_features))
        tensors[f"{prefix}.lora_B.weight"] = _normal(generator, (layer.out_features, rank))
    return tensors


def _normal(generator: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float16]:
    return (generator.standard_normal(shape, dtype=np.float32) * SCALE).astype(np.float16)


def main(
    base: options.BaseFolder,
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", callback=options.writable, help="Folder that gets a0, a1 and so on.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Adapters to write.")] = 8,
    rank: options.Rank = 16,
    seed: options.Seed = 0,
) -> None:
    """Write random adapters for BASE into TARGET."""
    for path in write(base, target, count=count, rank=rank, seed=seed):
        typer.echo(path)
