"""What makes a directory a base: a config, safetensors, a tokenizer, and no code to trust.

Owns the checks made before anything is loaded. Reads JSON and file names only; imports no torch.
"""

import json
from pathlib import Path
from typing import Any, cast

from loader.errors import BaseNotFound, UnsafeWeights, UnsupportedBase

INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def check(path: Path) -> None:
    """Raise unless `path` is a complete Hugging Face directory with safetensors.

    Raises BaseNotFound for missing files, UnsafeWeights for pickles, UnsupportedBase for weights that
    were quantized by somebody else.
    """
    config = read_json(path / "config.json")
    weight_files(path)
    if not any((path / name).is_file() for name in TOKENIZERS):
        raise BaseNotFound(
            f"{path} has no tokenizer. Put the model's tokenizer.json and tokenizer_config.json beside config.json."
        )
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise UnsupportedBase(
            f"{path} holds weights that are quantized already ({method}). "
            "Take the unquantized checkpoint and start with --quantization nf4 or fp4."
        )


def weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of the base in `path`, sorted; every shard that the index names must be there."""
    index = path / INDEX
    if index.is_file():
        names = sorted(set(cast(dict[str, str], read_json(index).get("weight_map", {})).values()))
        unsafe = [name for name in names if Path(name).name != name]
        if unsafe:
            raise UnsafeWeights(f"{index} names a file outside its directory: {unsafe[0]!r}. Fetch the model again.")
    else:
        names = ["model.safetensors"]
    files = tuple(path / name for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if not missing and files:
        return files
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLED)
    if pickles and not any(path.glob("*.safetensors")):
        raise UnsafeWeights(
            f"{path} holds pickled weights only ({', '.join(pickles[:3])}). A pickle can run code when it is read, "
            "so it is never opened. Save the model with `model.save_pretrained(...)`, which writes safetensors."
        )
    lacking = ", ".join(missing[:5]) or "its weights"
    raise BaseNotFound(f"{path} lacks {lacking}. Fetch the model again, or finish the interrupted copy.")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises BaseNotFound if it is missing or is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BaseNotFound(
            f"{path} does not exist. A base is a directory with config.json, *.safetensors and a tokenizer."
        ) from error
    except ValueError as error:
        raise BaseNotFound(f"{path} is not valid JSON ({error}). Fetch the model again.") from error
    if not isinstance(value, dict):
        raise BaseNotFound(f"{path} is not a JSON object. Fetch the model again.")
    return value
