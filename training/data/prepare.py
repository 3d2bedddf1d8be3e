"""From a config to what is trained on and measured on, or to every line that stands in the way.

Owns the order of the checks, the split and the objective's choice of formats. Imports no torch.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.config import Data, Format, Objective, TrainConfig
from training.data import jsonl
from training.data.encode import Encoder, Tokenizer
from training.data.examples import Prepared, Split
from training.data.make import Maker
from training.data.rows import ALLOWED, KEYS, Row, build, detect, faults_of
from training.errors import ConfigInvalid, DataInvalid
from training.report import DataUsed


@dataclass(frozen=True, slots=True)
class Numbered:
    """A checked example with the line it came from."""

    line: int
    row: Row


@dataclass(frozen=True, slots=True)
class Side:
    """One split before it is tokenized."""

    path: Path
    label: str
    sha256: str
    rows: tuple[Numbered, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """Data that is well-formed, split, and free of what is both learned and measured."""

    train: Side
    heldout: Side
    format: Format
    notes: tuple[str, ...]


def prepare(config: TrainConfig, tokenizer: Tokenizer) -> Prepared:
    """Read, check, split and tokenize. Raises ConfigInvalid, or DataInvalid with every line's fault."""
    return encode(config, check(config), tokenizer)


def check(config: TrainConfig) -> Checked:
    """All that needs no tokenizer: so that a bad line is told before a base is looked for."""
    data, objective = config.data, config.objective
    train, format, faults = _read(data.train, data.format, objective)
    heldout: Side | None = None
    if data.heldout is not None:
        heldout, _, more = _read(data.heldout, format or data.format, objective)
        faults += more
    if faults or format is None:
        raise DataInvalid(faults)
    _check_loss(data, format, objective)
    notes = tuple(_repeated(train))
    if heldout is None:
        train, heldout = _share(train, data.heldout_share, config.steps.seed)
    elif faults := list(_in_both(train, heldout)):
        raise DataInvalid(faults)
    return Checked(train, heldout, format, (*notes, *_shared_prompts(train, heldout, objective)))


def encode(config: TrainConfig, checked: Checked, tokenizer: Tokenizer) -> Prepared:
    """The tokens of checked data. Raises ConfigInvalid, or DataInvalid with every fault that tokens bring to light."""
    maker = Maker(config, checked.format, Encoder(tokenizer))
    train, faults = _encoded(maker, checked.train)
    heldout, more = _encoded(maker, checked.heldout)
    if faults or more:
        raise DataInvalid([*faults, *more])
    notes = (*checked.notes, *maker.notes(), *_beyond(tokenizer.model_max_length, train, heldout))
    return Prepared(train, heldout, checked.format, notes)


def _beyond(limit: int, *splits: Split) -> Iterator[str]:
    """Not an error: positions beyond what a base was trained for are computed, only badly."""
    if over := sum(example.longest > limit for split in splits for example in split.examples):
        yield (
            f"{over} examples are longer than {limit} tokens, which the tokenizer names as the base's limit. "
            f"Set data.max_tokens to {limit}."
        )


def _encoded(maker: Maker, side: Side) -> tuple[Split, list[str]]:
    made = maker.make([one.row for one in side.rows])
    faults = [f"{side.path}:{one.line}: {each.fault}" for one, each in zip(side.rows, made, strict=True) if each.fault]
    examples = tuple(each.example for each in made if each.example is not None)
    used = DataUsed(
        path=side.label,
        sha256=side.sha256,
        examples=len(examples),
        tokens=sum(example.tokens for example in examples),
        truncated=sum(each.cut for each in made),
    )
    return Split(examples, used), faults


def _read(path: Path, wanted: Format | str, objective: Objective) -> tuple[Side, Format | None, list[str]]:
    """A file's examples, its format, and what is wrong with it."""
    lines = jsonl.read(path)
    faults = list(lines.faults)
    format, first = _format(lines, wanted)
    if lines.lines and format is None:
        known = "; ".join(" and ".join(keys) for keys in KEYS.values())
        faults.append(f"{path}:{lines.lines[0].number}: no known format. Its keys should be one of: {known}.")
    if format is None:
        return Side(path, str(path), lines.sha256, ()), None, faults
    if format not in ALLOWED[objective]:
        allowed = " or ".join(ALLOWED[objective])
        where = f"{path}:{first}" if first else str(path)
        faults.append(f"{where}: its format is {format}, and objective: {objective} learns from {allowed}.")
        return Side(path, str(path), lines.sha256, ()), format, faults
    rows = []
    for line in lines.lines:
        found = detect(line.value)
        if found not in (None, format, "prompts"):  # a lone prompt misses its answer, which is told as such
            why = f"like line {first}" if wanted == "auto" else "as data.format says"
            faults.append(f"{path}:{line.number}: {found} where {format} was expected, {why}. Keep one format a file.")
            continue
        wrong = [
            f"{path}:{line.number}: {fault}" for fault in faults_of(line.value, format, answered=objective == "sft")
        ]
        faults += wrong
        if not wrong:
            rows.append(Numbered(line.number, build(line.value, format)))
    return Side(path, str(path), lines.sha256, tuple(rows)), format, faults


def _format(lines: jsonl.Lines, wanted: Format | str) -> tuple[Format | None, int]:
    """The format that is asked for, or that the first object with known keys has, and that object's line."""
    for known in KEYS:
        if wanted == known:
            return known, 0
    detected = ((detect(line.value), line.number) for line in lines.lines)
    return next(((format, number) for format, number in detected if format is not None), (None, 0))


def _check_loss(data: Data, format: Format, objective: Objective) -> None:
    if objective != "sft" and data.loss_on != "auto":
        fault = f"data.loss_on: {data.loss_on} is for objective: sft; {objective} scores whole answers. Remove it."
    elif format == "text" and data.loss_on in ("completion", "assistant"):
        fault = f"data.loss_on: {data.loss_on} needs answers, and the data is plain text. Set it to all or auto."
    elif format == "prompt_completion" and data.loss_on == "assistant":
        fault = "data.loss_on: assistant needs chats, and the data is prompts and completions. Set it to completion."
    else:
        return
    raise ConfigInvalid("The config", [fault])


def _share(train: Side, share: float, seed: int) -> tuple[Side, Side]:
    """Hold out a share, chosen by each example's own text and the seed: the same whatever the order of the lines.

    Examples that repeat go to the same side together. At least one is held out, unless the share is 0.
    """
    if share == 0 or len(train.rows) < 2:
        return train, Side(train.path, f"{train.path} (nothing held out)", train.sha256, ())
    keys = [_key(one.row) for one in train.rows]
    counted = Counter(keys)
    order = sorted(counted, key=lambda key: hashlib.sha256(seed.to_bytes(8, "big", signed=True) + key).digest())
    wanted, chosen, taken = max(1, round(share * len(keys))), set[bytes](), 0
    for key in order[:-1]:
        if taken >= wanted:
            break
        chosen.add(key)
        taken += counted[key]
    sides = [
        tuple(one for one, key in zip(train.rows, keys, strict=True) if (key in chosen) is held)
        for held in (False, True)
    ]
    label = f"{train.path} (held-out share {share:g}, seed {seed})"
    return Side(train.path, train.label, train.sha256, sides[0]), Side(train.path, label, train.sha256, sides[1])


def _key(row: Row) -> bytes:
    return hashlib.sha256(repr((row.prompt, row.answers)).encode()).digest()


def _in_both(train: Side, heldout: Side) -> Iterator[str]:
    """An error rather than a warning: a score on what was learned by heart says nothing, and looks like success."""
    first = {_key(one.row): one.line for one in reversed(train.rows)}
    for one in heldout.rows:
        if (line := first.get(_key(one.row))) is not None:
            yield (
                f"{heldout.path}:{one.line}: it is also in {train.path}:{line}. A held-out example must not be trained "
                "on; remove one of the two."
            )


def _repeated(side: Side) -> Iterator[str]:
    seen = Counter(_key(one.row) for one in side.rows)
    if repeats := len(side.rows) - len(seen):
        yield f"{repeats} of {len(side.rows)} lines in {side.path} repeat an earlier one; they weigh more in training."


def _shared_prompts(train: Side, heldout: Side, objective: Objective) -> Iterator[str]:
    """Not an error: several answers to one prompt are ordinary data, though they make held-out figures flatter."""
    known = {one.row.prompt for one in train.rows if one.row.prompt}
    shared = sum(one.row.prompt in known for one in heldout.rows)
    if shared:
        yield f"{shared} of {len(heldout.rows)} held-out prompts are also in the training data, with other answers."
