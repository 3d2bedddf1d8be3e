"""The list of everything that measures.

Owns the list. Imports nothing of the project.
"""

import typer

from bench import (
    compare,
    connections,
    flood,
    limits,
    make_adapters,
    make_base,
    overhead,
    regress,
    reuse,
    run,
    sampling,
    scale,
    show,
    soak,
    step,
    training,
)
from bench.peers.command import main as peers

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure multi-adapter servers: ours, others, and one commit against another.",
)
for name, command in (
    ("run", run.main),
    ("compare", compare.main),
    ("peers", peers),
    ("regress", regress.main),
    ("scale", scale.main),
    ("reuse", reuse.main),
    ("sampling", sampling.main),
    ("overhead", overhead.main),
    ("connections", connections.main),
    ("flood", flood.main),
    ("soak", soak.main),
    ("step", step.main),
    ("limits", limits.main),
    ("training", training.main),
    ("show", show.main),
    ("base", make_base.main),
    ("adapters", make_adapters.main),
):
    app.command(name)(command)
