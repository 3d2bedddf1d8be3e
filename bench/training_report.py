"""The results of `bench training` as Markdown and as a picture.

Owns the arithmetic over seeds and the drawing. Runs nothing. A result is a line of the raw file: group, label, seed,
wall_s, cpu_s and the run's report.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

Result = Mapping[str, Any]

METHOD = "method"
DEFAULT = "LoRA"
DEFAULT_POINTS = {"rank": "16", "targets": "all linear", "learning rate": "5e-4"}
"""The value in each sweep that the default LoRA runs have."""
ORDER = {
    "rank": ("2", "16", "64"),
    "targets": ("q and v", "attention", "MLP", "all linear"),
    "learning rate": ("1e-4", "5e-4", "1e-3", "3e-3"),
}
COLOR = "#2b6a4b"


@dataclass(frozen=True, slots=True)
class Figure:
    """One column: its heading, how it is read from a result, and how it is written."""

    title: str
    read: Callable[[Result], float]
    style: str


def _forgotten(result: Result) -> float:
    loss = result["report"]["general_loss"]
    return float(loss["trained"] - loss["base"])


FIGURES = (
    Figure("task score", lambda result: float(result["report"]["task_score"]["trained"]), "{:.2f}"),
    Figure("held-out loss", lambda result: float(result["report"]["heldout_loss"]["trained"]), "{:.3f}"),
    Figure("forgotten (nats)", _forgotten, "{:+.3f}"),
    Figure("training (s)", lambda result: float(result["report"]["seconds"]), "{:.0f}"),
    Figure("processor (s)", lambda result: float(result["cpu_s"]), "{:.0f}"),
    Figure("peak memory (MB)", lambda result: result["report"]["measured_bytes"] / 1e6, "{:,.0f}"),
    Figure("files (MB)", lambda result: result["report"]["bytes"] / 1e6, "{:,.2f}"),
)


def summary(result: Result) -> str:
    """All figures of a result in one line."""
    return ", ".join(f"{figure.title} {figure.style.format(figure.read(result))}" for figure in FIGURES)


def points(results: Sequence[Result], group: str) -> dict[str, list[Result]]:
    """The results of a group by label, in the order of the table; a sweep holds the default too."""
    found: dict[str, list[Result]] = {label: [] for label in ORDER.get(group, ())}
    for result in results:
        if result["group"] == group:
            found.setdefault(result["label"], []).append(result)
        elif result["group"] == METHOD and result["label"] == DEFAULT and group in DEFAULT_POINTS:
            found[DEFAULT_POINTS[group]].append(result)
    return {label: own for label, own in found.items() if own}


def markdown(results: Sequence[Result], planned: int) -> str:
    """The page: one table a group. Each cell is the mean over seeds, with the least and the most where they differ."""
    first = results[0]
    used, machine = first["report"], first["machine"]
    train, heldout = used["data"]
    lines = [
        "# Methods of training, compared",
        "",
        "`make compare-training` writes this page, the picture and the raw results "
        "([training-compared.jsonl](training-compared.jsonl)); runs that are there already are not made again.",
        "",
        f"{used['base']}; {used['steps']} steps; trained on `{train['path']}`, scored on the {heldout['examples']} "
        f"examples of `{heldout['path']}`. The base scores {used['task_score']['base']:.2f}. "
        f"{machine['processor']}, {machine['cores']} cores. {len(results)} of {planned} runs.",
        "",
        "Figures are means over seeds, with the least and the most in brackets. Forgotten is the rise of the loss "
        "on a general text. Processor time, over all cores, is the whole command's, memory the peak of its process.",
        "",
        *_on_a_busy_machine(results),
        "![The same as a picture](training-compared.png)",
    ]
    for group in (METHOD, *ORDER):
        rows = points(results, group)
        if rows:
            lines += ["", f"## By {group}", "", *_table(group, rows)]
    return "\n".join(lines) + "\n"


def _on_a_busy_machine(results: Sequence[Result]) -> list[str]:
    """A warning about the figures of time, where other work shared the cores."""
    loads = [float(result["machine"]["load"]) for result in results]
    cores = int(results[0]["machine"]["cores"])
    if max(loads) <= 2 * cores:
        return []
    return [
        f"**The machine was busy**: its load average was {min(loads):.0f} to {max(loads):.0f} on {cores} cores as runs "
        "ended. The seconds of training tell more about that than about the methods, processor time less so; "
        "scores, losses and bytes do not depend on it.",
        "",
    ]


def _table(group: str, rows: Mapping[str, Sequence[Result]]) -> list[str]:
    titles = [group, "seeds", *(figure.title for figure in FIGURES)]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for label, own in rows.items():
        cells = [_cell(figure, [figure.read(result) for result in own]) for figure in FIGURES]
        lines.append(f"| {label} | {len(own)} | {' | '.join(cells)} |")
    return lines


def _cell(figure: Figure, values: Sequence[float]) -> str:
    middle, least, most = (figure.style.format(value) for value in (mean(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least} to {most})"


def write(folder: Path, results: Sequence[Result], planned: int) -> list[Path]:
    """The page and the picture; returns their paths."""
    page, picture = folder / "training-compared.md", folder / "training-compared.png"
    page.write_text(markdown(results, planned), encoding="utf-8")
    draw(results, picture)
    return [page, picture]


def draw(results: Sequence[Result], path: Path) -> None:
    """Above, the methods by five figures; below, score and forgetting over each sweep. A dot is a run, a bar a mean."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(13, 7.5), dpi=120, layout="constrained")
    halves: Any = canvas.subfigures(2, 1)
    above, below = halves
    shown = [figure for figure in FIGURES if figure.title != "held-out loss"]
    for axes, figure in zip(above.subplots(1, len(shown)), shown, strict=True):
        _bars(axes, points(results, METHOD), figure)
    grid = below.subplots(2, len(ORDER), sharex="col")
    for column, group in enumerate(ORDER):
        for row, figure in enumerate((FIGURES[0], FIGURES[2])):
            _bars(grid[row][column], points(results, group), figure, title=column == 0)
        grid[1][column].set_xlabel(group)
    canvas.savefig(path)


def _bars(axes: Any, rows: Mapping[str, Sequence[Result]], figure: Figure, *, title: bool = True) -> None:
    for place, own in enumerate(rows.values()):
        values = [figure.read(result) for result in own]
        axes.bar(place, mean(values), 0.7, color=COLOR, alpha=0.35)
        axes.plot([place] * len(values), values, "o", color=COLOR, markersize=4)
    axes.set_xticks(range(len(rows)), [label.replace(" (", "\n(") for label in rows], fontsize=7)
    if title:
        axes.set_title(figure.title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", labelsize=8)
