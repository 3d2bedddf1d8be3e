"""metrics.jsonl after a kill: whole lines only, and none from after the checkpoint."""

from pathlib import Path

from training.metrics_file import MetricsFile


def test_a_resumed_run_forgets_what_came_after_its_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    for number in range(1, 6):
        metrics.append({"step": number, "loss": 1.0})
    with metrics.path.open("a") as file:
        file.write('{"step": 6, "lo')
    metrics.rewind(3)
    metrics.append({"step": 4, "loss": 2.0})
    assert [record["step"] for record in metrics.records()] == [1, 2, 3, 4]
    assert metrics.path.read_text().endswith("}\n")
