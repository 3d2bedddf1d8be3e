"""How long a client may take next to nothing of what it is sent: the rule alone, on a clock that a test sets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.slow_clients import PACE_BYTES, StallTimer

WAIT_S = 30.0


@dataclass
class Timer:
    job: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Connection:
    """An event loop and a transport in one, and how often the client was cut off."""

    waiting: int = 100_000
    cuts: int = 0
    timers: list[Timer] = field(default_factory=list)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def call_later(self, delay_s: float, job: Callable[..., None], *arguments: Any) -> Timer:
        assert delay_s == WAIT_S
        self.timers.append(Timer(lambda: job(*arguments)))
        return self.timers[-1]

    def cut(self) -> None:
        self.cuts += 1

    def time_is_up(self) -> None:
        """Of all timers that are set."""
        due, self.timers = self.timers, []
        for timer in due:
            if not timer.cancelled:
                timer.job()


def stall_timer(connection: Connection) -> StallTimer:
    return StallTimer(connection, connection, WAIT_S, connection.cut)  # type: ignore[arg-type]


@pytest.mark.parametrize("taken", [0, 1, PACE_BYTES - 1])
def test_who_takes_next_to_nothing_is_cut_off_once(taken: int) -> None:
    connection = Connection()
    stall_timer(connection).watch()
    connection.waiting -= taken
    connection.time_is_up()
    assert connection.cuts == 1
    connection.time_is_up()
    assert connection.cuts == 1


def test_who_keeps_the_pace_has_as_long_as_it_takes() -> None:
    connection = Connection()
    stall_timer(connection).watch()
    while connection.waiting:
        connection.waiting = max(0, connection.waiting - PACE_BYTES)
        connection.time_is_up()
    assert connection.cuts == 0 and not connection.timers, "nobody is watched who has everything"


def test_the_pace_is_to_be_kept_until_the_end() -> None:
    connection = Connection()
    stall_timer(connection).watch()
    for taken in (PACE_BYTES, PACE_BYTES, 0):
        assert connection.cuts == 0
        connection.waiting -= taken
        connection.time_is_up()
    assert connection.cuts == 1


def test_who_is_no_longer_watched_is_not_cut_off() -> None:
    connection = Connection()
    watching = stall_timer(connection)
    watching.watch()
    watching.stop()
    watching.stop()
    connection.time_is_up()
    assert connection.cuts == 0


def test_to_be_watched_again_gives_no_more_time() -> None:
    connection = Connection()
    watching = stall_timer(connection)
    watching.watch()
    watching.watch()
    assert len(connection.timers) == 1


def test_nothing_to_take_is_nothing_to_watch() -> None:
    connection = Connection(waiting=0)
    stall_timer(connection).watch()
    assert not connection.timers
