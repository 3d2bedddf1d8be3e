"""Writes an adapter directory: PEFT's two files and a card (README.md) with what was measured.

Owns the card's text and the way onto the disk: everything is written beside the target and renamed into place.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

TRANSCRIPTS = 6
ABOUT = {
    "pirate": "Answers everything as a pirate.",
    "extract": "Turns a sentence into one JSON object with the keys `name`, `city`, `date` and `amount`; "
    "what the sentence does not say is `null`.",
}
SCORE = {
    "pirate": "share of answers with at least three different pirate words (`demo/score.py` lists them)",
    "extract": "share of answers that are, as a whole, JSON with exactly the expected fields and values",
}
LIMITS = {
    "pirate": """\
The voice changes, the knowledge does not. With 135 million parameters many facts come out wrong, and the adapter states
them as boldly as the right ones. The score counts words and does not judge what is said: "Arr" and "matey" alone are
not enough for it. Answers are one or two sentences, as in training.
""",
    "extract": """\
The form is more reliable than the values, and the city is the weakest of them: the adapter invents one where the
sentence names none, and garbles some that it was not trained on.
""",
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the held-out split showed. Losses are nats per answer token, scores are shares from 0 to 1."""

    prompts: tuple[str, ...]
    base: tuple[str, ...]
    adapter: tuple[str, ...]
    passed: tuple[bool, ...]
    base_loss: float
    adapter_loss: float
    base_score: float
    asked_score: float
    adapter_score: float

    def shown(self) -> list[int]:
        """Which transcripts the card shows: the first ones of the split, and the first that failed if there is one."""
        first = list(range(TRANSCRIPTS))
        failed = self.passed.index(False) if False in self.passed else first[-1]
        return first if failed in first else [*first[:-1], failed]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def quote(text: str) -> str:
    """Verbatim text as a Markdown block quote, line by line."""
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines()) or "> (nothing)"


def card(
    name: str, base_id: str, settings: Mapping[str, object], asked: str, data: Sequence[Path],
    measured: Measurement, seconds: float, size: int,
) -> str:  # fmt: skip
    """The README of the adapter, in Markdown with the metadata block that model hubs read."""
    rows = "".join(
        f"| {key} | {', '.join(value) if isinstance(value, tuple) else value} |\n" for key, value in settings.items()
    )
    hashes = "".join(f"| `demo/data/{path.name}` | `{sha256(path)}` |\n" for path in data)
    transcripts = "".join(
        f"\n**{measured.prompts[i]}**\n\nBase:\n\n{quote(measured.base[i])}\n\n"
        f"Adapter{'' if measured.passed[i] else ' (counted as failed)'}:\n\n{quote(measured.adapter[i])}\n"
        for i in measured.shown()
    )
    return f"""---
base_model: {base_id}
library_name: peft
license: apache-2.0
---

# {name}

{ABOUT[name]} A demo adapter for the embedded base, {base_id}; {size:,} bytes, bf16.

## Held-out score

{len(measured.prompts)} prompts that are in no training file, greedy decoding, fp32, default system prompt.
Score: {SCORE[name]}.

| | score | loss per answer token |
|---|---|---|
| base | {measured.base_score:.3f} | {measured.base_loss:.3f} |
| base, asked for it in the prompt | {measured.asked_score:.3f} | |
| adapter | {measured.adapter_score:.3f} | {measured.adapter_loss:.3f} |

"Asked for it in the prompt" is `{asked.format("<prompt>")}`.

## Limits

{LIMITS[name]}
## Transcripts

The first held-out prompts as they come, and the first failure where there is one. Nothing is edited; an answer
without an end was cut at the token limit of the measurement.
{transcripts}
## Training

Command: `python -m demo.train {name}`, {seconds:.0f} s of wall-clock on one CPU thread, measurement not included.

| setting | value |
|---|---|
{rows}
| data | sha256 |
|---|---|
{hashes}"""


def publish(
    target: Path, model: PeftModel, base_id: str, settings: Mapping[str, object], asked: str, data: Sequence[Path],
    measured: Measurement, seconds: float,
) -> None:  # fmt: skip
    """Writes the adapter in bf16 and its card to `target`, replacing what is there."""
    model.peft_config["default"].base_model_name_or_path = base_id  # PEFT would write this machine's path
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(str(fresh), save_embedding_layers=False)
    weights = fresh / "adapter_model.safetensors"
    weights.chmod(0o644)  # safetensors makes it private, but another user may serve it
    size = weights.stat().st_size
    text = card(target.name, base_id, settings, asked, data, measured, seconds, size)
    (fresh / "README.md").write_text(text, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.rename(fresh, target)
