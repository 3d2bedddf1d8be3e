"""Which linears of a base a config grafts onto, at what rank and alpha.

Owns PEFT's matching rules (`check_target_module_exists` and `get_pattern_key` of PEFT 0.21), for literal names.
Knows no weights: what it derives is what the weights must then hold, no more and no less.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from adapters.config import FILE, Settings
from adapters.errors import Fault, listed, quoted
from adapters.manifest import Graft
from loader.shape import BaseShape, LinearShape

MAX_EXPLAINED = 100
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Planned:
    """A graft and the alpha that its scaling came from."""

    graft: Graft
    alpha: float


def derive(settings: Settings, shape: BaseShape) -> tuple[tuple[Planned, ...], tuple[Fault, ...]]:
    """The grafts sorted by path, and the faults of targets and layers that the base does not have."""
    planned = tuple(_plan(settings, shape.linears[path]) for path in sorted(_chosen(settings, shape)))
    faults = [*_layer_faults(settings, shape), *_target_faults(settings, shape)]
    if not planned and not faults:
        fix = "Check exclude_modules, layers_to_transform and layers_pattern"
        faults.append(Fault(f"{FILE}: target_modules", "no linear layer of the base is left to adapt", fix))
    return planned, tuple(faults)


def why_refused(path: str, shape: BaseShape) -> str | None:
    """The base's reason for not taking an adapter at `path`, if it gave one."""
    return next((why for glob, why in shape.refused.items() if path == glob or fnmatchcase(path, glob)), None)


def _plan(settings: Settings, linear: LinearShape) -> Planned:
    rank = _lookup(settings.rank_pattern, linear.path, settings.rank)
    alpha = _lookup(settings.alpha_pattern, linear.path, settings.alpha)
    scaling = alpha / math.sqrt(rank) if settings.rslora else alpha / rank
    graft = Graft(linear.path, linear.in_features, linear.out_features, rank, scaling, settings.dora)
    return Planned(graft, alpha)


def _lookup(pattern: Mapping[str, T], path: str, default: T) -> T:
    """The value of the first key, in the file's order, that names `path` or the end of it; `^` ties it to the whole."""
    matching = {*_suffixes(path), f"^{path}"} & pattern.keys()
    return pattern[next(key for key in pattern if key in matching)] if matching else default


def _chosen(settings: Settings, shape: BaseShape) -> Iterator[str]:
    for path in shape.linears:
        if settings.exclude.isdisjoint(_suffixes(path)) and _is_target(settings, path):
            yield path


def _is_target(settings: Settings, path: str) -> bool:
    if settings.targets is None:
        # As PEFT's "all-linear", which leaves the output head out; a head is the only linear at the top level.
        return "." in path
    if path in settings.targets:
        # A full path is taken at its word, without regard to layers_to_transform.
        return True
    if settings.targets.isdisjoint(_suffixes(path)):
        return False
    return settings.layers is None or _layer_index(path, settings.layers_pattern) in settings.layers


def _layer_index(path: str, patterns: tuple[str, ...]) -> int | None:
    """The first number inside the path that follows a container's name: any name, or the first of `patterns` found."""
    parts = path.split(".")
    numbered = [at for at in range(1, len(parts) - 1) if parts[at].isdecimal()]
    for pattern in patterns:
        for at in numbered:
            if ".".join(parts[:at]) == pattern or ".".join(parts[:at]).endswith(f".{pattern}"):
                return int(parts[at])
    if patterns:
        return None
    return next((int(parts[at]) for at in numbered if at >= 2), None)


def _suffixes(path: str) -> set[str]:
    """The path and what is left of it after each dot: the names by which PEFT's configs may call it."""
    parts = path.split(".")
    return {".".join(parts[at:]) for at in range(len(parts))}


def _layer_faults(settings: Settings, shape: BaseShape) -> Iterator[Fault]:
    beyond = sorted(layer for layer in settings.layers or () if layer >= shape.num_layers)
    if beyond:
        problem = f"{quoted(shape.base_id)} has layers 0 to {shape.num_layers - 1}, got {listed(map(str, beyond))}"
        yield Fault(f"{FILE}: layers_to_transform", problem, _other_base(settings, shape))


def _target_faults(settings: Settings, shape: BaseShape) -> Iterator[Fault]:
    known = set().union(*(_suffixes(path) for path in shape.linears))
    unknown = sorted((settings.targets or frozenset()) - known)
    explained = {name: _reason(name, shape) for name in unknown[:MAX_EXPLAINED]}
    for name, reason in explained.items():
        if reason is not None:
            fix = "Train with target_modules that leave it out"
            yield Fault(f"{FILE}: target_modules", f"{quoted(name)} cannot carry an adapter: {reason}", fix)
    missing = [name for name in unknown if explained.get(name) is None]
    if missing:
        have = ", ".join(sorted({linear.name for linear in shape.linears.values()}))
        problem = f"{quoted(shape.base_id)} has no linear layer called {listed(missing)}; it has {have}"
        yield Fault(f"{FILE}: target_modules", problem, _other_base(settings, shape))


def _reason(name: str, shape: BaseShape) -> str | None:
    """A refused path may be a glob; a name fits it when it fits the end of it."""
    depth = name.count(".") + 1
    for path, why in shape.refused.items():
        if fnmatchcase(name, ".".join(path.split(".")[-depth:])):
            return why
    return None


def _other_base(settings: Settings, shape: BaseShape) -> str:
    if settings.base is None:
        return f"Use an adapter that was trained on {quoted(shape.base_id)}"
    return f"The adapter was trained on {quoted(settings.base)}, this server has {quoted(shape.base_id)}: use that base"
