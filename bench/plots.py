"""The pictures of a run: throughput by adapters, latency percentiles, the tax by rank, memory.

Owns the drawing. matplotlib is imported when something is drawn, and only then.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 0.8
"""Of a group of bars, where 1 is the distance from one group to the next."""
INCHES_A_ROW = 0.17
INCHES_A_GROUP = 1.0
SMALLEST = (8.0, 4.5)
"""Inches; a picture grows with what it shows."""


def write(directory: Path, stem: str, title: str, rows: Sequence[Row]) -> list[Path]:
    """Draw what `rows` can show as `directory/STEM-….png`; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    size = (
        max(SMALLEST[0], INCHES_A_GROUP * len({(row.traffic, row.arrivals) for row in rows})),
        max(SMALLEST[1], INCHES_A_ROW * len(rows)),
    )
    for name, columns, draw in _pictures(rows):
        figure, axes = pyplot.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)
        for each in axes.flat:
            each.spines[["top", "right"]].set_visible(False)
        draw(list(axes.flat), rows)
        figure.suptitle(title, fontsize=9)  # long titles would be cut off at the usual size
        written.append(directory / f"{stem}-{name}.png")
        figure.savefig(written[-1], dpi=150)
        pyplot.close(figure)
    return written


def _pictures(rows: Sequence[Row]) -> Iterator[tuple[str, int, Callable[[list["Axes"], Sequence[Row]], None]]]:
    """Name, number of axes and drawing of each picture for which there is something to draw."""
    if rows:
        yield "throughput", 1, _throughput
        yield "latency", 2, _latency
    if len({row.rank for row in rows if row.adapters}) > 1:
        yield "tax", 1, _tax
    if any(row.rss_bytes for row in rows):
        yield "memory", 1, _memory


def _throughput(axes: list["Axes"], rows: Sequence[Row]) -> None:
    """Bars of output tokens per second, one colour a server, whiskers from slowest to fastest round."""
    groups = list(dict.fromkeys((row.traffic, row.arrivals) for row in rows))
    _bars(
        axes[0],
        [f"{traffic}\n{arrivals}" for traffic, arrivals in groups],
        {
            server: {groups.index((row.traffic, row.arrivals)): row for row in rows if row.server == server}
            for server in _servers(rows)
        },
    )
    axes[0].set_ylabel("output tokens per second")


def _bars(axes: "Axes", labels: Sequence[str], series: dict[str, dict[int, Row]]) -> None:
    width = WIDTH / len(series)
    for index, (server, own) in enumerate(series.items()):
        places = [group + (index - (len(series) - 1) / 2) * width for group in own]
        whiskers = [
            [row.tokens_per_s - row.slowest for row in own.values()],
            [row.fastest - row.tokens_per_s for row in own.values()],
        ]
        rates = [row.tokens_per_s for row in own.values()]
        bars = axes.bar(places, rates, width * 0.95, yerr=whiskers, capsize=2, label=server)
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=6)
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.legend(frameon=False, fontsize=7)


def _latency(axes: list["Axes"], rows: Sequence[Row]) -> None:
    """From the median over the 95th to the 99th percentile, to the first token on the left, between tokens right."""
    labels = [f"{row.server}, {row.traffic}, {row.arrivals}" for row in rows]
    values = (
        ("ms to the first token", [(row.ttft_p50_ms, row.ttft_p95_ms, row.ttft_p99_ms) for row in rows]),
        ("ms between tokens", [(row.itl_p50_ms, row.itl_p95_ms, row.itl_p99_ms) for row in rows]),
    )
    for place, (label, percentiles) in zip(axes, values, strict=True):
        for index, (low, middle, high) in enumerate(percentiles):
            place.plot([low, middle, high], [index] * 3, "-", color="tab:gray", linewidth=1)
            for value, marker in ((low, "o"), (middle, "|"), (high, ">")):
                place.plot(value, index, marker, color="tab:blue", markersize=5)
        place.set_xlabel(f"{label}: p50 o, p95 |, p99 >")
        place.set_yticks(range(len(labels)), labels, fontsize=6)
        place.invert_yaxis()
    axes[1].set_yticklabels([])


def _tax(axes: list["Axes"], rows: Sequence[Row]) -> None:
    """Throughput over the same server's base throughput, by the rank of the adapters."""
    lines = dict.fromkeys((row.server, row.adapters, row.mix, row.arrivals) for row in rows if row.adapters)
    for line in lines:
        own = sorted((row for row in rows if (row.server, row.adapters, row.mix, row.arrivals) == line), key=_rank)
        server, adapters, mix, arrivals = line
        axes[0].plot(
            [row.rank for row in own],
            [row.of_base for row in own],
            "o-",
            label=f"{server}, {adapters} {mix}, {arrivals}",
        )
    axes[0].set_xscale("log", base=2)
    axes[0].set_xlabel("rank")
    axes[0].set_ylabel("throughput, base = 1")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=7)


def _memory(axes: list["Axes"], rows: Sequence[Row]) -> None:
    """The most that each server's processes held in any measurement."""
    servers = _servers(rows)
    held = [max(row.rss_bytes for row in rows if row.server == server) / 2**20 for server in servers]
    bars = axes[0].bar(servers, held)
    axes[0].bar_label(bars, fmt="%.0f", padding=3)
    axes[0].set_ylabel("MiB resident")


def _servers(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.server for row in rows))


def _rank(row: Row) -> int:
    return row.rank
