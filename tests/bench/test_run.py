"""Any workload on servers by URL: which adapters are asked for, which are uploaded, and what is refused."""

from collections import Counter
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from bench import report
from bench.run import main
from tests.support import tiny_base
from tests.support.fake_openai import FakeServer, running

SIZES = ("--rounds", "1", "--requests", "4", "--prompt-tokens", "3-5", "--output-tokens", "2")


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [*arguments, *SIZES])


def test_two_servers_are_measured_with_what_they_have(tmp_path: Path) -> None:
    fakes = [FakeServer([{"id": "base", "parent": None}, {"id": "sql", "parent": "base"}]) for _ in range(2)]
    with running(fakes[0]) as ours, running(fakes[1]) as theirs:
        flags = ["--api", "vllm", "--api", "openai", "--popularity", "identical", "--arrivals", "poisson:500"]
        result = run(f"ours={ours}", f"theirs={theirs}", *flags, "--work-dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    for fake in fakes:
        assert Counter(request["model"] for request in fake.requests) == {"base": 8, "sql": 8}
    assert "stream_options" in fakes[1].requests[0]
    _, records = report.read(tmp_path / "run.jsonl")
    assert [(one.server, one.traffic) for one in records] == [
        ("ours", "base"),
        ("theirs", "base"),
        ("ours", "1 identical"),
        ("theirs", "1 identical"),
    ]
    assert records[0].rss_bytes, "the fake listens on this machine"


def test_adapters_of_several_ranks_are_uploaded(tmp_path: Path) -> None:
    fake = FakeServer([{"id": "base", "parent": None}])
    base = tiny_base.write(tmp_path / "base")
    with running(fake) as url:
        counts = ["--adapters", "1", "--adapters", "3", "--rank", "2", "--rank", "4", "--popularity", "distinct"]
        result = run(url, "--base-dir", str(base), *counts, "--work-dir", str(tmp_path / "work"))
    assert result.exit_code == 0, result.output
    assert len(fake.uploads) == 6
    _, records = report.read(tmp_path / "work" / "run.jsonl")
    assert [one.traffic for one in records] == [
        "base",
        "1 r2 distinct",
        "3 r2 distinct",
        "1 r4 distinct",
        "3 r4 distinct",
    ]
    assert (tmp_path / "work" / "run-tax.png").exists()


def test_a_server_that_fails_ends_the_command_with_1(tmp_path: Path) -> None:
    fake = FakeServer([{"id": "base", "parent": None}], short=frozenset({"base"}))
    with running(fake) as url:
        result = run(url, "--work-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "tokens where" in result.output


@pytest.mark.parametrize(
    "flags", [("--popularity", "many"), ("--arrivals", "often"), ("--api", "vllm", "--api", "vllm")]
)
def test_what_is_typed_wrongly_is_told(flags: tuple[str, ...]) -> None:
    result = run("http://127.0.0.1:1", *flags)
    assert result.exit_code == 2
    assert flags[0] in result.output
