"""`rootstock plan`: its numbers as text, JSON and a picture; its faults; and that it answers at once, without torch."""

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from loader.errors import LoaderError
from server.commands import plan as plan_command
from server.commands.errors import CommandFailed
from training.errors import TrainingError

ROOT = Path(__file__).parents[2]
ANSWERS_IN_S = 2.0

WITHOUT_TORCH = """
import sys
from server.cli import main
sys.argv = ["rootstock", "plan", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
heavy = {"torch", "transformers", "peft", "bitsandbytes", "matplotlib"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its text, and what it told on standard error."""

    returncode: int
    stdout: str
    stderr: str


def plan(*arguments: str) -> Ended:
    """The command in this process, with its faults told as `main` tells them."""
    app = typer.Typer()
    app.command()(plan_command.plan)
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is None or isinstance(result.exception, SystemExit):
        return Ended(result.exit_code, result.stdout, result.stderr)
    assert isinstance(result.exception, CommandFailed | LoaderError | TrainingError)
    return Ended(1, result.stdout, str(result.exception))


def planned(*arguments: str) -> Any:
    ended = plan(*arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_it_answers_within_two_seconds_and_imports_nothing_heavy() -> None:
    """By the processor's clock, since other work on the machine is not the command's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", WITHOUT_TORCH, "--base", "llama-3-70b", "--method", "qlora", "--gpu", "48GB"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    assert "Serving:" in ended.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < ANSWERS_IN_S


def test_json_has_every_part_and_what_would_fit() -> None:
    made = planned("--base", "llama-2-7b", "--method", "full", "--gpu", "80GB")
    assert made["total_bytes"] == sum(row["bytes"] for row in made["rows"]) > 80e9
    assert made["fits"] is False
    assert made["limit_bytes"] == 80 * 10**9
    assert [each["change"] for each in made["instead"]][:2] == ["method: qlora", "method: lora"]
    assert made["to_fit"][-1]["total_bytes"] <= 80e9
    assert made["parameters"] == made["trainable"] == 6_738_415_616


def test_the_serving_half() -> None:
    made = planned(
        "--base", "llama-2-7b", "--targets", "q_proj,k_proj,v_proj,o_proj", "--gpu", "24GB", "--sequence", "2048"
    )
    assert made["trainable"] == 16_777_216
    assert made["serving"]["kv_per_token"] == 512 * 1024
    assert made["serving"]["adapter"] == 2 * 16_777_216
    assert made["serving"]["adapters"] > 10
    assert made["fits"] is True and made["to_fit"] == []


def test_the_compute_is_told_beside_a_full_fine_tunes() -> None:
    assert 0.78 < planned("--base", "llama-2-7b")["share_of_full_flops"] < 0.80
    assert "80% of a full fine-tune's" in plan("--base", "llama-2-7b").stdout
    assert (
        "Compute: 49.7 GFLOP a token in products with weights\n"
        in plan("--base", "llama-2-7b", "--method", "full").stdout
    )
    assert "Compute" not in plan("--base", "llama-2-7b", "--objective", "rloo").stdout


def test_text_tells_the_parts_the_verdict_and_the_way_out() -> None:
    ended = plan("--base", "llama-2-7b", "--method", "full", "--objective", "dpo", "--gpu", "80GiB")
    assert ended.returncode == 0, ended.stderr
    for words in (
        "full",
        "4 pairs x 1024 tokens",
        "reference model",
        "more than 85.90 GB",
        "With one change",
        "Serving",
    ):
        assert words in ended.stdout
    assert "adapter" not in ended.stdout.split("Serving:")[1]


@pytest.mark.parametrize("objective", ["sft", "dpo", "reward", "grpo", "rloo"])
def test_every_objective_has_a_plan(objective: str) -> None:
    assert planned("--objective", objective, "--method", "qdora")["total_bytes"] > 0


def test_the_embedded_base_is_the_default_and_the_cpu_has_no_pages() -> None:
    made = planned("--cpu", "--optimizer", "paged_adamw_8bit")
    assert (made["base"], made["pageable_bytes"]) == ("smollm2-135m-instruct", 0)


def test_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = tmp_path / "plan.png"
    ended = plan("--base", "llama-2-7b", "--gpu", "16GB", "--png", str(drawn))
    assert ended.returncode == 0, ended.stderr
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--base", "nobody/nothing"), "one of llama-2-70b"),
        (("--targets", "query"), "It has q_proj"),
        (("--gpu", "plenty"), "Write 48GB"),
        (("--method", "qlora2"), "qlora"),
        (("--objective", "grpo", "--dropout", "0.1"), "Set it to 0"),
    ],
)
def test_a_fault_is_told_in_words(arguments: tuple[str, ...], words: str) -> None:
    ended = plan(*arguments)
    assert ended.returncode in (1, 2)
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
