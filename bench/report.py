"""What was measured, as JSON lines and as a table.

Owns the files and the arithmetic over rounds. Measures nothing itself.
"""

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from bench.errors import BenchError
from bench.measure import BASE, Record

NOTE = "note"
JOURNALS = "`bench run`, `compare`, `peers` and `regress`"


@dataclass(frozen=True, slots=True)
class Row:
    """One traffic on one server over all rounds, by medians. Rates are tokens per second, latencies milliseconds.

    `of_base` is against the server's own base traffic under the same arrivals, nan where that was not measured.
    """

    server: str
    traffic: str
    arrivals: str
    adapters: int
    rank: int
    mix: str
    tokens_per_s: float
    slowest: float
    fastest: float
    of_base: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p95_ms: float
    itl_p99_ms: float
    rss_bytes: int


def rows(records: Iterable[Record]) -> list[Row]:
    """One row for each (server, traffic, arrivals), in the order in which they were first measured."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.server, record.traffic, record.arrivals), []).append(record)
    return [_row(group, groups.get((server, BASE, arrivals), ())) for (server, _, arrivals), group in groups.items()]


def _row(group: Sequence[Record], base: Sequence[Record]) -> Row:
    first, rates = group[0], [record.tokens_per_s for record in group]
    return Row(
        server=first.server,
        traffic=first.traffic,
        arrivals=first.arrivals,
        adapters=first.adapters,
        rank=first.rank,
        mix=first.mix,
        tokens_per_s=median(rates),
        slowest=min(rates),
        fastest=max(rates),
        of_base=median(ratios(group, base) or [float("nan")]),
        ttft_p50_ms=median(record.ttft_p50_ms for record in group),
        ttft_p95_ms=median(record.ttft_p95_ms for record in group),
        ttft_p99_ms=median(record.ttft_p99_ms for record in group),
        itl_p50_ms=median(record.itl_p50_ms for record in group),
        itl_p95_ms=median(record.itl_p95_ms for record in group),
        itl_p99_ms=median(record.itl_p99_ms for record in group),
        rss_bytes=max(record.rss_bytes or 0 for record in group),
    )


def ratios(these: Iterable[Record], those: Iterable[Record]) -> list[float]:
    """Each round's own ratio of throughput, since a machine drifts less within a round than between them."""
    others = {record.round: record.tokens_per_s for record in those}
    return [record.tokens_per_s / others[record.round] for record in these if record.round in others]


def table(title: str, measured: Sequence[Row]) -> Table:
    result = Table(title=title)
    for column in ("server", "traffic", "arrivals"):
        result.add_column(column)
    for column in ("tok/s", "min to max", "of base", "TTFT p50", "p95", "ITL p50", "p95", "p99", "memory"):
        result.add_column(column, justify="right")
    for row in measured:
        latencies = (row.ttft_p50_ms, row.ttft_p95_ms, row.itl_p50_ms, row.itl_p95_ms, row.itl_p99_ms)
        result.add_row(
            row.server,
            row.traffic,
            row.arrivals,
            f"{row.tokens_per_s:.1f}",
            f"{row.slowest:.1f} to {row.fastest:.1f}",
            f"{row.of_base:.2f}",
            *(f"{latency:.0f} ms" for latency in latencies),
            f"{row.rss_bytes / 2**20:.0f} MiB" if row.rss_bytes else "?",
        )
    return result


def machine() -> dict[str, Any]:
    """The machine that the figures depend on. `load` is its one-minute load average now."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class Journal:
    """A file of JSON lines: the setting first, then each record as soon as it is measured, so that a run that is
    broken off leaves what it had."""

    def __init__(self, file: Path, setting: dict[str, Any]) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_line({"setting": setting}))

    def add(self, record: Record) -> None:
        with self.file.open("ab") as stream:
            stream.write(_line(asdict(record)))

    def note(self, text: str) -> None:
        """Something that the numbers rest on, and that was learnt only while measuring."""
        with self.file.open("ab") as stream:
            stream.write(_line({NOTE: text}))


def read(file: Path) -> tuple[dict[str, Any], list[Record]]:
    """The setting of a journal, with its notes, and its records. Raises BenchError for another file.

    A last line without an end is what a run wrote when it was killed; it is left out, and a note says so.
    """
    whole, newline, rest = file.read_bytes().rpartition(b"\n")
    first, *lines = _documents(file, whole) if newline else [None]
    if not (isinstance(first, dict) and isinstance(first.get("setting"), dict) and "title" in first["setting"]):
        raise BenchError(f"{file} is no journal of a run: {JOURNALS} write one.")
    notes = [line[NOTE] for line in lines if isinstance(line, dict) and NOTE in line]
    notes += [f"{file} ends within a line, which is left out."] if rest.strip() else []
    setting = first["setting"] | ({"notes": notes} if notes else {})
    numbered = enumerate(lines, start=2)
    return setting, [_record(file, at, line) for at, line in numbered if not (isinstance(line, dict) and NOTE in line)]


def _documents(file: Path, lines: bytes) -> list[Any]:
    """Raises BenchError for a line that is no JSON; a file in another format has one at once."""
    found = []
    for number, line in enumerate(lines.split(b"\n"), start=1):
        try:
            found.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise BenchError(f"{file}, line {number}, is no JSON. A journal is what {JOURNALS} write.") from error
    return found


def _record(file: Path, number: int, line: Any) -> Record:
    try:
        return Record(**_with_nan(line))
    except (AttributeError, TypeError) as error:
        raise BenchError(f"{file}, line {number}, is no measurement as this version writes it: {error}") from error


def _with_nan(line: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan and writes null; only `rss_bytes` may be nothing."""
    return {key: float("nan") if value is None and key != "rss_bytes" else value for key, value in line.items()}


def save_json(file: Path, document: dict[str, Any]) -> Path:
    """Write `document` to `file`; returns `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return file


def print_and_save(console: Console, file: Path, document: dict[str, Any]) -> None:
    """Print `document` and write it to `file`."""
    console.print_json(save_json(file, document).read_text())
    console.print(f"Written: {file}")


def _line(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
