"""Random schemas and a model of random weights: whatever it says is valid, in batches that do not fit at once."""

import random
from pathlib import Path

import pytest

from engine.sequence import FinishReason, SamplingParams
from server.grammars.compiler import Compiler
from server.grammars.vocabulary import vocabulary
from server.structure import Structure
from tests.support.adapters import write_adapter
from tests.support.engine_rig import EngineRig
from tests.support.models import VOCAB, tiny_model_dir
from tests.support.structures import COMPACT, keeps_to, parsed, random_schema

COUNT = 24


@pytest.mark.parametrize("seed", range(4))
def test_whatever_it_says_is_valid(seed: int, tmp_path: Path) -> None:
    preempted: list[str] = []
    rig = EngineRig.load(
        tiny_model_dir("llama", tmp_path),
        tmp_path / "rig",
        num_blocks=34,
        max_batch_tokens=16,
        observe=lambda event: preempted.append(type(event).__name__),
    )
    adapter = rig.add(write_adapter(tmp_path / "adapter", rig.base.shape, scale=0.3))
    compiler = Compiler(lambda: vocabulary(rig.base.tokenizer.backend_tokenizer, VOCAB, rig.base.eos_token_ids))
    draw, wishes = random.Random(seed), {}
    for number in range(COUNT):
        schema = random_schema(draw)
        params = SamplingParams(max_tokens=120, temperature=draw.choice((0.0, 0.7, 2.0)), seed=number)
        make = compiler.compile_now(Structure("f", "json", schema | COMPACT))
        prompt = [draw.randrange(256) for _ in range(draw.randint(1, 12))]
        wishes[rig.submit(prompt, params, draw.choice((None, adapter)), make())] = schema
    free = [rig.submit([number], SamplingParams(max_tokens=40, ignore_eos=True)) for number in range(3)]
    answers = rig.run()
    rig.close()
    for id, schema in wishes.items():
        assert answers[id].finish_reason is FinishReason.STOP
        assert keeps_to(parsed(answers[id].text), schema), (schema, answers[id].text)
    assert all(len(answers[id].tokens) == 40 for id in free)
    assert "Preempted" in preempted
