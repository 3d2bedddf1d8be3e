"""Installs, starts and checks peers, and measures them all at once or one after the other.

Owns the notes on each: its version, whether its adapters have an effect, and why it is left out.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from bench.errors import BenchError
from bench.measure import Record, Schedule, Target, measure
from bench.peers.adapter_effect import BaseOnly, Effect, measure_effect
from bench.peers.peer import Peer, ServedModels, Unavailable


def peer_directory(directory: Path, peer: Peer) -> Path:
    """The folder of a peer. Its variants, without adapters or in 4 bits, share one."""
    return directory / peer.name.removesuffix("-base").removesuffix("-q4")


def install(peers: Sequence[Peer], directory: Path, console: Console) -> list[Peer]:
    """Install the peers that are missing in `directory`. Returns those that are there; prints why others are not."""
    present = []
    for peer in peers:
        place = peer_directory(directory, peer)
        try:
            with console.status(f"installing {peer.name}; its log is in {place}"):
                peer.install(place)
        except (Unavailable, OSError) as error:
            _print_left_out(console, peer, error)
        else:
            present.append(peer)
    return present


@dataclass
class PeerRunner:
    """Starts peers in `directory` with `models`. `notes` has a remark on each target for the table."""

    directory: Path
    models: ServedModels
    vocab: int
    console: Console
    notes: dict[str, str] = field(default_factory=dict)
    _effects: dict[str, Effect] = field(default_factory=dict)

    def checked_target(self, target: Target, version: str) -> Target:
        """`target`, or a BaseOnly where its adapters have no effect. Raises BenchError as `measure_effect`.

        Notes how far its answers agree with those of the first target that was checked.
        """
        if target.name not in self._effects:
            names = [path.name for path in self.models.adapters]
            effect = self._effects[target.name] = measure_effect(target, names, self.vocab)
            self.notes[target.name] = f"{target.name} ({version}): {self._verdict(effect)}"
            self.console.print(self.notes[target.name], style="red" if effect.fault else "", markup=False)
        return BaseOnly(target) if self._effects[target.name].fault else target

    def _verdict(self, effect: Effect) -> str:
        first, reference = next(iter(self._effects.items()))
        agreement = (
            ""
            if effect is reference
            else f"; tokens before they part from {first}'s: {effect.agreement_with(reference)}"
        )
        if effect.fault:
            return f"{effect.fault}, so only its base is measured{agreement}"
        return ("adapters change its answers" if effect.adapters else "base only") + agreement

    @contextmanager
    def start(self, peers: Sequence[Peer]) -> Iterator[list[Target]]:
        """The targets of those peers that start, until the block ends; prints why others do not."""
        with ExitStack() as stack:
            targets = []
            for peer in peers:
                place = peer_directory(self.directory, peer)
                try:
                    with self.console.status(f"starting {peer.name}"):
                        target = stack.enter_context(peer.start(place, self.models))
                        targets.append(self.checked_target(target, peer.version(place)))
                except (Unavailable, BenchError, OSError) as error:
                    _print_left_out(self.console, peer, error)
            yield targets

    def together(self, ours: Target, peers: Sequence[Peer], schedule: Schedule, rounds: int) -> Iterator[Record]:
        """All peers run at once, and are idle while another is measured."""
        with self.start(peers) as targets:
            yield from measure([ours, *targets], schedule, rounds)

    def in_turn(self, ours: Target, peers: Sequence[Peer], schedule: Schedule, rounds: int) -> Iterator[Record]:
        """In every round each peer is started, warmed up, measured and stopped; ours goes first, and stays."""
        remaining = list(peers)
        yield from schedule.measure_round([ours], 0)
        for round_ in range(1, rounds + 1):
            yield from schedule.measure_round([ours], round_)
            for peer in tuple(remaining):
                if schedule.out_of_time:
                    return
                with self.start([peer]) as targets:
                    yield from schedule.measure_round(targets, 0)
                    yield from schedule.measure_round(targets, round_)
                if not targets or peer.name in schedule.failed_targets:
                    remaining.remove(peer)


def _print_left_out(console: Console, peer: Peer, error: Exception) -> None:
    console.print(f"{peer.name} is left out: {error}", style="yellow", markup=False)
