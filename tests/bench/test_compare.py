"""The comparison against a server that answers at once: what it sends, and what it writes."""

import json
from collections import Counter
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench import report
from bench.compare import main
from bench.load import Run, Trace
from tests.support import tiny_base
from tests.support.fake_openai import FakeServer, running


def as_run(rate: float) -> Run:
    return Run(wall_s=10 / rate, traces=(Trace(ttft_s=0.5, gaps_s=(0.01, 0.03), tokens=10),))


def test_ratios_compare_within_a_round() -> None:
    base = [as_run(100), as_run(50), as_run(10)]
    mixed = [as_run(60), as_run(30), as_run(6)]
    rows = report.rows({("bf16", "base"): base, ("bf16", "8 adapters"): mixed}, base="base")
    assert [row.of_base for row in rows] == pytest.approx([1.0, 0.6])
    assert rows[1].tokens_per_s == pytest.approx(30)
    assert (rows[1].slowest, rows[1].fastest) == pytest.approx((6, 60))
    assert rows[0].ttft_p50_ms == pytest.approx(500)
    assert rows[0].itl_p50_ms == pytest.approx(20)


def test_a_running_server_is_compared_and_reported(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    fake = FakeServer([{"id": "base", "parent": None}, {"id": "a0", "parent": "base"}, {"id": "a1", "parent": "base"}])
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
    rows = json.loads((work / "compare.json").read_text())["rows"]
    assert [row["traffic"] for row in rows] == ["base", "1 adapter", "2 adapters"]
    assert (work / "compare.png").read_bytes().startswith(b"\x89PNG")
