"""Sequences as the sampler, the runner and attention see them, without an engine around them."""

from collections.abc import Sequence as Seq

from adapters.manifest import AdapterId
from engine.constraint import Constraint
from engine.detokenize import TextStream
from engine.sequence import Request, SamplingParams, Sequence


def sequence(
    id: str = "r",
    prompt: Seq[int] = (1, 2, 3),
    generated: Seq[int] = (),
    *,
    params: SamplingParams | None = None,
    stream: int = 0,
    blocks: Seq[int] = (),
    adapter: str | None = None,
    tenant: str = "",
    constraint: Constraint | None = None,
) -> Sequence:
    """A running sequence that has `generated` tokens so far and holds `blocks`."""
    chosen = params or SamplingParams()
    request = Request(id, tuple(prompt), chosen, None if adapter is None else AdapterId(adapter), tenant, constraint)
    return Sequence(
        request=request,
        arrived=0.0,
        tokens=[*prompt, *generated],
        text=TextStream(lambda ids: "", (), ()),
        stream=stream,
        blocks=list(blocks),
    )
