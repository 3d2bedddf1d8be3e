"""What a comparison measured, as a table, as JSON and as a picture.

Owns the arithmetic of medians and percentiles. Measures nothing itself.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson
from rich.table import Table

from bench.load import Run


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of traffic on one server over all rounds. Rates are tokens per second, latencies milliseconds."""

    server: str
    traffic: str
    tokens_per_s: float
    slowest: float
    fastest: float
    of_base: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    itl_p50_ms: float
    itl_p95_ms: float
    itl_p99_ms: float


def rows(runs: dict[tuple[str, str], list[Run]], base: str) -> list[Row]:
    """One row for each (server, traffic). `of_base` compares with the traffic named `base` on the same server."""
    return [_row(server, traffic, measured, runs[server, base]) for (server, traffic), measured in runs.items()]


def _row(server: str, traffic: str, runs: Sequence[Run], base: Sequence[Run]) -> Row:
    rates = [run.tokens_per_s for run in runs]
    ttft_ms = [1e3 * trace.ttft_s for run in runs for trace in run.traces]
    gaps_ms = [1e3 * gap for run in runs for trace in run.traces for gap in trace.gaps_s]
    return Row(
        server=server,
        traffic=traffic,
        tokens_per_s=median(rates),
        slowest=min(rates),
        fastest=max(rates),
        of_base=_paired_ratio(runs, base),
        ttft_p50_ms=_percentile(ttft_ms, 50),
        ttft_p95_ms=_percentile(ttft_ms, 95),
        itl_p50_ms=_percentile(gaps_ms, 50),
        itl_p95_ms=_percentile(gaps_ms, 95),
        itl_p99_ms=_percentile(gaps_ms, 99),
    )


def _paired_ratio(runs: Sequence[Run], base: Sequence[Run]) -> float:
    """The median over rounds of each round's own ratio, since a machine drifts less within a round than between."""
    return median(run.tokens_per_s / other.tokens_per_s for run, other in zip(runs, base, strict=True))


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")


def table(title: str, measured: Sequence[Row]) -> Table:
    result = Table(title=title)
    for column in ("server", "traffic"):
        result.add_column(column)
    for column in ("tok/s", "min to max", "of base", "TTFT p50", "p95", "ITL p50", "p95", "p99"):
        result.add_column(column, justify="right")
    for row in measured:
        latencies = (row.ttft_p50_ms, row.ttft_p95_ms, row.itl_p50_ms, row.itl_p95_ms, row.itl_p99_ms)
        result.add_row(
            row.server,
            row.traffic,
            f"{row.tokens_per_s:.1f}",
            f"{row.slowest:.1f} to {row.fastest:.1f}",
            f"{row.of_base:.2f}",
            *(f"{latency:.0f} ms" for latency in latencies),
        )
    return result


def machine() -> dict[str, Any]:
    """What the numbers depend on. `load` is the machine's one-minute load average before the first request."""
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


def write_json(file: Path, setting: dict[str, Any], measured: Sequence[Row]) -> None:
    document = {"setting": setting, "rows": [asdict(row) for row in measured]}
    file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def write_plot(file: Path, title: str, measured: Sequence[Row]) -> None:
    """Bars of output tokens per second by traffic, one colour a server, whiskers from slowest to fastest round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    servers = list(dict.fromkeys(row.server for row in measured))
    traffics = list(dict.fromkeys(row.traffic for row in measured))
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    width = 0.8 / len(servers)
    for index, server in enumerate(servers):
        own = [row for row in measured if row.server == server]
        places = [traffics.index(row.traffic) + (index - (len(servers) - 1) / 2) * width for row in own]
        whiskers = [
            [row.tokens_per_s - row.slowest for row in own],
            [row.fastest - row.tokens_per_s for row in own],
        ]
        bars = axes.bar(places, [row.tokens_per_s for row in own], width * 0.95, yerr=whiskers, capsize=3, label=server)
        axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xticks(range(len(traffics)), traffics)
    axes.set_ylabel("output tokens per second")
    axes.set_title(title, fontsize=9)  # it says the whole setting: smaller than usual, or it is cut off
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
