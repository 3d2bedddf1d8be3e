"""The process in which forms are tried: it answers in order, ends with what is too much, and is there again."""

import gc
import os
import signal
import weakref

import pytest

from server.grammars.trial import Trial, Unreadable


def pid_of(trial: Trial) -> int:
    assert trial._process is not None
    return trial._process.pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_process_answers_one_after_the_other() -> None:
    trial = Trial()
    assert "a+" in trial("regex", "a+")
    first = pid_of(trial)
    with pytest.raises(Unreadable, match="unclosed"):
        trial("regex", "(")
    assert trial("choice", ["x", "y"]) and pid_of(trial) == first
    with pytest.raises(Unreadable, match="time or memory"):
        trial("regex", ".*" * 20_000)
    assert not alive(first)
    assert trial("regex", "b") and pid_of(trial) != first


def test_one_that_was_killed_meanwhile_is_replaced() -> None:
    trial = Trial()
    trial("regex", "a")
    assert trial._process is not None
    os.kill(pid_of(trial), signal.SIGKILL)
    trial._process.wait()
    assert trial("regex", "b")


def test_it_has_nothing_of_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOTSTOCK_SECRET", "pepper")
    trial = Trial()
    trial("regex", "a")
    with open(f"/proc/{pid_of(trial)}/environ", "rb") as environ:
        assert b"pepper" not in environ.read()


def test_it_ends_with_its_owner() -> None:
    trial = Trial()
    trial("regex", "a")
    pid, gone = pid_of(trial), weakref.ref(trial)
    del trial
    gc.collect()
    assert gone() is None and not alive(pid)
