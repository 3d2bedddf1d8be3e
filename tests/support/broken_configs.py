"""Configs that must be refused, by the number of their case, as changes to one that is fine. The tables are data."""

from typing import Any

Changes = list[tuple[str, Any]]
REGEX = "([a-z0-9_.]+)+!"

C28: Changes = [
    *(("r", bad) for bad in (0, -4, 257, 2_000_000, "8", True, 8.5, None)),
    *(("rank_pattern", bad) for bad in ({"q_proj": 0}, {"q_proj": True}, ["q_proj"])),
]
C29: Changes = [
    *(("lora_alpha", bad) for bad in (0, -1, 1e300, "8", True, None)),
    *(("alpha_pattern", bad) for bad in ({"q_proj": -1}, {"q_proj": "4"})),
]
C30: Changes = [
    ("init_lora_weights", bad) for bad in ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "eva", "lora_ga", 1)
]
C31: Changes = [
    *(("target_modules", bad) for bad in ([], None, REGEX, ".*q_proj", ["q.*"], [3], {"a": 1}, [""])),
    *(("exclude_modules", bad) for bad in (".*", ["(a+)+"], 3)),
    ("layers_pattern", REGEX),
    ("rank_pattern", {REGEX: 4}),
    ("alpha_pattern", {REGEX: 4}),
    ("alpha_pattern", {".*": 4}),
]
C32_VALUES: Changes = [
    *(("layers_to_transform", bad) for bad in (-1, [0, "1"], True, 1.0, "0", 2, [0, 99])),
    ("use_dora", 1),
    ("use_rslora", "true"),
    ("lora_dropout", 2.0),
    ("layers_pattern", "layers"),
]
"""Of fields that are served."""

C32: Changes = [
    ("bias", "all"),
    ("bias", "lora_only"),
    ("lora_bias", True),
    ("fan_in_fan_out", True),
    ("modules_to_save", ["lm_head"]),
    ("layer_replication", [[0, 2], [1, 2]]),
    ("trainable_token_indices", [1]),
    ("target_parameters", ["experts.gate_up_proj"]),
    ("megatron_config", {}),
    ("loftq_config", {"loftq_bits": 4}),
    ("eva_config", {}),
    ("lora_ga_config", {}),
    ("alora_invocation_tokens", [1]),
    ("use_qalora", True),
    ("use_qalora", 0),
    ("use_bdlora", {"nblocks": 2}),
    ("arrow_config", {"top_k": 2}),
    ("kasa_config", {}),
    ("monteclora_config", {}),
    ("velora_config", {}),
    ("ensure_weight_tying", True),
    ("chat_template", "{{ x }}"),
]
C33: Changes = [
    *(("peft_type", bad) for bad in ("PREFIX_TUNING", "EVIL", None, 3)),
    *(("task_type", bad) for bad in ("SEQ_CLS", "SEQ_2_SEQ_LM", "causal_lm")),
]
C35: Changes = [
    *(("auto_mapping", bad) for bad in ({"base_model_class": "x", "parent_library": "os"}, {}, "os", {"a": "b"})),
    ("auto_mapping", {"base_model_class": "x", "parent_library": "transformersx.evil"}),
    ("megatron_core", "evil.module"),
    ("corda_config", {"cache_file": "/etc/passwd"}),
    ("auto_map", {"AutoModel": "evil.py"}),
    ("base_model_name_or_path", "https://example.com/base"),
    ("base_model_name_or_path", "a\x1b[31m"),
    ("base_model_name_or_path", 3),
]

C36: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "line 1 column 1"),
    "array": (b"[]", "expected a JSON object"),
    "mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "utf16": ("{}".encode("utf-16"), "byte order mark"),
    "not utf8": (b'{"a": "\xff"}', "not UTF-8"),
    "duplicate": (b'{"r": 4, "r": 8}', "'r' occurs twice"),
    "nested duplicate": (b'{"rank_pattern": {"q": 4, "q": 8}}', "'q' occurs twice"),
    "nan": (b'{"lora_alpha": NaN}', "NaN is not JSON"),
    "infinity": (b'{"lora_alpha": -Infinity}', "-Infinity is not JSON"),
    "overflow": (b'{"lora_alpha": 1e400}', "out of range"),
    "long integer": (b'{"r": ' + b"1" * 5000 + b"}", "out of range"),
    "deep": (b"[" * 10_000 + b"]" * 10_000, "nested deeper"),
    "large": (b" " * (1 << 20) + b"{}", "at most 1048576"),
    "truncated": (b'{"r": 4', "line 1"),
    "trailing": (b"{} {}", "Extra data"),
}
