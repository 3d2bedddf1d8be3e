"""The config that is stored: what `adapter_config.json` must say for PEFT to compute what we compute, and no more.

Owns that one document and the naming of dtypes. It is made from the grafts, so nothing a tenant wrote survives in it
but the base's name.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from adapters.manifest import Kind
from adapters.targets import Planned
from loader.dtypes import Dtype

_DTYPES: dict[str, Dtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def canonical_config(planned: Sequence[Planned], kind: Kind, base: str | None) -> bytes:
    """Targets are full paths; the commonest rank and alpha are the defaults, the others stand in the patterns."""
    ranks = {item.graft.path: item.graft.rank for item in planned}
    alphas = {item.graft.path: _number(item.alpha) for item in planned}
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": alpha,
        "alpha_pattern": {path: value for path, value in sorted(alphas.items()) if value != alpha},
        "lora_dropout": 0.0,
        "r": rank,
        "rank_pattern": {path: value for path, value in sorted(ranks.items()) if value != rank},
        "target_modules": sorted(ranks),
        "use_dora": kind in ("dora", "rsdora"),
        "use_rslora": kind in ("rslora", "rsdora"),
    }
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"


def manifest_dtype(dtypes: Iterable[str]) -> Dtype:
    """The narrowest dtype that holds every tensor exactly: a file that mixes dtypes counts as float32."""
    distinct = set(dtypes)
    return _DTYPES[distinct.pop()] if len(distinct) == 1 else "float32"


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _commonest(values: Iterable[int | float]) -> int | float:
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value))
