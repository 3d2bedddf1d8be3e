"""`rootstock bench peers`: ours beside every peer that runs here, in one interleaved run.

Owns the list of peers, and tells those that are left out, each with its reason.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import header, launch, make_adapters, options
from bench.arrivals import Span
from bench.compare import traffics
from bench.conduct import Session, conduct
from bench.measure import Target
from bench.peers.libraries import PEFT, TRANSFORMERS
from bench.peers.llama_cpp import LlamaCpp
from bench.peers.openvino import OpenVino
from bench.peers.peer import Grafts, Peer, Unavailable
from bench.peers.vllm import Vllm
from bench.terminal import terminal

PEERS: tuple[Peer, ...] = (
    Vllm("vllm", adapters=True),
    Vllm("vllm-base", adapters=False),
    LlamaCpp(),
    OpenVino(),
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


def started(
    peers: Sequence[Peer], directory: Path, grafts: Grafts, install: bool, stack: ExitStack, console: Console
) -> Iterator[Target]:
    """The peers that run; the others are told with their reasons."""
    for peer in peers:
        home = directory / peer.name.removesuffix("-base")
        try:
            if install:
                with console.status(f"installing {peer.name}; its log is in {home}"):
                    peer.install(home)
            with console.status(f"starting {peer.name}"):
                yield stack.enter_context(peer.start(home, grafts))
        except (Unavailable, OSError) as error:
            console.print(f"{peer.name} is left out: {error}", style="yellow", markup=False)


def main(
    peer: Annotated[list[str] | None, typer.Option(help="Only these; repeat for several.")] = None,
    install: Annotated[bool, typer.Option(help="Install what is missing; --no-install leaves it out.")] = True,
    peers_dir: Annotated[
        Path | None, typer.Option(help="Their environments; by default peers/ in the work dir.")
    ] = None,
    model: Annotated[str, typer.Option(help="As --base of `rootstock serve`.")] = "embedded",
    serve_flags: options.ServeFlags = "",
    rounds: options.Rounds = 3,
    concurrency: options.SomeClients = None,
    per_client: options.PerClient = 1,
    prompt_tokens: options.PromptTokens = 128,
    output_tokens: options.OutputTokens = 64,
    adapters: options.Adapters = 8,
    rank: options.Rank = 16,
    minutes: options.Minutes = None,
    work_dir: options.WorkDir = options.WORK_DIR,
) -> None:
    """Measure base, one and several adapters on ours and on every peer that can be installed here."""
    console, peers = terminal(), chosen(peer or [])
    with ExitStack() as stack:
        server = stack.enter_context(launch.serve(work_dir / "peers-ours", launch.flags(model, serve_flags)))
        if server.base is None:
            raise typer.BadParameter("The base's directory is needed: adapters are made to its shapes.")
        written = make_adapters.write(server.base, work_dir / "adapters", count=adapters, rank=rank)
        grafts = Grafts(server.base, tuple(written), rank)
        targets: list[Target] = [launch.target(OURS, server, written)]
        targets += started(peers, peers_dir or work_dir / "peers", grafts, install, stack, console)
        spans = Span(prompt_tokens, prompt_tokens), Span(output_tokens, output_tokens)
        cells = traffics(concurrency or [1, 8, 16], per_client, *spans, adapters, rank)
        title = f"{server.base.name}, {prompt_tokens} prompt and {output_tokens} output tokens, adapters r={rank}"
        session = Session("peers", title, work_dir, rounds, header.vocab_size(server.base), minutes)
        conduct(console, session, targets, cells)
