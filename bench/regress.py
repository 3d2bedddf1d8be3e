"""`rootstock bench regress OLD_COMMIT [NEW_COMMIT]`: one against the other, by ratios from one interleaved run.

Owns the worktrees and the verdict. Each commit's server runs from its own sources, in this environment. In results the
old one is called base and the new one head, as in a pull request.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.table import Table

from bench import launch, make_adapters, options, weight_shapes
from bench.arrivals import Span
from bench.compare import comparison_cells
from bench.errors import BenchError
from bench.measure import Record
from bench.report import ratios
from bench.session import Session, run_session
from bench.terminal import terminal

SERVE = "import sys; from server.cli import main; sys.argv[0] = 'rootstock'; main()"
SIDES = ("base", "head")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The new commit over the old one in throughput for one traffic: the rounds' own ratios, sorted."""

    traffic: str
    arrivals: str
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.ratios)


def verdicts(records: Sequence[Record]) -> list[Verdict]:
    """One for each traffic that both sides were measured at."""
    kinds = dict.fromkeys((record.traffic, record.arrivals) for record in records)
    found = []
    for traffic, arrivals in kinds:
        base, head = (
            [one for one in records if (one.server, one.traffic, one.arrivals) == (side, traffic, arrivals)]
            for side in SIDES
        )
        if own := ratios(head, base):
            found.append(Verdict(traffic, arrivals, tuple(sorted(own))))
    return found


@contextmanager
def worktree(repository: Path, commit: str, target: Path) -> Iterator[Path]:
    """The sources of `commit` in `target` until the block ends. Raises BenchError with git's reason."""
    _git(repository, "worktree", "add", "--detach", "--force", str(target), commit)
    try:
        yield target
    finally:
        _git(repository, "worktree", "remove", "--force", str(target))


def _git(repository: Path, *arguments: str) -> str:
    ended = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True)
    if ended.returncode:
        raise BenchError(f"git {' '.join(arguments)}: {ended.stderr.strip()}")
    return ended.stdout.strip()


def serve_command(sources: Path) -> list[str]:
    """A command that runs as `rootstock` with the sources in that folder, in preference to those that are installed."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(sources)!r}); {SERVE}"]


def table(found: Sequence[Verdict], threshold: float) -> Table:
    result = Table(title=f"head over base, threshold {threshold:.2f}")
    for column in ("traffic", "arrivals"):
        result.add_column(column)
    for column in ("median", "lowest to highest"):
        result.add_column(column, justify="right")
    for one in found:
        style = "red" if one.median < threshold else "green"
        spread = f"{one.ratios[0]:.3f} to {one.ratios[-1]:.3f}"
        result.add_row(one.traffic, one.arrivals, f"[{style}]{one.median:.3f}[/{style}]", spread)
    return result


def main(
    base: Annotated[str, typer.Argument(metavar="OLD_COMMIT", help="The commit to compare with.")],
    head: Annotated[str, typer.Argument(metavar="NEW_COMMIT", help="The commit to judge.")] = "HEAD",
    threshold: Annotated[
        float, typer.Option(min=0, help="Fail where the new one's median throughput over the old one's is below it.")
    ] = 0.95,
    repository: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="A clone that has both commits.")
    ] = Path(),
    serve_flags: options.ServeFlags = "",
    rounds: options.Rounds = 5,
    concurrency: Annotated[list[int] | None, options.several_clients("1, 8")] = None,
    per_client: options.PerClient = 1,
    prompt_tokens: options.PromptTokens = 128,
    output_tokens: options.OutputTokens = 64,
    adapters: options.Adapters = 8,
    rank: options.Rank = 16,
    model: options.BaseModel = "embedded",
    work_dir: options.WorkDir = options.WORK_DIR,
) -> None:
    """Serve two commits side by side, measure them in turn, and fail where the new one is slower than allowed."""
    console, commits = terminal(), {}
    with ExitStack() as stack:
        servers = {}
        for side, commit in zip(SIDES, (base, head), strict=True):
            commits[side] = _git(repository, "rev-parse", "--short", f"{commit}^{{commit}}")
            sources = stack.enter_context(worktree(repository, commits[side], work_dir.resolve() / f"regress-{side}"))
            flags = launch.flags(model, serve_flags)
            servers[side] = stack.enter_context(
                launch.serve(work_dir.resolve() / f"{side}-data", flags, serve_command(sources))
            )
        directory = options.known_base(servers["head"].base, options.FOR_ADAPTERS)
        written = make_adapters.write(directory, work_dir / "adapters", count=adapters, rank=rank)
        targets = [launch.target(side, server, written) for side, server in servers.items()]
        spans = Span(prompt_tokens, prompt_tokens), Span(output_tokens, output_tokens)
        cells = comparison_cells(concurrency or [1, 8], per_client, *spans, adapters, rank)
        title = f"{commits['base']} against {commits['head']}, {prompt_tokens} prompt and {output_tokens} output tokens"
        session = Session("regress", title, work_dir, rounds, weight_shapes.vocab_size(directory))
        found = verdicts(run_session(console, session, targets, cells))
    console.print(table(found, threshold))
    if any(one.median < threshold for one in found):
        raise typer.Exit(1)
