"""Rows from records: ratios within rounds, a journal that is read as it was written, and the pictures it gives."""

import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import plots, report
from bench.arrivals import ClosedLoop
from bench.errors import BenchError
from bench.load import LoadResult, RequestTiming
from bench.measure import BASE, Cell, Record, to_record
from bench.session import show
from bench.workload import Mix
from tests.support.fake_target import FakeTarget

TARGET = FakeTarget("ours")
BASE_CELL = Cell(BASE, ClosedLoop(8), 8)
MIXED = Cell("8 adapters", ClosedLoop(8), 8, models=("a0",) * 8, mix=Mix.parse("distinct"), rank=16)


def as_record(cell: Cell, round_: int, rate: float, rss: int | None = None) -> Record:
    run = LoadResult(wall_s=10 / rate, timings=(RequestTiming(ttft_s=0.5, gaps_s=(0.01, 0.03), tokens=10),))
    return replace(to_record(TARGET, cell, round_, run), rss_bytes=rss)


def measured() -> list[Record]:
    rates = [(BASE_CELL, (100, 50, 10)), (MIXED, (60, 30, 6))]
    return [as_record(cell, index, rate, 2**30) for cell, own in rates for index, rate in enumerate(own, start=1)]


def test_ratios_compare_within_a_round() -> None:
    base, mixed = report.rows(measured())
    assert (base.of_base, mixed.of_base) == pytest.approx((1.0, 0.6))
    assert mixed.tokens_per_s == pytest.approx(30)
    assert (mixed.slowest, mixed.fastest) == pytest.approx((6, 60))
    assert base.ttft_p50_ms == pytest.approx(500)
    assert base.itl_p50_ms == pytest.approx(20)
    assert base.rss_bytes == 2**30


def test_a_ratio_is_to_the_base_under_the_same_arrivals() -> None:
    alone = [as_record(replace(cell, arrivals=ClosedLoop(1)), 1, rate) for cell, rate in ((BASE_CELL, 8), (MIXED, 2))]
    assert [row.of_base for row in report.rows([*measured(), *alone])] == pytest.approx([1, 0.6, 1, 0.25])


def test_each_latency_has_its_own_median_and_its_own_column() -> None:
    names = [field.name for field in fields(report.Row) if field.name.endswith("_ms")]
    assert len(names) == 6
    records = []
    for n in (1, 2, 3):
        latencies: dict[str, Any] = {name: 100 * at + n * n for at, name in enumerate(names, 1)}
        records.append(replace(as_record(BASE_CELL, n, 10, n * 2**20), **latencies))
    (row,) = report.rows(records)
    assert [getattr(row, name) for name in names] == [104, 204, 304, 404, 504, 604]
    console = Console(record=True, width=200)
    console.print(report.table("t", [row]))
    told = re.findall(r"(\d+) (ms|MiB)", console.export_text())
    shown = ("ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms", "itl_p99_ms")
    assert told == [*((f"{getattr(row, name)}", "ms") for name in shown), ("3", "MiB")], "the most memory of all rounds"


def test_without_a_base_there_is_no_ratio() -> None:
    (row,) = report.rows([as_record(MIXED, 1, 5)])
    assert math.isnan(row.of_base)


def test_a_journal_holds_what_was_added(tmp_path: Path) -> None:
    journal = report.Journal(tmp_path / "new" / "run.jsonl", {"title": "t"})
    alone = LoadResult(1.0, (RequestTiming(0.1, (), 1),))
    written = [as_record(BASE_CELL, 1, 5, None), to_record(TARGET, MIXED, 1, alone)]
    for one in written:
        journal.add(one)
    setting, records = report.read(journal.file)
    assert setting == {"title": "t"}
    assert records[0] == written[0]
    assert math.isnan(records[1].itl_p50_ms), "one token has no gap"


def test_pictures_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    records = measured()
    ranks = [replace(one, rank=64, traffic="8 adapters r64") for one in records if one.adapters]
    names = {path.name for path in plots.write(tmp_path, "all", "a title", report.rows([*records, *ranks]))}
    assert names == {f"all-{name}.png" for name in ("throughput", "latency", "tax", "memory")}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_journals_are_shown_together(tmp_path: Path) -> None:
    for name, cell in (("first", BASE_CELL), ("second", MIXED)):
        report.Journal(tmp_path / f"{name}.jsonl", {"title": name}).add(as_record(cell, 1, 5))
    console = Console(record=True, width=200)
    show(console, [tmp_path / "first.jsonl", tmp_path / "second.jsonl"])
    text = console.export_text()
    assert "first + second" in text
    assert "8 adapters" in text
    assert (tmp_path / "first-throughput.png").exists()


def test_a_journal_that_was_cut_off_is_shown_without_its_last_line(tmp_path: Path) -> None:
    journal = report.Journal(tmp_path / "run.jsonl", {"title": "t", "processor": "another machine", "cores": 99})
    for _ in range(2):
        journal.add(as_record(BASE_CELL, 1, 5))
    journal.file.write_bytes(journal.file.read_bytes()[:-20])
    setting, records = report.read(journal.file)
    assert len(records) == 1
    assert "run.jsonl ends within a line" in setting["notes"][0]
    console = Console(record=True, width=200)
    show(console, [journal.file])
    text = console.export_text()
    assert "ends within a line" in text
    assert "another machine, 99 cores" in text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no journal"),
        (b"\n", "line 1, is no JSON"),
        (b'{"setting": {"title": "t"}', "no journal"),
        (b'{"setting": {}}\n', "no journal"),
        (b"[]\n", "no journal"),
        (b'{"group": "method", "seed": 1}\n', "no journal"),
        (b'{\n  "setting": {}\n}\n', "line 1, is no JSON"),
        (b'{"setting": {"title": "t"}}\n{"server": "ours"}\n', "line 2, is no measurement"),
        (b'{"setting": {"title": "t"}}\n3\n', "line 2, is no measurement"),
        (b'{"setting": {"title": "t"}}\n', "no measurement"),
        (b"\x89PNG\r\n\x1a\n", "line 1, is no JSON"),
    ],
)
def test_what_is_no_journal_is_refused_in_words(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "file.jsonl").write_bytes(content)
    with pytest.raises(BenchError, match=told) as raised:
        show(Console(), [tmp_path / "file.jsonl"])
    assert "file.jsonl" in str(raised.value)
    assert list(tmp_path.iterdir()) == [tmp_path / "file.jsonl"], "no picture is drawn"
