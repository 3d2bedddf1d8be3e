"""curves.png: the loss over the steps, in training and held out, with the learning rate beneath.

Owns the picture. Reads what training/watch.py recorded; imports no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

TRAINED, HELD_OUT, QUIET = "#1f6f8b", "#d1495b", "#8d99ae"
SMOOTHED = 20
"""The smoothed line is a mean over the last so many parts of the run."""

Record = Mapping[str, float]


def draw(records: Sequence[Record], path: Path, title: str) -> None:
    """Write the curves of a run's metrics. Without steps there is nothing to draw, and nothing is written."""
    steps = [record for record in records if "loss" in record]
    if not steps:
        return
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    reward = [record for record in steps if "reward" in record]
    _curve(above, reward or steps, "reward" if reward else "loss")
    held_out = "eval_reward" if reward else "eval_loss"
    evaluated = _points(records, held_out)
    if evaluated:
        above.plot(*zip(*evaluated, strict=True), "o-", color=HELD_OUT, markersize=4, label="held out")
    above.set_ylabel("reward" if reward else "loss (nats a token)" if _is_sft(steps) else "loss")
    above.legend(frameon=False)
    above.set_title(title, loc="left", fontsize=10)
    below.plot(*zip(*_points(steps, "learning_rate"), strict=True), color=QUIET)
    below.set_ylabel("learning rate", fontsize=8)
    below.set_xlabel("step")
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path)


def _curve(axes: Axes, steps: Sequence[Record], name: str) -> None:
    points = _points(steps, name)
    window = max(1, len(points) // SMOOTHED)
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


def _is_sft(steps: Sequence[Record]) -> bool:
    return "mean_token_accuracy" in steps[-1]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
