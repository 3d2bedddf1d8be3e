"""A measuring session, from the first measurement to the table: what every command that compares targets does.

Owns the terminal's output and the files. Knows neither how targets are started nor what they are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer
from rich.console import Console

from bench import plots, report
from bench.errors import BenchError
from bench.measure import Cell, Record, Schedule, Target, measure

NO_NOTES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Session:
    """What a session is called and how long it lasts.

    `name` begins the files' names; `title` heads the table and the pictures. Prompts' token ids are below `vocab`.
    After `minutes` no measurement is begun.
    """

    name: str
    title: str
    work_dir: Path
    rounds: int
    vocab: int
    minutes: float | None = None


def run_session(console: Console, session: Session, targets: Sequence[Target], cells: Sequence[Cell]) -> list[Record]:
    """Measure all cells on all targets in turn. Prints each measurement; writes a journal, a table and pictures.

    Raises typer.Exit with code 1 at the end when a target failed.
    """
    for left_out in missing_adapters(targets, cells):
        console.print(left_out, style="yellow", markup=False)
    return record_session(console, session, cells, lambda schedule: measure(targets, schedule, session.rounds))


def record_session(
    console: Console,
    session: Session,
    cells: Sequence[Cell],
    measuring: Callable[[Schedule], Iterator[Record]],
    notes: Mapping[str, str] = NO_NOTES,
) -> list[Record]:
    """As `run_session`, in the order of `measuring`. The table ends with what `notes` holds then."""
    journal = report.Journal(session.work_dir / f"{session.name}.jsonl", report.machine() | {"title": session.title})
    records: list[Record] = []
    failures: list[str] = []

    def failed(target: Target, cell: Cell, error: Exception) -> None:
        failures.append(f"{target.name} failed at {cell.traffic}, {cell.arrivals}: {type(error).__name__}: {error}")
        console.print(failures[-1], style="red", markup=False)

    schedule = Schedule(cells, session.vocab, failed, session.minutes)
    with console.status("warming up"):
        for record in measuring(schedule):
            journal.add(record)
            records.append(record)
            console.print(
                f"{record.server:14} {record.traffic:16} {record.arrivals:6} {record.tokens_per_s:8.1f} tok/s"
            )
    for note in notes.values():
        journal.note(note)
    pictures = print_results(console, session.title, records, journal.file, list(notes.values()))
    setting = report.machine()
    console.print(f"{setting['processor']}, {setting['cores']} cores, load now {setting['load']:.2f}")
    _say_written(console, (journal.file, *pictures))
    if failures:
        raise typer.Exit(1)
    return records


def missing_adapters(targets: Sequence[Target], cells: Sequence[Cell]) -> list[str]:
    """A sentence for each cell that will not be measured on a target, because it lacks the cell's adapters."""
    return [
        f"{target.name} does not have the adapters of {cell.traffic}: left out"
        for target in targets
        for cell in cells
        if not target.adapters.issuperset(cell.models)
    ]


def print_results(
    console: Console, title: str, records: Sequence[Record], journal: Path, notes: Sequence[str] = ()
) -> list[Path]:
    """Print the table with `notes` under it, and draw the pictures beside `journal`, whose paths are returned."""
    rows = report.rows(records)
    console.print(report.table(title, rows))
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    return plots.write(journal.parent, journal.stem, title, rows)


def show(console: Console, journals: Sequence[Path]) -> None:
    """The table and the pictures of runs that were measured before, in one; pictures go beside the first.

    Raises BenchError for other files.
    """
    read = [report.read(journal) for journal in journals]
    if not any(records for _, records in read):
        raise BenchError(f"{', '.join(map(str, journals))}: no measurement; the run ended before its first.")
    title = " + ".join(dict.fromkeys(str(setting["title"]) for setting, _ in read))
    notes = [note for setting, _ in read for note in setting.get("notes", ())]
    pictures = print_results(console, title, [record for _, records in read for record in records], journals[0], notes)
    for machine in dict.fromkeys(_machine(setting) for setting, _ in read):  # where they were measured, not this one
        console.print(machine)
    _say_written(console, pictures)


def _machine(setting: Mapping[str, Any]) -> str:
    return f"{setting.get('processor', 'unknown processor')}, {setting.get('cores', '?')} cores"


def _say_written(console: Console, files: Iterable[Path]) -> None:
    console.print("Written: " + ", ".join(map(str, files)), soft_wrap=True)
