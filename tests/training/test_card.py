"""The card: a hub reads its metadata, a person its figures, and `rootstock train` its config."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from training.card import card
from training.config import TrainConfig
from training.config_file import parse_config
from training.report import BeforeAfter, DataUsed, Parity, Report, Sample

CONFIG: dict[str, Any] = {
    "output": "runs/reports",
    "about": "Routes reports.",
    "data": {"train": "train.jsonl", "heldout": "heldout.jsonl"},
    "method": "qlora",
    "adapter": {"layers": [1, 2], "rank": 8},
    "score": {"metric": "contains", "words": ["matey"]},
    "push": {"url": "http://127.0.0.1:8000", "name": "reports"},
}
REPORT = Report(
    method="qlora",
    objective="sft",
    base="smollm2-135m-instruct",
    base_weights="sha256:" + "ab" * 32,
    quantization="nf4",
    precision="float32",
    device="cpu",
    data=(DataUsed("train.jsonl", "11" * 32, 440, 8915, 0), DataUsed("heldout.jsonl", "22" * 32, 50, 1068, 3)),
    steps=37,
    tokens=8915,
    seconds=71.6,
    trainable=2_442_240,
    bytes=4_901_234,
    predicted_bytes=2 << 30,
    measured_bytes=3 << 30,
    heldout_loss=BeforeAfter(10.4, 0.1234),
    task_score=BeforeAfter(0.0, 0.94),
    general_loss=BeforeAfter(3.0, 3.25),
    parity=Parity("bfloat16", "nf4", 120, 0.012, 0.3, 0.06, True, effect=1.5),
    metrics={"eval_loss": 0.1234},
    samples=(
        Sample("The hydrant drips. ->", " water/later", "11.1", " water/later", True),
        Sample("Fence ```` inside ->", " parks/now", "", " roads/now", False),
    ),
)


def written(report: Report = REPORT, **changes: Any) -> str:
    return card(report, parse_config({**CONFIG, **changes}))


def metadata(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_a_hub_finds_base_library_and_score() -> None:
    found = metadata(written())
    assert found["base_model"] == "smollm2-135m-instruct"
    assert found["library_name"] == "peft"
    assert {"qlora", "sft"} <= set(found["tags"])
    (entry,) = found["model-index"]
    (metric,) = entry["results"][0]["metrics"]
    assert metric["value"] == 0.94
    full = metadata(written(replace(REPORT, method="full", quantization=None), method="full", push=None, adapter={}))
    assert full["library_name"] == "transformers"


def test_a_score_that_was_not_measured_is_in_no_metadata() -> None:
    text = written(replace(REPORT, task_score=None))
    assert "model-index" not in metadata(text)
    assert "| score | not measured | not measured |" in text


def test_gained_and_lost_stand_beside_the_base() -> None:
    text = written()
    assert "| score | 0.000 | 0.940 |" in text
    assert "| loss, nats per token that counts | 10.4000 | 0.1234 |" in text
    assert "| loss on a general text, nats per token | 3.0000 | 3.2500 | +0.2500 |" in text
    assert "nothing was forgotten" not in text
    better = written(replace(REPORT, general_loss=BeforeAfter(3.0, 2.9)))
    assert "-0.1000" in better
    assert "nothing was forgotten" in better


def test_what_it_was_made_of_can_be_checked() -> None:
    text = written()
    assert f"`{REPORT.base_weights}`" in text
    for used in REPORT.data:
        assert re.search(rf"\| `{re.escape(used.path)}` \| {used.examples} \|.*\| `{used.sha256}` \|", text)
    assert "| memory, predicted | 2.0 GiB |" in text
    assert "| memory, measured | 3.0 GiB (+50%) |" in text


def test_the_gate_is_told_whichever_way_it_went() -> None:
    assert ": passed." in written()
    assert REPORT.parity is not None
    assert "NOT passed" in written(replace(REPORT, parity=replace(REPORT.parity, passed=False)))
    assert "not measured" in written(replace(REPORT, parity=None)).split("## As it is served")[1]


def test_answers_are_verbatim_and_cannot_break_out() -> None:
    text = written()
    assert "```text\nThe hydrant drips. ->\n```" in text
    assert "`````text\nFence ```` inside ->\n`````" in text
    assert "trained (counted as wrong):" in text
    assert "## Answers" not in written(replace(REPORT, samples=()))


def test_its_config_trains_the_same_again_and_tells_no_address() -> None:
    text = written()
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    assert "127.0.0.1" not in text
    assert parse_config(yaml.safe_load(found[1])) == parse_config({**CONFIG, "push": None})


def test_a_short_config_makes_a_card_too() -> None:
    bare = TrainConfig(output=Path("runs/x"), data={"train": "train.jsonl"})  # type: ignore[arg-type]
    nothing = replace(
        REPORT, method="lora", quantization=None, data=(), heldout_loss=None, task_score=None, general_loss=None,
        parity=None, metrics={}, samples=(), predicted_bytes=0,
    )  # fmt: skip
    text = card(nothing, bare)
    assert text.count("not measured") >= 4
    assert "None" not in text
