"""The tensors that an adapter's file must hold, and what to say about a file that holds others.

Owns PEFT's tensor names and the comparison; set equality, nothing less. Reads no files.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from adapters.errors import Fault, listed, quoted
from adapters.header import FILE, TensorSpec
from adapters.manifest import Graft
from adapters.targets import why_refused
from loader.shape import BaseShape

PREFIX = "base_model.model."
FACTOR_A, FACTOR_B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
DTYPES = ("F32", "F16", "BF16")

Shape = tuple[int, ...]

_ADAPTER_NAME = re.compile(r"\.(lora_[AB]\.[^.]+\.weight|lora_magnitude_vector\.[^.]+)$")
_GRAFT = re.compile(re.escape(PREFIX) + r"(.+)\.(lora_[AB]\.weight|lora_magnitude_vector)")


def expected_tensors(grafts: Iterable[Graft]) -> dict[str, Shape]:
    """Names as PEFT 0.21 writes them: `lora_A` is [rank, in], `lora_B` [out, rank], the magnitude of DoRA [out]."""
    expected: dict[str, Shape] = {}
    for graft in grafts:
        stem = f"{PREFIX}{graft.path}"
        expected[f"{stem}{FACTOR_A}"] = (graft.rank, graft.in_features)
        expected[f"{stem}{FACTOR_B}"] = (graft.out_features, graft.rank)
        if graft.dora:
            expected[f"{stem}{MAGNITUDE}"] = (graft.out_features,)
    return expected


def compare(
    expected: Mapping[str, Shape], found: Mapping[str, TensorSpec], trained_on: str | None, shape: BaseShape
) -> Iterator[Fault]:
    """How `found` differs from `expected`; missing tensors are grouped, and unexpected ones by their cause."""
    missing = [name for name in sorted(expected) if name not in found]
    if missing:
        problem = f"{len(missing)} of {len(expected)} tensors are missing: {listed(missing)}"
        yield Fault(FILE, problem, "Save the adapter again; the config's targets, layers and use_dora call for them")
    yield from _unexpected([name for name in sorted(found) if name not in expected], shape)
    for name, spec in sorted(found.items()):
        if name not in expected:
            continue
        if spec.dtype not in DTYPES:
            yield Fault(f"{FILE}: {name}", f"dtype {spec.dtype}, expected F32, F16 or BF16", "Convert it before saving")
        if spec.shape != expected[name]:
            problem = f"expected shape {list(expected[name])}, got {list(spec.shape)}"
            yield Fault(f"{FILE}: {name}", problem, _shape_fix(name, expected[name], spec.shape, trained_on, shape))


def _unexpected(names: Iterable[str], shape: BaseShape) -> Iterator[Fault]:
    causes: dict[tuple[str, str], list[str]] = {}
    for name in names:
        causes.setdefault(_cause(name, shape), []).append(name)
    for (problem, fix), members in causes.items():
        count = f"{len(members)} {'tensor' if len(members) == 1 else 'tensors'}"
        yield Fault(FILE, f"{count} {problem}: {listed(members)}", fix)


def _cause(name: str, shape: BaseShape) -> tuple[str, str]:
    if ".modules_to_save." in name or ".original_module." in name:
        return "of modules_to_save", "Train without modules_to_save; target those linear layers with LoRA instead"
    if ".lora_embedding_" in name:
        return "of an adapted embedding, which is not supported", "Train with target_modules that leave it out"
    if _ADAPTER_NAME.search(name) and not name.endswith(
        (".lora_A.weight", ".lora_B.weight", "magnitude_vector.weight")
    ):
        return "with an adapter's name inside", "Save with PEFT's save_pretrained, which leaves the name out"
    if ".lora_" not in name:
        return "that belong to the base, not to the adapter", (
            "Save with save_pretrained(..., save_embedding_layers=False), or remove them from the file"
        )
    if not name.startswith(PREFIX):
        return f"not named as PEFT names them ({quoted(PREFIX + '<module>.lora_A.weight')})", (
            "Save the PeftModel itself with save_pretrained, not a part of it"
        )
    return _cause_of_graft(name, shape)


def _cause_of_graft(name: str, shape: BaseShape) -> tuple[str, str]:
    match = _GRAFT.fullmatch(name)
    if match is None:
        return "not named as PEFT names them", "Save with PEFT's save_pretrained"
    path = match[1]
    reason = why_refused(path, shape)
    if reason is not None:
        return f"for modules that cannot carry an adapter ({reason})", "Train with target_modules that leave them out"
    if path not in shape.linears:
        problem = f"for modules that {quoted(shape.base_id)} does not have"
        return problem, f"Use an adapter that was trained on {quoted(shape.base_id)}"
    return "that the config does not call for", "Correct target_modules, layers_to_transform or use_dora"


def _shape_fix(name: str, expected: Shape, got: Shape, trained_on: str | None, shape: BaseShape) -> str:
    if len(got) == 2 and got == expected[::-1]:
        return "It is transposed; save the adapter again with PEFT's save_pretrained"
    rank_at = 0 if name.endswith("lora_A.weight") else 1
    if len(got) == len(expected) == 2 and got[1 - rank_at] == expected[1 - rank_at]:
        return f"Its rank is {got[rank_at]}, the config says {expected[rank_at]}: correct r or rank_pattern"
    origin = "" if trained_on is None else f", but this one was trained on {quoted(trained_on)}"
    return f"Use an adapter that was trained on {quoted(shape.base_id)}{origin}"
