"""The card (README.md) of a finished run: what was gained, what was lost, and how it was made.

Owns the text, in Markdown with the metadata block that model hubs read. Computes nothing: every figure is the report's,
and a figure that was not measured is marked as such.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from loader.memory import format_bytes
from training.config import TrainConfig
from training.report import BeforeAfter, Parity, Report, Sample

METHODS = {
    "full": "full fine-tune",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "dora": "DoRA",
    "qdora": "QDoRA",
}
OBJECTIVES = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimization",
    "reward": "a reward model",
    "grpo": "group-relative policy optimization",
    "rloo": "REINFORCE leave-one-out",
}
SCORES = {
    "exact": "share of greedy answers that are exactly the expected text",
    "json": "share of greedy answers that are, as a whole, JSON with exactly the expected value",
    "contains": "share of greedy answers that hold all the words asked for",
}
NOT_MEASURED = "not measured"
_REINFORCED = (
    ("mean reward of sampled answers", "eval_reward", "base_reward"),
    ("divergence from the base, nats per token", "eval_kl", 0.0),
    ("mean length of the answers, tokens", "eval_completions/mean_length", None),
)
FIGURES: Mapping[str, Sequence[tuple[str, str, str | float | None]]] = {
    "dpo": (
        ("share of pairs whose preferred answer gained the more likelihood", "eval_rewards/accuracies", None),
        ("mean margin, beta times nats", "eval_rewards/margins", 0.0),
    ),
    "reward": (("share of pairs whose preferred answer scores higher", "heldout_accuracy", None),),
    "grpo": _REINFORCED,
    "rloo": _REINFORCED,
}
"""The held-out figures of each objective: description, the metric of the trained model, and that of the base, which is
also a metric's name, a known value, or None where the base has no such figure."""


def card(report: Report, config: TrainConfig) -> str:
    """The whole README.md."""
    return "\n".join(
        [
            _metadata(report, config),
            f"# {config.output.name}",
            "",
            _opening(report, config),
            "",
            *_section("What was gained", _gained(report, config)),
            *_section("What was lost", _lost(report)),
            *_section("As it is served", _served(report.parity)),
            *_section("Answers", _answers(report.samples)),
            *_section("How it was made", _how_made(report, config)),
            *_section("Data", _data(report)),
            *_section("Config", _config(config)),
        ]
    )


def _metadata(report: Report, config: TrainConfig) -> str:
    """The YAML block that model hubs read."""
    values: dict[str, Any] = {"base_model": report.base, "pipeline_tag": "text-generation", "tags": _tags(report)}
    if report.method != "full" and report.objective != "reward":
        values["library_name"] = "peft"
    else:
        values["library_name"] = "transformers"
    if report.objective == "reward":
        values["pipeline_tag"] = "text-classification"
    results = _model_index(report, config)
    if results:
        values["model-index"] = results
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


def _tags(report: Report) -> list[str]:
    kind = [] if report.method == "full" else [report.method]
    return ["rootstock", *kind, report.objective]


def _model_index(report: Report, config: TrainConfig) -> list[dict[str, Any]]:
    """The task score in the hub's format for evaluation results; empty where none was measured."""
    if report.task_score is None or config.score is None:
        return []
    metric = {"type": config.score.metric, "value": round(report.task_score.trained, 4), "name": "held-out score"}
    dataset = {"name": report.data[-1].path, "type": "held-out"}
    result = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": [metric]}
    return [{"name": config.output.name, "results": [result]}]


def _opening(report: Report, config: TrainConfig) -> str:
    what = f"{METHODS[report.method]} of {report.base}" + (f" in {report.quantization}" if report.quantization else "")
    about = "" if config.about is None else f"{config.about.strip()} "
    return f"{about}A {what}, made by {OBJECTIVES[report.objective]}; {report.bytes:,} bytes."


def _section(title: str, lines: Iterator[str]) -> list[str]:
    """A heading and its text; nothing where there are no lines."""
    body = list(lines)
    return [f"## {title}", "", *body, ""] if body else []


def _gained(report: Report, config: TrainConfig) -> Iterator[str]:
    heldout = report.data[-1] if report.data else None
    examples = f"{heldout.examples} held-out examples" if heldout else "No held-out examples"
    yield f"{examples}, none of them trained on; the base beside it."
    yield ""
    yield "| | base | trained |"
    yield "|---|---|---|"
    if report.objective == "sft":
        yield _row("score", report.task_score, ".3f")
        yield _row("loss, nats per token that counts", report.heldout_loss, ".4f")
    for name, trained, base in FIGURES.get(report.objective, ()):
        yield _metric_row(
            name, report.metrics.get(base) if isinstance(base, str) else base, report.metrics.get(trained)
        )
    if report.task_score is not None and config.score is not None:
        yield ""
        held = "" if not config.score.words else f" ({', '.join(config.score.words)})"
        yield (
            f"Score: {SCORES[config.score.metric]}{held}, cut at {config.score.max_new_tokens} tokens; "
            f"of the first {config.score.limit} examples at most."
        )


def _lost(report: Report) -> Iterator[str]:
    loss = report.general_loss
    if loss is None:
        yield f"Loss on general text: {NOT_MEASURED}."
        return
    change = loss.trained - loss.base
    yield "| | base | trained | change |"
    yield "|---|---|---|---|"
    yield f"| loss on a general text, nats per token | {loss.base:.4f} | {loss.trained:.4f} | {change:+.4f} |"
    yield ""
    yield (
        "The general text is a fixed one on varied subjects, which has nothing to do with the task "
        f"(`training/general.txt` in Rootstock). {_forgetting(change)}"
    )


def _forgetting(change: float) -> str:
    if change <= 0:
        return "The trained model predicts it no worse than the base: by this measure nothing was forgotten."
    return f"A rise is what was forgotten: each token of it became {change:.4f} nats less expected."


def _row(name: str, figure: BeforeAfter | None, style: str) -> str:
    if figure is None:
        return f"| {name} | {NOT_MEASURED} | {NOT_MEASURED} |"
    return f"| {name} | {figure.base:{style}} | {figure.trained:{style}} |"


def _metric_row(name: str, base: float | None, trained: float | None) -> str:
    cells = (NOT_MEASURED if figure is None else f"{figure:.3f}" for figure in (base, trained))
    return f"| {name} | {' | '.join(cells)} |"


def _served(parity: Parity | None) -> Iterator[str]:
    if parity is None:
        yield f"The serving path against the trainer: {NOT_MEASURED}."
        return
    where = parity.dtype + (f", base in {parity.quantization}" if parity.quantization else "")
    yield (
        f"The serving path ({where}) differs from the trainer's log-probabilities by {parity.mean:.2g} nats on average "
        f"and {parity.largest:.2g} at most, over {parity.positions} held-out positions. The bound on the average is "
        f"{parity.bound:.2g}: {'passed' if parity.passed else 'NOT passed'}. What was trained moves them by "
        f"{parity.effect:.2g} on average."
    )


def _answers(samples: Sequence[Sample]) -> Iterator[str]:
    """Samples verbatim in code fences, since a model's answer may contain any Markdown."""
    for index, sample in enumerate(samples):
        yield from ([""] if index else [])
        yield _fenced(sample.prompt)
        yield ""
        for name, text in (("expected", sample.expected), ("base", sample.base), ("trained", sample.trained)):
            wrong = " (counted as wrong)" if name == "trained" and not sample.right else ""
            yield f"{name}{wrong}:"
            yield ""
            yield _fenced(text)
            yield ""


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _how_made(report: Report, config: TrainConfig) -> Iterator[str]:
    error = report.measured_bytes / report.predicted_bytes - 1 if report.predicted_bytes else None
    yield "| | |"
    yield "|---|---|"
    yield f"| base | {report.base} |"
    yield f"| base weights | `{report.base_weights}` |"
    yield f"| base while training | {report.quantization or 'not quantized'}, products in {report.precision} |"
    yield f"| device | {report.device} |"
    yield f"| steps | {report.steps} of {config.steps.batch} examples |"
    yield f"| tokens | {report.tokens:,} |"
    yield f"| time | {report.seconds:.0f} s |"
    yield f"| trainable parameters | {report.trainable:,} |"
    yield f"| memory, predicted | {format_bytes(report.predicted_bytes)} |"
    measured = format_bytes(report.measured_bytes)
    yield f"| memory, measured | {measured}{'' if error is None else f' ({error:+.0%})'} |"
    for name, value in sorted(report.metrics.items()):
        yield f"| {name} | {value:.6g} |"


def _data(report: Report) -> Iterator[str]:
    yield "| file | examples | tokens | cut | sha256 |"
    yield "|---|---|---|---|---|"
    for used in report.data:
        yield f"| `{used.path}` | {used.examples} | {used.tokens:,} | {used.truncated} | `{used.sha256}` |"


def _config(config: TrainConfig) -> Iterator[str]:
    """The settings that differ from the defaults, as a config that trains it again; `push` is private."""
    yield "What differs from the defaults; `rootstock train` with this and the same data makes it again."
    yield ""
    yield f"```yaml\n{yaml.safe_dump(_changed_settings(config), sort_keys=False, allow_unicode=True)}```"


def _changed_settings(config: TrainConfig) -> Mapping[str, Any]:
    values: dict[str, Any] = json.loads(config.model_dump_json(exclude_defaults=True, exclude={"push"}))
    return values
