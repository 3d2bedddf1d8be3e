"""G72, with a real model: an engine that takes over on the same weights answers as the first one did."""

from pathlib import Path

import torch

from adapters.checkpoint import read_directory
from adapters.manifest import AdapterId
from adapters.store import BlobStore
from engine.build import EngineConfig, maker
from engine.engine import Engine
from engine.sequence import Request, SamplingParams
from loader.base import load
from loader.source import resolve
from tests.support.adapters import write_adapter
from tests.support.models import tiny_model_dir

PROMPT = (5, 9, 17, 3, 8)
MEBI = 1 << 20


def tokens(engine: Engine, id: str, adapter: AdapterId | None) -> list[int]:
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    engine.submit(Request(id, PROMPT, params, adapter))
    said: list[int] = []
    while engine.has_work:
        said += [token for _, output in engine.step() for token in output.token_ids]
    engine.check_integrity()
    return said


def test_g72_the_next_engine_answers_as_the_first_one_did(tmp_path: Path) -> None:
    base = load(resolve(str(tiny_model_dir("llama", tmp_path)), tmp_path), dtype="float32")
    store = BlobStore(tmp_path / "adapters")
    adapter = store.put(read_directory(write_adapter(tmp_path / "a", base.shape, seed=1, scale=0.3), base.shape))
    config = EngineConfig(64, base.max_model_len, 4 * MEBI, 4 * MEBI, block_size=4, max_batch_tokens=64)
    make = maker(base, store, config)
    weights = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    first = make()
    said = {ref: tokens(first, f"first {ref}", ref) for ref in (None, adapter)}
    assert said[None] != said[adapter]
    merged = first.merge(adapter)
    while not merged.done():
        first.step()
    merged.result()
    first.submit(Request("under way", PROMPT, SamplingParams(max_tokens=64), adapter))
    first.step()
    first.tiers.close()

    second = make()
    assert second.merged is None and second.pool.num_used == 0 and not second.tiers.ready(adapter)
    for times in range(2):
        assert {ref: tokens(second, f"second {ref} {times}", ref) for ref in (None, adapter)} == said
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())
    second.tiers.close()
