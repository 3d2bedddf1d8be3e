"""Peers from their installation to the moment at which they can be measured, all at once or one after the other.

Owns what is told of each: why it is left out, which version it is, and whether its adapters act.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from bench.errors import BenchError
from bench.measure import Course, Record, Target, measure
from bench.peers.effect import BaseOnly, Effect, ask
from bench.peers.peer import Grafts, Peer, Unavailable


def home(directory: Path, peer: Peer) -> Path:
    """Its folder; one that is measured without its adapters too, or in four bits, has all in one."""
    return directory / peer.name.removesuffix("-base").removesuffix("-q4")


def install(peers: Sequence[Peer], directory: Path, console: Console) -> list[Peer]:
    """Install those that are missing in `directory`; gives those that are there, and tells the others."""
    present = []
    for peer in peers:
        place = home(directory, peer)
        try:
            with console.status(f"installing {peer.name}; its log is in {place}"):
                peer.install(place)
        except (Unavailable, OSError) as error:
            _tell_left_out(console, peer, error)
        else:
            present.append(peer)
    return present


@dataclass
class Stage:
    """Starts peers in `directory` with `grafts`. `notes` says for each target what its figures rest on."""

    directory: Path
    grafts: Grafts
    vocab: int
    console: Console
    notes: dict[str, str] = field(default_factory=dict)
    _effects: dict[str, Effect] = field(default_factory=dict)

    def examined(self, target: Target, version: str) -> Target:
        """`target`, or where its adapters do not act, as one that has none. The first one that is examined is what the
        answers of others are told beside. Raises BenchError as `ask` does."""
        if target.name not in self._effects:
            names = [path.name for path in self.grafts.adapters]
            effect = self._effects[target.name] = ask(target, names, self.vocab)
            self.notes[target.name] = f"{target.name} ({version}): {self._verdict(effect)}"
            self.console.print(self.notes[target.name], style="red" if effect.fault else "", markup=False)
        return BaseOnly(target) if self._effects[target.name].fault else target

    def _verdict(self, effect: Effect) -> str:
        first, mark = next(iter(self._effects.items()))
        beside = "" if effect is mark else f"; tokens before they part from {first}'s: {effect.beside(mark)}"
        if effect.fault:
            return f"{effect.fault}, so only its base is measured{beside}"
        return ("adapters change its answers" if effect.adapters else "base only") + beside

    @contextmanager
    def start(self, peers: Sequence[Peer]) -> Iterator[list[Target]]:
        """Those of `peers` that run, until the block ends; the others are told."""
        with ExitStack() as stack:
            targets = []
            for peer in peers:
                place = home(self.directory, peer)
                try:
                    with self.console.status(f"starting {peer.name}"):
                        target = stack.enter_context(peer.start(place, self.grafts))
                        targets.append(self.examined(target, peer.version(place)))
                except (Unavailable, BenchError, OSError) as error:
                    _tell_left_out(self.console, peer, error)
            yield targets

    def together(self, ours: Target, peers: Sequence[Peer], course: Course, rounds: int) -> Iterator[Record]:
        """All run at once, and idle while another one is measured."""
        with self.start(peers) as targets:
            yield from measure([ours, *targets], course, rounds)

    def in_turn(self, ours: Target, peers: Sequence[Peer], course: Course, rounds: int) -> Iterator[Record]:
        """In every round each peer is started, warmed up, measured and stopped; ours goes first, and stays."""
        standing = list(peers)
        yield from course.lap([ours], 0)
        for round_ in range(1, rounds + 1):
            yield from course.lap([ours], round_)
            for peer in tuple(standing):
                if course.over:
                    return
                with self.start([peer]) as targets:
                    yield from course.lap(targets, 0)
                    yield from course.lap(targets, round_)
                if not targets or peer.name in course.fallen:
                    standing.remove(peer)


def _tell_left_out(console: Console, peer: Peer, error: Exception) -> None:
    console.print(f"{peer.name} is left out: {error}", style="yellow", markup=False)
