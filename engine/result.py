"""What a forward pass says about each chunk of its plan, as plain data.

Owns the seam between the runner, which computes, and the engine, which decides what it means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adapters.manifest import AdapterId
from engine.scheduler import StepPlan
from engine.sequence import TokenLogprob


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """`token` is the next token where the chunk catches up, `logprob` its report if it was asked for.

    `prompt` reports the prompt tokens that follow each computed one. `finite` is false where the chunk's logits are
    not, and `stuck` true where its constraint failed; then there is no token.
    """

    token: int | None = None
    logprob: TokenLogprob | None = None
    prompt: tuple[TokenLogprob, ...] = ()
    finite: bool = True
    stuck: bool = False


class Runner(Protocol):
    """Computes a plan. Results come in the order of the plan's chunks."""

    def execute(self, plan: StepPlan) -> Sequence[ChunkResult]: ...

    def merge(self, adapter: AdapterId) -> None:
        """Serve a placed adapter from merged weights of its own. Raises loader's DoesNotFit, with numbers."""

    def unmerge(self) -> None:
        """Drop the merged weights."""
