"""From the data files of a config to tokenized training and held-out splits, or to the faults of every bad line.

Owns the order of the checks, the splitting, and which formats an objective accepts. Imports no torch.
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
from training.data.example_builder import ExampleBuilder
from training.data.rows import ALLOWED, KEYS, Row, parse_row, detect, faults_of
from training.errors import ConfigInvalid, DataInvalid
from training.report import DataUsed


@dataclass(frozen=True, slots=True)
class NumberedRow:
    """A checked example with the number of its line in the file."""

    line: int
    row: Row


@dataclass(frozen=True, slots=True)
class RawSplit:
    """One split before it is tokenized. `label` names it in the report; `sha256` is the file's."""

    path: Path
    label: str
    sha256: str
    rows: tuple[NumberedRow, ...]


@dataclass(frozen=True, slots=True)
class CheckedData:
    """Well-formed data, split so that no example is in both splits."""

    train: RawSplit
    heldout: RawSplit
    format: Format
    notes: tuple[str, ...]


def prepare(config: TrainConfig, tokenizer: Tokenizer) -> Prepared:
    """Read, check, split and tokenize. Raises ConfigInvalid, or DataInvalid with every line's fault."""
    return encode(config, check(config), tokenizer)


def check(config: TrainConfig) -> CheckedData:
    """Read, check and split, without a tokenizer: bad lines are reported before a base is looked for.

    Raises as `prepare`.
    """
    data, objective = config.data, config.objective
    train, format, faults = _read(data.train, data.format, objective)
    heldout: RawSplit | None = None
    if data.heldout is not None:
        heldout, _, more = _read(data.heldout, format or data.format, objective)
        faults += more
    if faults or format is None:
        raise DataInvalid(faults)
    _check_loss_on(data, format, objective)
    notes = tuple(_repeat_notes(train))
    if heldout is None:
        train, heldout = _split_off(train, data.heldout_share, config.steps.seed)
    elif faults := list(_leaks(train, heldout)):
        raise DataInvalid(faults)
    return CheckedData(train, heldout, format, (*notes, *_shared_prompt_notes(train, heldout, objective)))


def encode(config: TrainConfig, checked: CheckedData, tokenizer: Tokenizer) -> Prepared:
    """Tokenize checked data. Raises ConfigInvalid, or DataInvalid with every fault that only tokens reveal."""
    builder = ExampleBuilder(config, checked.format, Encoder(tokenizer))
    train, faults = _encode_split(builder, checked.train)
    heldout, more = _encode_split(builder, checked.heldout)
    if faults or more:
        raise DataInvalid([*faults, *more])
    notes = (*checked.notes, *builder.notes(), *_too_long_notes(tokenizer.model_max_length, train, heldout))
    return Prepared(train, heldout, checked.format, notes)


def _too_long_notes(limit: int, *splits: Split) -> Iterator[str]:
    """A note, not an error: a base computes positions beyond those it was trained for, only badly."""
    if over := sum(example.longest > limit for split in splits for example in split.examples):
        yield (
            f"{over} examples are longer than {limit} tokens, which the tokenizer names as the base's limit. "
            f"Set data.max_tokens to {limit}."
        )


def _encode_split(builder: ExampleBuilder, split: RawSplit) -> tuple[Split, list[str]]:
    results = builder.build([numbered.row for numbered in split.rows])
    faults = [
        f"{split.path}:{numbered.line}: {result.fault}"
        for numbered, result in zip(split.rows, results, strict=True)
        if result.fault
    ]
    examples = tuple(result.example for result in results if result.example is not None)
    used = DataUsed(
        path=split.label,
        sha256=split.sha256,
        examples=len(examples),
        tokens=sum(example.tokens for example in examples),
        truncated=sum(result.cut for result in results),
    )
    return Split(examples, used), faults


def _read(path: Path, wanted: Format | str, objective: Objective) -> tuple[RawSplit, Format | None, list[str]]:
    """A file's examples, its format if known, and its faults."""
    lines = jsonl.read(path)
    faults = list(lines.faults)
    format, first = _format(lines, wanted)
    if lines.lines and format is None:
        known = "; ".join(" and ".join(keys) for keys in KEYS.values())
        faults.append(f"{path}:{lines.lines[0].number}: no known format. Its keys should be one of: {known}.")
    if format is None:
        return RawSplit(path, str(path), lines.sha256, ()), None, faults
    if format not in ALLOWED[objective]:
        allowed = " or ".join(ALLOWED[objective])
        where = f"{path}:{first}" if first else str(path)
        faults.append(f"{where}: its format is {format}, and objective: {objective} learns from {allowed}.")
        return RawSplit(path, str(path), lines.sha256, ()), format, faults
    rows = []
    for line in lines.lines:
        found = detect(line.value)
        if found not in (None, format, "prompts"):  # a lone prompt gets the fault that its answer is missing
            why = f"like line {first}" if wanted == "auto" else "as data.format says"
            faults.append(f"{path}:{line.number}: {found} where {format} was expected, {why}. Keep one format a file.")
            continue
        row_faults = [
            f"{path}:{line.number}: {fault}" for fault in faults_of(line.value, format, answered=objective == "sft")
        ]
        faults += row_faults
        if not row_faults:
            rows.append(NumberedRow(line.number, parse_row(line.value, format)))
    return RawSplit(path, str(path), lines.sha256, tuple(rows)), format, faults


def _format(lines: jsonl.Lines, wanted: Format | str) -> tuple[Format | None, int]:
    """The format in `wanted`, with line 0; for "auto" that of the first object with known keys, with its line."""
    for known in KEYS:
        if wanted == known:
            return known, 0
    detected = ((detect(line.value), line.number) for line in lines.lines)
    return next(((format, number) for format, number in detected if format is not None), (None, 0))


def _check_loss_on(data: Data, format: Format, objective: Objective) -> None:
    if objective != "sft" and data.loss_on != "auto":
        fault = f"data.loss_on: {data.loss_on} is for objective: sft; {objective} scores whole answers. Remove it."
    elif format == "text" and data.loss_on in ("completion", "assistant"):
        fault = f"data.loss_on: {data.loss_on} needs answers, and the data is plain text. Set it to all or auto."
    elif format == "prompt_completion" and data.loss_on == "assistant":
        fault = "data.loss_on: assistant needs chats, and the data is prompts and completions. Set it to completion."
    else:
        return
    raise ConfigInvalid("The config", [fault])


def _split_off(train: RawSplit, share: float, seed: int) -> tuple[RawSplit, RawSplit]:
    """Hold out a share, chosen by each example's text and the seed, so that the order of the lines does not matter.

    Repeated examples go to the same split. At least one example is held out, unless the share is 0.
    """
    if share == 0 or len(train.rows) < 2:
        return train, RawSplit(train.path, f"{train.path} (nothing held out)", train.sha256, ())
    keys = [_content_hash(one.row) for one in train.rows]
    counted = Counter(keys)
    order = sorted(counted, key=lambda key: hashlib.sha256(seed.to_bytes(8, "big", signed=True) + key).digest())
    wanted, chosen, taken = max(1, round(share * len(keys))), set[bytes](), 0
    for key in order[:-1]:
        if taken >= wanted:
            break
        chosen.add(key)
        taken += counted[key]
    splits = [
        tuple(one for one, key in zip(train.rows, keys, strict=True) if (key in chosen) is held)
        for held in (False, True)
    ]
    label = f"{train.path} (held-out share {share:g}, seed {seed})"
    return RawSplit(train.path, train.label, train.sha256, splits[0]), RawSplit(train.path, label, train.sha256, splits[1])


def _content_hash(row: Row) -> bytes:
    return hashlib.sha256(repr((row.prompt, row.answers)).encode()).digest()


def _leaks(train: RawSplit, heldout: RawSplit) -> Iterator[str]:
    """The faults of held-out examples that are trained on too. Errors, since their score would look like success."""
    first = {_content_hash(one.row): one.line for one in reversed(train.rows)}
    for one in heldout.rows:
        if (line := first.get(_content_hash(one.row))) is not None:
            yield (
                f"{heldout.path}:{one.line}: it is also in {train.path}:{line}. A held-out example must not be trained "
                "on; remove one of the two."
            )


def _repeat_notes(split: RawSplit) -> Iterator[str]:
    seen = Counter(_content_hash(one.row) for one in split.rows)
    if repeats := len(split.rows) - len(seen):
        yield f"{repeats} of {len(split.rows)} lines in {split.path} repeat an earlier one; they weigh more in training."


def _shared_prompt_notes(train: RawSplit, heldout: RawSplit, objective: Objective) -> Iterator[str]:
    """A note, not an error: several answers to one prompt are ordinary data, but flatter the held-out figures."""
    known = {one.row.prompt for one in train.rows if one.row.prompt}
    shared = sum(one.row.prompt in known for one in heldout.rows)
    if shared:
        yield f"{shared} of {len(heldout.rows)} held-out prompts are also in the training data, with other answers."
