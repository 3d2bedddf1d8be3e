"""`rootstock bench base SHAPE TARGET`: a base of random weights, to measure sizes without their real weights.

Owns the shapes and the files. Writes a Llama as a Hugging Face directory, in bfloat16, with neither torch nor
transformers; the tokenizer's files are copied from another base.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file

from bench import launch, options, weight_shapes

STD = 0.02
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@dataclass(frozen=True, slots=True)
class ModelShape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head: int = 64


class ShapeName(StrEnum):
    """The widths and depth of Llama-3.1-8B, of Qwen2.5-0.5B and of SmolLM2-135M; tiny measures everything else."""

    EIGHT_B = "8b"
    HALF_B = "0.5b"
    SMOL = "135m"
    TINY = "tiny"


SHAPES = {
    ShapeName.EIGHT_B: ModelShape(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, head=128),
    ShapeName.HALF_B: ModelShape(hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864),
    ShapeName.SMOL: ModelShape(hidden=576, layers=30, heads=9, kv_heads=3, intermediate=1536),
    ShapeName.TINY: ModelShape(hidden=64, layers=2, heads=1, kv_heads=1, intermediate=128),
}


def write(shape: ModelShape, like: Path, target: Path, seed: int = 0) -> Path:
    """Write a base of `shape` to `target`, with the tokenizer of the base in `like` and its vocabulary's size.

    The embedding is the head too. The same arguments write the same bytes. Raises FileNotFoundError where `like` is
    not a base.
    """
    vocab = weight_shapes.vocab_size(like)
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        if (like / name).exists():
            shutil.copyfile(like / name, target / name)
    special = orjson.loads((like / "config.json").read_bytes())
    config = _config(shape, vocab) | {key: special.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (target / "config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
    sizes = dict(_sizes(shape, vocab))
    seeds = np.random.SeedSequence(seed).spawn(len(sizes))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets others run while it draws
        drawn = pool.map(_bfloat16, seeds, sizes.values())
        tensors = {name: (size, bits) for (name, size), bits in zip(sizes.items(), drawn, strict=True)}
    specs = {
        name: TensorSpec(dtype="bfloat16", shape=list(size), data_ptr=bits.ctypes.data, data_len=bits.nbytes)
        for name, (size, bits) in tensors.items()
    }
    serialize_file(specs, target / "model.safetensors", {"format": "pt"})
    return target


def _config(shape: ModelShape, vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "intermediate_size": shape.intermediate,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def _sizes(shape: ModelShape, vocab: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, queries, keys = shape.hidden, shape.heads * shape.head, shape.kv_heads * shape.head
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.mlp.gate_proj.weight", (shape.intermediate, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (shape.intermediate, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, shape.intermediate)


def _bfloat16(seed: np.random.SeedSequence, size: tuple[int, ...]) -> NDArray[np.uint16]:
    """Normal values, or ones for a norm, as the upper halves of float32's bits, which is what bfloat16 is."""
    values = (
        np.ones(size, np.float32) if len(size) == 1 else np.random.default_rng(seed).standard_normal(size, np.float32)
    )
    if len(size) > 1:
        values *= STD
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def main(
    shape: Annotated[
        ShapeName,
        typer.Argument(metavar="SHAPE", help="Widths and depth: 8b, 0.5b, 135m, or tiny to measure the rest."),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", callback=options.writable, help="Folder that the base is written to.")
    ],
    like: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Directory of the base whose tokenizer it gets; by default the embedded one's.",
        ),
    ] = None,
    seed: options.Seed = 0,
    work_dir: options.WorkDir = options.WORK_DIR,
) -> None:
    """Write a base of random weights: its speed is real, its answers mean nothing."""
    if like is not None and target.exists() and target.samefile(like):
        raise typer.BadParameter("It is the base of --like, which would be overwritten.", param_hint="TARGET")
    with ExitStack() as stack:
        if like is None:  # a server converts the embedded base when it starts
            like = stack.enter_context(launch.serve(work_dir / "embedded", [])).base
        if like is None:
            raise typer.BadParameter("The embedded base was not found. Name another.", param_hint="--like")
        typer.echo(write(SHAPES[shape], like, target, seed))
