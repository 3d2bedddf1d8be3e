"""When requests come and how long they are: read from text, drawn by seed."""

from pathlib import Path
from random import Random

import pytest

from bench.arrivals import ClosedLoop, Poisson, Replay, Span, TraceLine
from bench.run import parse_arrivals


def test_spans() -> None:
    assert Span.parse("128") == Span(128, 128)
    assert str(Span.parse("64-256")) == "64-256"
    assert {Span(2, 4).draw(Random(seed)) for seed in range(50)} == {2, 3, 4}


@pytest.mark.parametrize("text", ["0", "9-3", "many", ""])
def test_other_spans_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Span.parse(text)


def test_poisson_arrivals_rise_and_have_their_rate() -> None:
    due = Poisson(4.0).due_s(4000, seed=1)
    assert due == sorted(due)
    assert due[-1] == pytest.approx(1000, rel=0.1)
    assert due != Poisson(4.0).due_s(4000, seed=2)


def test_a_trace_begins_with_its_earliest_line(tmp_path: Path) -> None:
    file = tmp_path / "morning.jsonl"
    file.write_text(
        '{"at": 7, "prompt_tokens": 3, "output_tokens": 2}\n{"at": 9.5, "prompt_tokens": 4, "output_tokens": 5}\n'
        '{"at": 6, "prompt_tokens": 1, "output_tokens": 1}\n'
    )
    replay = Replay.read(file)
    assert replay.lines == (TraceLine(1.0, 3, 2), TraceLine(3.5, 4, 5), TraceLine(0.0, 1, 1))
    assert str(replay) == "morning"


@pytest.mark.parametrize("text", ["", "{}", '{"at": 1, "prompt_tokens": 3}', "no json"])
def test_other_traces_are_refused_with_the_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match="bad.jsonl"):
        Replay.read(tmp_path / "bad.jsonl")


def test_arrivals_as_they_are_typed() -> None:
    assert parse_arrivals("closed:3") == ClosedLoop(3)
    assert parse_arrivals("poisson:0.5") == Poisson(0.5)
    for wrong in ("open", "poisson:", "closed:x"):
        with pytest.raises(ValueError):
            parse_arrivals(wrong)
