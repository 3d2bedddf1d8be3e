"""The eval file that a version may carry, and its latest score on one: rows within a session.

Owns those two tables and the comparison of scores. The file is opaque here: what its lines mean, and how a score is
measured, is known where there is an engine.
"""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from adapters.database import FEW
from adapters.tables import EvalFileRow, ScoreRow

EVAL_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class EvalFile:
    """`content` is JSONL."""

    sha256: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Score:
    """How a version did on the eval file with this `sha256`, served on `base`.

    `mean_logprob` is `log p(completion | prompt)` over all completions, in nats per token; `exact` the share of rows
    whose completion is what greedy decoding gives, token by token.
    """

    sha256: str
    base: str
    mean_logprob: float
    exact: float
    rows: int
    tokens: int

    def regresses(self, before: "Score", tolerance: float) -> bool:
        """Whether it is worse than `before`, on the same file, by more than `tolerance` nats per token."""
        assert (self.sha256, self.base) == (before.sha256, before.base), "scores compare on one file and one base"
        return self.mean_logprob < before.mean_logprob - tolerance


def attach(session: Session, name: str, number: int, content: bytes) -> None:
    """Give a version its eval file, in place of one that it had."""
    sha256 = hashlib.sha256(content).hexdigest()
    session.merge(EvalFileRow(name=name, number=number, sha256=sha256, content=content))
    session.flush()


def carried(session: Session, name: str, number: int) -> EvalFile | None:
    row = session.get(EvalFileRow, (name, number))
    return None if row is None else EvalFile(row.sha256, row.content)


def remember(session: Session, name: str, number: int, score: Score) -> None:
    """The latest score takes the place of the one before."""
    session.merge(
        ScoreRow(
            name=name,
            number=number,
            sha256=score.sha256,
            base=score.base,
            mean_logprob=score.mean_logprob,
            exact=score.exact,
            rows=score.rows,
            tokens=score.tokens,
        )
    )
    session.flush()


def scores(session: Session, names: Set[str]) -> Mapping[tuple[str, int], Score]:
    """The latest score of each version that has one, by name and number."""
    query = select(ScoreRow).where(ScoreRow.name.in_(names)) if len(names) <= FEW else select(ScoreRow)
    return {
        (row.name, row.number): Score(row.sha256, row.base, row.mean_logprob, row.exact, row.rows, row.tokens)
        for row in session.scalars(query)
    }
