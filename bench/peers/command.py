"""`rootstock bench peers`: ours beside every peer that runs here, in one interleaved run.

Owns the list of peers, and the command's options.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench import launch, make_adapters, options, weight_shapes
from bench.arrivals import Span
from bench.compare import comparison_cells
from bench.measure import Record, Schedule
from bench.peers.libraries import PEFT, TRANSFORMERS
from bench.peers.llama_cpp import LlamaCpp
from bench.peers.openvino import OpenVino
from bench.peers.peer import Peer, ServedModels
from bench.peers.runner import PeerRunner, install
from bench.peers.vllm import Vllm
from bench.session import Session, record_session
from bench.terminal import terminal

PEERS: tuple[Peer, ...] = (
    Vllm("vllm", adapters=True),
    Vllm("vllm-base", adapters=False),
    LlamaCpp(),
    LlamaCpp("llama.cpp-q4", quantization="Q4_0"),
    OpenVino("openvino", adapters=True),
    OpenVino("openvino-base", adapters=False),
    PEFT,
    TRANSFORMERS,
)
OURS = "rootstock"


def chosen(names: Sequence[str]) -> list[Peer]:
    """The peers of these names; all where there is none. Raises typer.BadParameter for a name that is not known."""
    known = {peer.name: peer for peer in PEERS}
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join(known)}.", param_hint="--peer")
    return [known[name] for name in names or known]


def main(
    peer: Annotated[
        list[str] | None, typer.Option(help="Measure only this one; repeat for several. All by default.")
    ] = None,
    install_missing: Annotated[
        bool, typer.Option("--install/--no-install", help="Install peers that are missing, or leave them out.")
    ] = True,
    install_only: Annotated[
        bool, typer.Option("--install-only", help="Install what is missing and measure nothing.")
    ] = False,
    in_turn: Annotated[
        bool, typer.Option("--in-turn/--together", help="One peer runs at a time, or all at once, which needs memory.")
    ] = True,
    peers_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of their environments; by default peers/ in --work-dir."),
    ] = None,
    model: options.BaseModel = "embedded",
    serve_flags: options.ServeFlags = "",
    rounds: options.Rounds = 3,
    concurrency: Annotated[list[int] | None, options.several_clients("1, 8, 16")] = None,
    per_client: options.PerClient = 1,
    prompt_tokens: options.PromptTokens = 128,
    output_tokens: options.OutputTokens = 64,
    adapters: options.Adapters = 8,
    rank: options.Rank = 16,
    minutes: options.Minutes = None,
    work_dir: options.WorkDir = options.WORK_DIR,
) -> None:
    """Measure base, one and several adapters on ours and on every peer that can be installed here."""
    console, peers, directory = terminal(), chosen(peer or []), peers_dir or work_dir / "peers"
    if install_missing or install_only:
        peers = install(peers, directory, console)
    if install_only:
        console.print("Installed: " + (", ".join(peer.name for peer in peers) or "none"), soft_wrap=True)
        return
    with launch.serve(work_dir / "peers-ours", launch.flags(model, serve_flags)) as server:
        base = options.known_base(server.base, options.FOR_ADAPTERS)
        written = make_adapters.write(base, work_dir / "adapters", count=adapters, rank=rank)
        vocab = weight_shapes.vocab_size(base)
        runner = PeerRunner(directory, ServedModels(base, tuple(written), rank), vocab, console)
        ours = runner.checked_target(launch.target(OURS, server, written), "this checkout")
        measuring = runner.in_turn if in_turn else runner.together

        def measured(schedule: Schedule) -> Iterator[Record]:
            return measuring(ours, peers, schedule, rounds)

        spans = Span(prompt_tokens, prompt_tokens), Span(output_tokens, output_tokens)
        cells = comparison_cells(concurrency or [1, 8, 16], per_client, *spans, adapters, rank)
        title = f"{base.name}, {prompt_tokens} prompt and {output_tokens} output tokens, adapters r={rank}"
        session = Session("peers", title, work_dir, rounds, vocab, minutes)
        record_session(console, session, cells, measured, runner.notes)
