"""curves.png: over the steps, the loss or reward in training and held out, a second figure, and the learning rate.

Owns the picture. Draws the records of training/metrics_file.py; imports no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

TRAINED, HELD_OUT, MUTED = "#1f6f8b", "#d1495b", "#8d99ae"
SMOOTHING = 20
"""The smoothed line is the mean over a window of this fraction of the run: a 20th."""

SECOND_FIGURE = {
    "rewards/accuracies": "preferred first",
    "accuracy": "preferred first",
    "kl": "KL from the base",
}
"""What is drawn under the loss or the reward where it is recorded: the share of pairs whose preferred answer has the
higher score, or how far sampled answers are from the base's."""

Record = Mapping[str, float]


def draw(records: Sequence[Record], path: Path, title: str) -> None:
    """Write the curves of a run's metrics. Without steps there is nothing to draw, and nothing is written."""
    steps = [record for record in records if "loss" in record]
    if not steps:
        return
    second = next((name for name in SECOND_FIGURE if name in steps[-1]), None)
    figure = Figure(figsize=(8, 5 if second is None else 6), dpi=120, layout="constrained")
    ratios = (4, 1) if second is None else (4, 2, 1)
    panels = list(figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios))
    above, below = panels[0], panels[-1]
    main = "reward" if "reward" in steps[-1] else "loss"
    _plot_figure(above, records, steps, main)
    above.set_ylabel("loss (nats a token)" if main == "loss" and second is None else main)
    above.legend(frameon=False)
    if second is not None:
        _plot_figure(panels[1], records, steps, second)
        panels[1].set_ylabel(SECOND_FIGURE[second])
    above.set_title(title, loc="left", fontsize=10)
    below.plot(*zip(*_points(steps, "learning_rate"), strict=True), color=MUTED)
    below.set_ylabel("learning rate", fontsize=8)
    below.set_xlabel("step")
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path)


def _plot_figure(axes: Axes, records: Sequence[Record], steps: Sequence[Record], name: str) -> None:
    """Plot a figure in training and, where it was evaluated, on held-out data."""
    _curve(axes, [record for record in steps if name in record], name)
    evaluated = _points(records, f"eval_{name}")
    if evaluated:
        axes.plot(*zip(*evaluated, strict=True), "o-", color=HELD_OUT, markersize=4, label="held out")


def _curve(axes: Axes, steps: Sequence[Record], name: str) -> None:
    points = _points(steps, name)
    window = max(1, len(points) // SMOOTHING)
    if window == 1:
        axes.plot(*zip(*points, strict=True), color=TRAINED, label="training")
        return
    axes.plot(*zip(*points, strict=True), color=TRAINED, alpha=0.3, linewidth=0.8)
    smooth = [
        (step, _mean(value for _, value in points[max(0, at + 1 - window) : at + 1]))
        for at, (step, _) in enumerate(points)
    ]
    axes.plot(*zip(*smooth, strict=True), color=TRAINED, label=f"training, mean of {window} steps")


def _points(records: Iterable[Record], name: str) -> list[tuple[float, float]]:
    return [(record["step"], record[name]) for record in records if name in record]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
