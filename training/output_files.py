"""The files beside the weights in an output folder: card, report, config, metrics and curves.

Owns their names. Computes nothing.
"""

import json
import shutil

import yaml

from training import curves
from training.card import card
from training.config import TrainConfig
from training.metrics_file import MetricsFile
from training.report import Report
from training.workdir import TENSORBOARD, Workdir


def write_output_files(report: Report, config: TrainConfig, work: Workdir) -> None:
    """Write all of them into `work.result`."""
    folder = work.result
    (folder / "README.md").write_text(card(report, config), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    settings = config.model_dump(mode="json", exclude_none=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    events = work.path / TENSORBOARD
    if events.exists():
        shutil.copytree(events, folder / events.name)
    metrics = MetricsFile(work.path)
    if metrics.path.exists():
        shutil.copyfile(metrics.path, folder / metrics.path.name)
        title = f"{config.output.name}: {config.objective}, {config.method} on {report.base}"
        curves.draw(list(metrics.records()), folder / "curves.png", title)
