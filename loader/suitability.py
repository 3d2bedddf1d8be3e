"""Whether this engine can serve an architecture, told from its config and, after loading, from its modules.

Owns the refusals and the context length. Everything transformers runs as a causal decoder through its attention
interface is served; what keeps state that is not keys and values is not.
"""

from pathlib import Path
from typing import Any, cast

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from loader import directory
from loader.errors import UnsafeWeights, UnsupportedBase

ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention"})
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


def config_of(path: Path) -> PreTrainedConfig:
    """The config in `path` with transformers' defaults filled in. Raises UnsafeWeights or UnsupportedBase."""
    raw = directory.read_json(path / "config.json")
    try:
        config = cast(
            PreTrainedConfig, AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        )
    except (ValueError, KeyError, OSError) as error:
        if "auto_map" in raw:
            raise UnsafeWeights(
                f"The model type {raw.get('model_type')!r} needs Python code from its own directory (auto_map), "
                "which is never run. Use a model whose architecture transformers has."
            ) from error
        raise UnsupportedBase(f"transformers does not know the model in {path}: {error}") from error
    _check_config(config)
    return config


def _check_config(config: PreTrainedConfig) -> None:
    name = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        raise UnsupportedBase(f"{name!r} is no decoder-only language model. Use a causal language model.")
    if getattr(config, "vision_config", None) is not None or getattr(config, "audio_config", None) is not None:
        raise UnsupportedBase(f"{name!r} has vision or audio parts. Use its text-only checkpoint.")
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    text: Any = config.get_text_config()
    others = set(getattr(text, "layer_types", None) or ()) - ATTENTION_LAYERS
    if others or getattr(model, "_is_stateful", False):
        kinds = ", ".join(sorted(others)) or "recurrent layers"
        raise UnsupportedBase(f"{name!r} has layers that are not plain attention ({kinds}); they cannot be served.")
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedBase(f"transformers' {name!r} does not use the attention interface that the engine replaces.")
    if getattr(text, "kv_lora_rank", None):
        raise UnsupportedBase(f"{name!r} compresses keys and values (MLA), which the paged cache does not hold.")


def check_model(model: PreTrainedModel) -> None:
    """Raise UnsupportedBase if any attention layer of `model` looks ahead."""
    for path, module in model.named_modules():
        if getattr(module, "is_causal", True) is False:
            raise UnsupportedBase(f"{path} attends to later tokens too; only causal language models can be served.")


def max_model_len(config: PreTrainedConfig) -> int:
    """The longest sequence, in tokens, that the base can be served with.

    Rotary embeddings of a type that changes its frequencies once the longest sequence in the batch passes the
    trained length are kept below that length: otherwise a request's output would depend on its neighbours.
    """
    text: Any = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        raise UnsupportedBase(f"The config of {config.model_type!r} names no max_position_embeddings. Add it.")
    rope = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    for parameters in nested or [rope]:
        if parameters.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            trained = parameters.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            limit = min(limit, trained or limit)
    return limit
