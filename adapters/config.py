"""PEFT's `adapter_config.json`, read against an allow-list.

Owns what each field may hold and what the meaningful ones mean. A field that changes the result and is not supported
is refused by name; a field that never changes it (a training setting, a provenance note) is checked and left out.
Knows neither the base nor the weights. Field names and defaults are those of PEFT 0.21's LoraConfig.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from adapters.errors import Fault, quoted
from adapters.fields import Fields, refuse_all
from adapters.manifest import Kind
from adapters.strict_json import Json, StrictJSONError, parse

FILE = "adapter_config.json"
MAX_BYTES = 1 << 20
MAX_RANK = 256
MAX_ALPHA = 1e6

# The fields without which the grafts cannot be worked out; any other fault leaves the weights comparable.
_NEEDED = frozenset(
    {
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "use_rslora",
        "use_dora",
    }
)
# These set only the adapter's own first weights. The others (pissa, olora, loftq, eva, corda, ...) change the base
# that the adapter belongs to, or need calibration data to be repeated.
_HARMLESS_INITS: tuple[Json, ...] = (True, False, "gaussian", "orthogonal")

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_PATTERN_KEY = re.compile(r"\^?[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_TRANSFORMERS_MODULE = re.compile(r"transformers(\.[A-Za-z_][A-Za-z0-9_]*)*")
_LIST_NAMES = 'List literal module names, such as ["q_proj", "v_proj"]'
_REMOVE = "Remove the field, or train without it"
_CONVERT = (
    "Convert it to plain LoRA while saving: save_pretrained(..., path_initial_model_for_weight_conversion=...), "
    "or train with init_lora_weights=true"
)

# Fields that name a method which is not served, with the values at which PEFT ignores them.
_NEUTRAL: Mapping[str, tuple[tuple[Json, ...], str]] = {
    "alora_invocation_tokens": ((None,), _REMOVE),
    "arrow_config": ((None,), _REMOVE),
    "bias": (("none",), 'Train with bias="none"'),
    "corda_config": ((None,), _CONVERT),
    "ensure_weight_tying": ((False,), _REMOVE),
    "eva_config": ((None,), _CONVERT),
    "fan_in_fan_out": ((False,), "Set it to false: the base has no transposed linear layers"),
    "kasa_config": ((None,), _REMOVE),
    "layer_replication": ((None,), _REMOVE),
    "loftq_config": ((None, {}), _CONVERT),
    "lora_bias": ((False,), "Train with lora_bias=false"),
    "lora_ga_config": ((None,), _CONVERT),
    "megatron_config": ((None,), _REMOVE),
    "megatron_core": ((None, "megatron.core"), _REMOVE),
    "modules_to_save": ((None, []), "Train without modules_to_save; target those linear layers with LoRA instead"),
    "monteclora_config": ((None,), _REMOVE),
    "target_parameters": ((None, []), "Train with target_modules instead"),
    "trainable_token_indices": ((None, [], {}), _REMOVE),
    "use_bdlora": ((None, False), _REMOVE),
    "use_qalora": ((False,), "Train with use_qalora=false"),
    "velora_config": ((None,), _REMOVE),
}
_MEANINGFUL = frozenset(
    {
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "use_rslora",
        "use_dora",
        "init_lora_weights",
        "base_model_name_or_path",
        "auto_mapping",
        "lora_dropout",
        "inference_mode",
        "peft_version",
        "revision",
        "qalora_group_size",
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The fields that decide the result. `targets` is None for "all-linear"; `layers` is None for every layer.

    The patterns keep the file's order: as in PEFT, the first key that matches a module wins.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: frozenset[str] | None
    exclude: frozenset[str]
    layers: frozenset[int] | None
    layers_pattern: tuple[str, ...]
    rslora: bool
    dora: bool
    base: str | None

    @property
    def kind(self) -> Kind:
        if self.dora:
            return "rsdora" if self.rslora else "dora"
        return "rslora" if self.rslora else "lora"


def read_config(raw: bytes) -> tuple[Settings | None, tuple[Fault, ...]]:
    """The settings, or None when a field that they need is broken, and every fault of the file."""
    try:
        value = parse(raw, MAX_BYTES)
    except StrictJSONError as error:
        return None, (Fault(FILE, str(error), "Upload the file as PEFT's save_pretrained wrote it"),)
    if not isinstance(value, dict):
        return None, (Fault(FILE, "expected a JSON object", "Upload the file as PEFT's save_pretrained wrote it"),)
    fields = Fields(FILE, value)
    settings = _settings(fields)
    return settings, tuple(fields.faults)


def _settings(fields: Fields) -> Settings | None:
    """Every reader runs, whatever the others found, so that all faults come at once."""
    _check_known(fields)
    _check_method(fields)
    _check_without_effect(fields)
    rank, alpha = fields.integer("r", 1, MAX_RANK), fields.number("lora_alpha", 0, MAX_ALPHA)
    rank_pattern = fields.integers_by_name("rank_pattern", 1, MAX_RANK)
    alpha_pattern = fields.numbers_by_name("alpha_pattern", 0, MAX_ALPHA)
    _check_pattern_keys(fields)
    targets, exclude = _targets(fields), _exclude(fields)
    layers, layers_pattern = _layers(fields), _layers_pattern(fields)
    rslora, dora, base = fields.flag("use_rslora"), fields.flag("use_dora"), _base(fields)
    if rank is None or alpha is None or fields.broken & _NEEDED:
        return None
    return Settings(
        rank, alpha, rank_pattern, alpha_pattern, targets, exclude, layers, layers_pattern, rslora, dora, base
    )


def _check_known(fields: Fields) -> None:
    unknown = sorted(fields.values.keys() - _MEANINGFUL - _NEUTRAL.keys())
    for field in unknown:
        fields.refuse(field, "unsupported: not a field of PEFT's LoRA config that is known here", _REMOVE)
    for field, (neutral, fix) in _NEUTRAL.items():
        fields.one_of(field, neutral, fix)


def _check_method(fields: Fields) -> None:
    if fields.values.get("peft_type") != "LORA":
        got = quoted(fields.values.get("peft_type"))
        fields.refuse("peft_type", f'expected "LORA", got {got}', "Train a LoRA, rsLoRA or DoRA adapter")
    fields.one_of("task_type", (None, "CAUSAL_LM"), 'Train with task_type="CAUSAL_LM"')
    fields.one_of("init_lora_weights", _HARMLESS_INITS, _CONVERT)


def _check_without_effect(fields: Fields) -> None:
    """Training settings and provenance: checked so that nothing odd hides there, then left out."""
    if "lora_dropout" in fields.values and fields.values["lora_dropout"] != 0:
        fields.number("lora_dropout", 0, 1)
    if "qalora_group_size" in fields.values:
        fields.integer("qalora_group_size", 1, 1 << 20)
    fields.flag("inference_mode")
    fields.text("peft_version")
    fields.text("revision")
    mapping = fields.values.get("auto_mapping")
    if mapping is not None and not _names_a_transformers_class(mapping):
        fields.refuse("auto_mapping", "unsupported: it names code to import", "Remove the field")


def _names_a_transformers_class(mapping: Json) -> bool:
    """What PEFT writes when no task_type was given. It is never imported here."""
    if not isinstance(mapping, dict) or mapping.keys() != {"base_model_class", "parent_library"}:
        return False
    name, library = mapping["base_model_class"], mapping["parent_library"]
    if not isinstance(name, str) or not isinstance(library, str):
        return False
    return name.isascii() and name.isidentifier() and _TRANSFORMERS_MODULE.fullmatch(library) is not None


def _check_pattern_keys(fields: Fields) -> None:
    for field in ("rank_pattern", "alpha_pattern"):
        value = fields.values.get(field)
        keys = list(value) if isinstance(value, dict) else []
        bad = [key for key in keys if not _PATTERN_KEY.fullmatch(key)]
        refuse_all(fields, field, bad, "regular expressions are not supported", "Use literal module names or paths")


def _targets(fields: Fields) -> frozenset[str] | None:
    value = fields.values.get("target_modules")
    if isinstance(value, str):
        if value.lower() == "all-linear":
            return None
        fields.refuse("target_modules", f"expected a list of names, got the pattern {quoted(value)}", _LIST_NAMES)
        return frozenset()
    names = _literal_names(fields, "target_modules")
    if not names and "target_modules" not in fields.broken:
        fields.refuse("target_modules", "missing or empty, expected a list of names", _LIST_NAMES)
    return names


def _exclude(fields: Fields) -> frozenset[str]:
    if isinstance(fields.values.get("exclude_modules"), str):
        fields.refuse("exclude_modules", "expected a list of names, got a pattern", _LIST_NAMES)
        return frozenset()
    return _literal_names(fields, "exclude_modules")


def _literal_names(fields: Fields, field: str) -> frozenset[str]:
    names = fields.strings(field)
    bad = [name for name in names if not _NAME.fullmatch(name)]
    refuse_all(fields, field, bad, "expected literal module names, got", _LIST_NAMES)
    return frozenset(names)


def _layers(fields: Fields) -> frozenset[int] | None:
    value = fields.values.get("layers_to_transform")
    if value is None or value == []:
        return None
    indices = value if isinstance(value, list) else [value]
    numbers = [index for index in indices if isinstance(index, int) and not isinstance(index, bool) and index >= 0]
    if len(numbers) < len(indices):
        problem = f"expected a layer index or a list of them, got {quoted(value)}"
        fields.refuse("layers_to_transform", problem, "Count layers from 0")
    elif isinstance(fields.values.get("target_modules"), str):
        problem = "it cannot be used with target_modules as a string"
        fields.refuse("layers_to_transform", problem, _LIST_NAMES)
    return frozenset(numbers)


def _layers_pattern(fields: Fields) -> tuple[str, ...]:
    value = fields.values.get("layers_pattern")
    if value is None or value == "" or value == []:
        return ()
    names = [value] if isinstance(value, str) else fields.strings("layers_pattern")
    bad = [name for name in names if not _NAME.fullmatch(name)]
    refuse_all(fields, "layers_pattern", bad, "expected literal module names, got", "Use a name such as 'layers'")
    if fields.values.get("layers_to_transform") is None:
        fields.refuse("layers_pattern", "it needs layers_to_transform", "Set layers_to_transform, or remove the field")
    return tuple(names)


def _base(fields: Fields) -> str | None:
    base = fields.text("base_model_name_or_path")
    if base is not None and "://" in base:
        fields.refuse("base_model_name_or_path", "unsupported: it is a URL", "Write the base's name")
        return None
    return base
