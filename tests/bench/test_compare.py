"""The comparison against a server that answers at once: what it sends, and what it writes."""

from collections import Counter
from pathlib import Path

import typer
from typer.testing import CliRunner

from bench import report
from bench.compare import main
from tests.support import tiny_base
from tests.support.fake_openai import FakeServer, running


def test_a_running_server_is_compared_and_reported(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    fake = FakeServer([{"id": "base", "parent": None}])
    base = tiny_base.write(tmp_path / "base")
    work = tmp_path / "work"
    with running(fake) as url:
        flags = ["--url", url, "--base-dir", str(base), "--work-dir", str(work), "--adapters", "2", "--rounds", "2"]
        sizes = ["--concurrency", "2", "--prompt-tokens", "5", "--output-tokens", "4", "--rank", "2"]
        result = CliRunner().invoke(app, flags + sizes)
    assert result.exit_code == 0, result.output
    assert len(fake.uploads) == 2
    asked = Counter(request["model"] for request in fake.requests)
    assert asked == {"base": 12, "a0": 12 + 6, "a1": 6}, "three rounds of four requests, the first to warm up"
    _, records = report.read(work / "compare.jsonl")
    assert [one.traffic for one in records] == ["base", "1 adapter", "2 adapters"] * 2
    assert [one.rank for one in records] == [0, 2, 2] * 2
    assert {one.arrivals for one in records} == {"c2"}
    for picture in ("throughput", "latency"):
        assert (work / f"compare-{picture}.png").read_bytes().startswith(b"\x89PNG")
