"""Decode steps in real CUDA graphs against the same engine without: random adapters, ranks, comings and goings."""

from pathlib import Path

import pytest
import torch

from engine.recording import CudaGraphs
from engine.sequence import SamplingParams
from tests.support.constraints import Only, Script
from tests.support.engine_rig import Answer, EngineRig
from tests.support.gpu import DEVICE, needs_gpu
from tests.support.models import tiny_model_dir
from tests.support.scenario import add, alike, close, decoding, serve, wishes

pytestmark = needs_gpu

ROUNDING = 0.3  # in log-probabilities of a tiny random model in bfloat16


def on_gpu(model: Path, root: Path, graphs: bool, **how: object) -> EngineRig:
    settings = {"dtype": "bfloat16", "block_size": 256, "num_blocks": 64} | how
    recorder = CudaGraphs(DEVICE) if graphs else None
    return EngineRig.load(model, root, device="cuda", recorder=recorder, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "mistral", "gemma3"])
@pytest.mark.parametrize("device_bytes", [64 << 20, 1_300_000])
def test_any_mix_is_replayed_and_says_what_eager_steps_say(arch: str, device_bytes: int, tmp_path: Path) -> None:
    model, scenario = tiny_model_dir(arch, tmp_path), wishes(5, 12)
    eager = on_gpu(model, tmp_path / "eager", False, device_bytes=device_bytes)
    replayed = on_gpu(model, tmp_path / "replayed", True, device_bytes=device_bytes)
    want = serve(eager, scenario, add(eager, tmp_path / "a", 12))
    got = serve(replayed, scenario, add(replayed, tmp_path / "b", 12))
    assert decoding(replayed).works and len(decoding(replayed)._recordings) > 2
    assert [number for number in want if not close(got[number], want[number], ROUNDING)] == []
    eager.close()
    replayed.close()


def test_what_cannot_be_recorded_is_served_all_the_same(tmp_path: Path) -> None:
    """Gemma 2 caps its scores, which FlashAttention's paged call does not."""
    model, scenario = tiny_model_dir("gemma2", tmp_path), wishes(6, 4, count=8)
    eager, recorded = (on_gpu(model, tmp_path / str(graphs), graphs) for graphs in (False, True))
    want = serve(eager, scenario, add(eager, tmp_path / "a", 4))
    got = serve(recorded, scenario, add(recorded, tmp_path / "b", 4))
    assert not decoding(recorded).works
    assert [number for number in want if not close(got[number], want[number], ROUNDING)] == []
    eager.close()
    recorded.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_a_constrained_row_says_what_it_may_and_its_neighbours_what_they_like(graphs: bool, tmp_path: Path) -> None:
    model = tiny_model_dir("llama", tmp_path)
    rig = on_gpu(model, tmp_path / str(graphs), graphs)
    free = rig.submit([5, 6], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    alone = rig.run()[free].tokens
    free = rig.submit([5, 6], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    drawn = rig.submit([7], SamplingParams(max_tokens=20, seed=1), constraint=Only(range(0, 256, 7)))
    script = rig.submit([8], SamplingParams(max_tokens=20), constraint=Script(range(40, 55)))
    answers = rig.run()
    rig.close()
    assert answers[script].tokens == tuple(range(40, 55))
    assert all(token % 7 == 0 for token in answers[drawn].tokens)
    assert len(answers[free].tokens) == len(alone) == 20


def test_a_gpu_in_full_precision_says_what_the_cpu_says(tmp_path: Path) -> None:
    model, scenario = tiny_model_dir("llama", tmp_path), wishes(7, 8, count=12)
    torch.backends.cuda.matmul.allow_tf32 = False
    cpu = EngineRig.load(model, tmp_path / "cpu")
    gpu = EngineRig.load(model, tmp_path / "gpu", device="cuda")
    want = serve(cpu, scenario, add(cpu, tmp_path / "a", 8))
    got = serve(gpu, scenario, add(gpu, tmp_path / "b", 8))
    assert [number for number in want if not alike(got[number], want[number])] == []
    cpu.close()
    gpu.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_a_4_bit_base_multiplies_as_its_dense_weights_do(graphs: bool, tmp_path: Path) -> None:
    model = tiny_model_dir("llama", tmp_path)
    rig = on_gpu(model, tmp_path / "nf4", graphs, quantization="nf4")
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        weight, linear = rig.base.weight(path), rig.base.linears[path]
        for rows in (1, 5):
            x = torch.randn(rows, weight.shape[1], device=DEVICE, dtype=torch.bfloat16)
            want = x.float() @ weight.float().T
            assert float((linear(x).float() - want).abs().max()) <= 2e-2 * float(want.abs().max())
    scenario = wishes(8, 6, count=10)
    got = serve(rig, scenario, add(rig, tmp_path / "a", 6))
    assert all(answer.error_code is None for answer in got.values())
    if graphs:
        eager = on_gpu(model, tmp_path / "eager", False, quantization="nf4")
        want_all = serve(eager, scenario, add(eager, tmp_path / "b", 6))
        assert decoding(rig).works
        assert [number for number in got if not close(got[number], want_all[number], ROUNDING)] == []
        eager.close()
    rig.close()


def test_merged_rows_are_replayed_with_the_weights_of_the_day(tmp_path: Path) -> None:
    model = tiny_model_dir("llama", tmp_path)
    houses = [on_gpu(model, tmp_path / str(graphs), graphs) for graphs in (False, True)]
    ask = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    ids = [add(rig, tmp_path / f"a{number}", 3) for number, rig in enumerate(houses)]
    for which in (0, 1, 0):
        answers = []
        for rig, own in zip(houses, ids, strict=True):
            done = rig.engine.merge(own[which])
            while not done.done():
                rig.step()
            names = [rig.submit([3, 1, number], ask, own[which]) for number in range(3)]
            answered = rig.run()
            answers.append([answered[name] for name in names])
            rig.engine.unmerge()
        assert all(close(got, want, ROUNDING) for want, got in zip(*answers, strict=True))
    for rig in houses:
        rig.close()


def test_what_was_recorded_before_a_merge_is_right_after_it(tmp_path: Path) -> None:
    """Graphs that are let go must not take away what those that stay write to."""
    rig = on_gpu(tiny_model_dir("llama", tmp_path), tmp_path / "rig", True)
    ids = add(rig, tmp_path / "a", 3)
    ask = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)

    def answers() -> list[Answer]:
        names = [rig.submit([5, 6, number], ask, id) for number, id in enumerate((ids[0], None, ids[2]))]
        answered = rig.run()
        return [answered[name] for name in names]

    before = answers()
    for _ in range(2):
        done = rig.engine.merge(ids[1])
        while not done.done():
            rig.step()
        rig.submit([1, 2, 3], ask, ids[1])
        rig.run()
        rig.engine.unmerge()
        torch.cuda.empty_cache()
        assert all(close(now, then, ROUNDING) for now, then in zip(answers(), before, strict=True))
    rig.close()
