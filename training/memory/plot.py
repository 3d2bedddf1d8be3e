"""A plan and its alternatives as stacked bars.

Owns the picture. matplotlib is imported when one is drawn.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from training.errors import MissingExtra
from training.memory.plan import TrainingMemoryPlan

GB = 1e9
TITLE = 90
"""Characters of the title in a line: a longer line would leave the picture."""
COLOURS, GREY = 10, "0.2"
"""matplotlib has ten colours; the parts that come last are the smallest, and are one grey."""


def draw(plans: Sequence[tuple[str, TrainingMemoryPlan]], limit: int | None, title: str, path: Path) -> None:
    """One bar for each named plan, with a line at `limit` bytes; written as PNG. Raises MissingExtra."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("Drawing needs matplotlib. In the clone: pip install -e '.[train]'") from error
    figure = Figure(figsize=(9, 0.55 * len(plans) + 1.8), layout="constrained")
    axes = figure.add_subplot()
    names = [name for name, _ in plans]
    left = [0.0] * len(plans)
    for drawn, part in enumerate(dict.fromkeys(row.name for _, plan in plans for row in plan.rows)):
        widths = [plan.bytes_of(part) / GB for _, plan in plans]
        axes.barh(names, widths, left=left, label=part, color=f"C{drawn}" if drawn < COLOURS else GREY)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for at, total in enumerate(left):
        axes.annotate(f" {total:.1f}", (total, at), va="center")
    if limit is not None:
        axes.axvline(limit / GB, color="black", linestyle="--", linewidth=1)
        axes.annotate(f"{limit / GB:g} GB", (limit / GB, -0.5), (3, -12), textcoords="offset points")
    axes.invert_yaxis()
    axes.set_xlabel("GB (1e9 bytes) at the peak")
    axes.set_xlim(0, 1.15 * max([*left, (limit or 0) / GB]))
    figure.suptitle("\n".join(textwrap.wrap(title, TITLE)), fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, format="png", dpi=150)
