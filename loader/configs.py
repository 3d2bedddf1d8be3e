"""From `--base` to a config.json, without the weights: for whoever only needs the shape.

Owns the presets and the search. Never converts, never downloads; imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader import directory, gguf
from loader.errors import BaseNotFound
from loader.source import EMBEDDED, HUB_ID

PRESETS = Path(__file__).parent / "presets"
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Config:
    """A base's config by the name that clients would see; `values` is what its config.json holds."""

    id: str
    values: Mapping[str, Any]


def preset_names() -> tuple[str, ...]:
    """The shapes that ship with the package."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.json")))


def read(base: str) -> Config:
    """The config of `base`: a directory, the name of a preset, "embedded", or a hub id in the local cache.

    Raises BaseNotFound with the names that would do.
    """
    path = Path(base).expanduser()
    if path.is_dir():
        return Config(path.resolve().name, directory.read_json(path / CONFIG))
    name = gguf.EMBEDDED_ID if base == EMBEDDED else base
    if name in preset_names():
        return Config(name, directory.read_json(PRESETS / f"{name}.json"))
    if path.suffix.lower() == ".gguf":
        fix = "Serve it once and give the directory it was converted to, or give the model's own directory."
        raise BaseNotFound(f"{path} is a GGUF file, which has no config.json. {fix}")
    cached = _cached(base) if HUB_ID.fullmatch(base) else None
    if cached is None:
        raise BaseNotFound(
            f"{base!r} is no directory, no preset and not in the local hub cache. Give --base embedded, a directory "
            f"with a config.json, an id that was downloaded before, or one of {', '.join(preset_names())}."
        )
    return Config(base, directory.read_json(cached))


def _cached(repo: str) -> Path | None:
    # Half a second to import, which the presets and directories do without.
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, CONFIG)
    return Path(found) if isinstance(found, str) else None
