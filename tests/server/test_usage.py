"""The ledger: one row a request, whatever happens, and never two."""

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.errors import DatabaseUnusable
from engine.events import Finished
from engine.sequence import Request, SamplingParams
from engine.worker import EngineWorker
from server.commands.errors import CommandFailed
from server.commands.usage import usage
from server.generation import Generation
from server.meter import Claim, Meter
from server.principal import ANYONE
from server.usage.ledger import COLUMNS, Ledger, Usage, UsageFilter, UsageStart
from server.usage.table import as_json, read_time, write_csv
from server.usage.writer import LedgerWriter
from tests.support.engine_fakes import Bench, named
from tests.support.http import eventually
from tests.support.served import run

BEGUN = UsageStart("r0", "acme", "web", "k1", "sql@3", 10, 1000.0)
ROW = Usage("r0", "acme", "web", "k1", "sql@3", 10, 4, 7, "stop", 1000.0, 1001.5)
LOST = replace(ROW, cached_tokens=0, generated_tokens=0, finish_reason="lost", ended=2000.0)
EVERY = UsageFilter()


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def test_i86_a_request_has_one_row_however_often_it_is_written(tmp_path: Path) -> None:
    ledger = Ledger(url(tmp_path / "usage.sqlite"))
    ledger.append([ROW, ROW])
    ledger.append([replace(ROW, generated_tokens=99), replace(ROW, id="r1")])
    assert list(ledger.rows(EVERY)) == [ROW, replace(ROW, id="r1")]
    ledger.close()


@pytest.mark.anyio
async def test_i86_what_an_answer_got_is_noted_whether_or_not_anybody_reads_it(tmp_path: Path) -> None:
    ledger = Ledger(url(tmp_path / "usage.sqlite"))
    writer = LedgerWriter(ledger)
    metered = Meter(writer=writer).admit(ANYONE, Claim("r0", "", prompt_tokens=3, max_tokens=100))
    asked = list[int]()

    def so_far() -> int:
        asked.append(7)
        return 7

    metered.accepted()
    metered.follow(so_far)
    async with asyncio.timeout(10):
        while [begun.generated_tokens for begun in ledger.under_way()] != [7]:
            await asyncio.sleep(0.05)
    metered.end(0, 9, "length")
    before = len(asked)
    await asyncio.sleep(1.1)  # a whole second passes
    assert len(asked) == before, "nothing is noted after the end"
    writer.close()
    assert ledger.under_way() == []
    assert [row.generated_tokens for row in ledger.rows(EVERY)] == [9]
    ledger.close()


@pytest.mark.anyio
@pytest.mark.parametrize("choices", [1, 3])
async def test_i86_what_was_made_and_never_read_counts(choices: int) -> None:
    bench = Bench()
    worker = EngineWorker(bench.engine)
    worker.start()
    params = SamplingParams(max_tokens=40)
    answers = await Generation.start(worker, [Request(str(n), (1, 2, 3), params) for n in range(choices)])
    reading = aiter(answers)
    async with asyncio.timeout(10):
        for _ in range(3):
            await anext(reading)
        while len(bench.of(Finished)) < choices:
            await asyncio.sleep(0.01)
        await worker.unpin(named("none"))  # answered behind all that was made
        await answers.aclose()
        await worker.stop(0)
    assert answers.tokens == choices * 40


def test_i86_what_was_under_way_at_a_kill_is_lost_once_with_its_prompt_and_what_was_noted(tmp_path: Path) -> None:
    """r0 ended, r1 went on and was noted, and r2 was told twice, as what takes its prompts in turns is."""
    path = url(tmp_path / "usage.sqlite")
    ledger = Ledger(path)
    ledger.append([], [BEGUN, replace(BEGUN, id="r1"), replace(BEGUN, id="r2")])
    ledger.append([], [replace(BEGUN, id="r0", generated_tokens=5), replace(BEGUN, id="r1", generated_tokens=5)])
    ledger.append([ROW], [replace(BEGUN, id="r2", prompt_tokens=30), replace(BEGUN, id="r1", generated_tokens=6)])
    assert list(ledger.rows(EVERY)) == [ROW], "the others have not ended"
    ledger.close()
    for _ in range(2):
        ledger = Ledger(path)
        ledger.append(ledger.lost(2000.0))
        rows = list(ledger.rows(EVERY))
        assert rows == [ROW, replace(LOST, id="r1", generated_tokens=6), replace(LOST, id="r2", prompt_tokens=30)]
        assert ledger.under_way() == []
        ledger.append([replace(ROW, id="r1")])
        assert list(ledger.rows(EVERY)) == rows, "told as lost is told"
        ledger.close()


def test_what_is_lost_did_not_end_before_it_began_though_the_clock_was_set_back(tmp_path: Path) -> None:
    ledger = Ledger(url(tmp_path / "usage.sqlite"))
    ledger.append([], [BEGUN])
    assert [row.ended for row in ledger.lost(BEGUN.started - 60)] == [BEGUN.started]
    ledger.close()


def test_what_ends_within_a_moment_is_written_once_and_what_goes_on_is_under_way(tmp_path: Path) -> None:
    ledger = Counting(tmp_path / "usage.sqlite")
    writer = LedgerWriter(ledger)
    writer.record(BEGUN)
    writer.record(ROW)
    eventually(lambda: list(ledger.rows(EVERY)) == [ROW])
    for n in range(1, 100):
        writer.record(replace(BEGUN, id=str(n)))
    eventually(lambda: len(ledger.under_way()) == 99)
    assert ledger.written == [(1, 0), (0, 99)]
    for n in range(1, 100):
        writer.record(replace(ROW, id=str(n)))
    writer.close()
    assert len(list(ledger.rows(EVERY))) == 100 and ledger.under_way() == []
    ledger.close()


class Counting(Ledger):
    """Notes how many had ended and how many had begun, write by write."""

    def __init__(self, path: Path) -> None:
        super().__init__(url(path))
        self.written: list[tuple[int, int]] = []

    def append(self, ended: Sequence[Usage], begun: Sequence[UsageStart] = ()) -> None:
        self.written.append((len(ended), len(begun)))
        super().append(ended, begun)


def test_rows_are_found_by_tenant_and_time_and_in_pages(tmp_path: Path) -> None:
    ledger = Ledger(url(tmp_path / "usage.sqlite"))
    rows = [replace(ROW, id=str(n), tenant="ab"[n % 2], ended=1000.0 + n) for n in range(10)]
    ledger.append(rows)
    assert list(ledger.rows(UsageFilter(tenant="a"))) == rows[::2]
    assert list(ledger.rows(UsageFilter(since=1003, until=1006))) == rows[3:6]
    page = ledger.page(EVERY, limit=4)
    assert [row for _, row in page] == rows[:4]
    assert [row for _, row in ledger.page(EVERY, after=page[-1][0], limit=4)] == rows[4:8]
    ledger.close()


class FullDisk(Ledger):
    """Refuses the first writes."""

    def __init__(self, path: Path, refusals: int) -> None:
        super().__init__(url(path))
        self.refusals = refusals

    def append(self, ended: Sequence[Usage], begun: Sequence[UsageStart] = ()) -> None:
        if self.refusals:
            self.refusals -= 1
            raise OSError(28, "no space left on device")
        super().append(ended, begun)


@pytest.mark.parametrize("refusals", [0, 3])
def test_i86_what_was_recorded_is_there_after_a_close_and_a_full_disk(tmp_path: Path, refusals: int) -> None:
    ledger = FullDisk(tmp_path / "usage.sqlite", refusals)
    writer = LedgerWriter(ledger, retry_s=0.01)
    rows = [replace(ROW, id=str(n)) for n in range(100)]
    for row in rows:
        writer.record(row)
    eventually(lambda: ledger.refusals == 0)
    writer.close()
    assert list(ledger.rows(EVERY)) == rows
    ledger.close()


def test_notes_on_one_request_are_one_however_long_the_disk_is_full(tmp_path: Path) -> None:
    ledger = FullDisk(tmp_path / "usage.sqlite", refusals=5)
    writer = LedgerWriter(ledger, retry_s=0.05)
    for n in range(1000):
        writer.record(replace(BEGUN, generated_tokens=n))
        if n % 200 == 0:
            eventually(lambda: ledger.refusals < 5)
    eventually(lambda: [begun.generated_tokens for begun in ledger.under_way()] == [999])
    writer.record(ROW)
    writer.close()
    assert list(ledger.rows(EVERY)) == [ROW] and ledger.under_way() == []
    ledger.close()


KILLED = """
import os, signal, sys
from dataclasses import replace
from server.usage.ledger import Ledger, UsageFilter
from server.usage.writer import LedgerWriter
from tests.server.test_usage import ROW, url
from pathlib import Path

ledger = Ledger(url(Path(sys.argv[1])))
writer = LedgerWriter(ledger)
for n in range(2000):
    writer.record(replace(ROW, id=str(n)))
    if n == 1000:
        while len(ledger.page(UsageFilter())) < 1000: pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_i86_a_killed_writer_leaves_whole_rows_and_nothing_twice(tmp_path: Path) -> None:
    """And the same requests told once more, as a retry of the writer would, change nothing."""
    path = tmp_path / "usage.sqlite"
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=root, check=False, timeout=60,
                            env=os.environ | {"PYTHONPATH": str(root)})  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    ledger = Ledger(url(path))
    rows = list(ledger.rows(EVERY))
    assert len(rows) >= 1000 and rows == [replace(ROW, id=str(n)) for n in range(len(rows))]
    everything = [replace(ROW, id=str(n)) for n in range(2000)]
    ledger.append(everything)
    assert list(ledger.rows(EVERY)) == everything
    ledger.close()


def test_a_damaged_ledger_is_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseUnusable, match="usage ledger"):
        Ledger(url(path))


def test_rows_are_shown_with_times_in_utc() -> None:
    out = io.StringIO()
    write_csv([ROW], out)
    assert list(csv.DictReader(io.StringIO(out.getvalue()))) == [
        {name: str(value) for name, value in as_json(ROW).items()}
    ]
    assert as_json(ROW)["ended"] == "1970-01-01T00:16:41.500Z"
    assert read_time("1970-01-01T00:16:40Z") == read_time("1970-01-01T01:16:40+01:00") == 1000
    assert read_time("1970-01-02") == 86400


def test_the_command_reads_a_data_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandFailed, match="no usage ledger"):
        usage(data_dir=tmp_path)
    ledger = Ledger(url(tmp_path / "usage.sqlite"))
    ledger.append([ROW, replace(ROW, id="r1", tenant="other")])
    ledger.close()
    usage(data_dir=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ",".join(COLUMNS) and len(lines) == 3
    output = run("usage", "--data-dir", str(tmp_path), "--tenant", "acme", "--format", "json", "--since", "1970-01-01")
    assert json.loads(output.stdout) == [as_json(ROW)]
