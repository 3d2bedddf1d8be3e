"""Decode steps replayed from a recording say what steps computed one by one say, whoever comes and goes."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from adapters.manifest import AdapterId
from engine.build import cuda_graphs
from engine.flash import Flash
from engine.recording import NotRecordable, Replay
from engine.runner import ModelRunner
from engine.sequence import SamplingParams
from tests.support.adapters import MLP, Tensors, write_adapter
from tests.support.constraints import Only, Script
from tests.support.engine_rig import Answer, EngineRig
from tests.support.models import EOS, tiny_model_dir
from tests.support.recorder import Again
from tests.support.scenario import add, alike, decoding, serve, wishes
from tests.support.varlen import PlainVarlen


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture
def recorder() -> Again:
    return Again()


@pytest.fixture
def replayed(model_dir: Path, tmp_path: Path, recorder: Again) -> Iterator[EngineRig]:
    made = EngineRig.load(model_dir, tmp_path / "replayed", recorder=recorder)
    yield made
    made.close()


@pytest.fixture
def eager(model_dir: Path, tmp_path: Path) -> Iterator[EngineRig]:
    made = EngineRig.load(model_dir, tmp_path / "eager")
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("device_bytes", [64 << 20, 2_600_000])
def test_any_mix_is_replayed_and_says_what_eager_steps_say(
    model_dir: Path, tmp_path: Path, seed: int, device_bytes: int
) -> None:
    """Twelve adapters; in the small budget they push each other out, of the bank and off the stage."""
    recorder = Again()
    eager = EngineRig.load(model_dir, tmp_path / "eager", device_bytes=device_bytes)
    replayed = EngineRig.load(model_dir, tmp_path / "replayed", device_bytes=device_bytes, recorder=recorder)
    scenario = wishes(seed, 12)
    want = serve(eager, scenario, add(eager, tmp_path / "a", 12))
    got = serve(replayed, scenario, add(replayed, tmp_path / "b", 12))
    assert want.keys() == got.keys()
    assert [number for number in want if not alike(want[number], got[number])] == []
    assert decoding(replayed).works and recorder.replayed >= 20
    assert recorder.recorded == len(decoding(replayed)._recordings) < 25, "a mix is data, not a recording"
    eager.close()
    replayed.close()


@pytest.mark.parametrize("arch", ["qwen2", "gemma2", "gemma3"])
def test_windows_biases_and_caps_are_replayed_too(arch: str, tmp_path: Path) -> None:
    model, scenario = tiny_model_dir(arch, tmp_path), wishes(4, 4, count=6)
    answers: list[Mapping[int, Answer]] = []
    for recorder in (Again(), None):
        rig = EngineRig.load(model, tmp_path / str(recorder is None), recorder=recorder)
        answers.append(serve(rig, scenario, add(rig, tmp_path / f"a{len(answers)}", 4)))
        rig.close()
        assert recorder is None or recorder.replayed > 5
    assert [number for number in answers[1] if not alike(answers[0][number], answers[1][number])] == []


def test_the_stage_is_paid_for_out_of_the_adapters_budget(model_dir: Path, tmp_path: Path) -> None:
    for budget in (64 << 20, 2_600_000, 1000):
        rig = EngineRig.load(model_dir, tmp_path / str(budget), device_bytes=budget, recorder=Again())
        stage = decoding(rig)._stage.num_bytes
        assert rig.engine.tiers.residency.device_budget + stage == budget
        assert (stage > 0) == (budget > 1000) and stage <= budget // 2
        rig.close()


def test_a_cpu_has_no_graphs(eager: EngineRig) -> None:
    assert cuda_graphs(eager.base) is None


def test_constraints_stand_outside_of_recordings(replayed: EngineRig, eager: EngineRig, recorder: Again) -> None:
    """A mixed batch: one row may say anything, the others what they may."""
    answers = []
    for rig in (replayed, eager):
        constraints = (None, Only(range(0, 256, 7)), Script(range(40, 60)))
        params = [SamplingParams(temperature=0, max_tokens=20, ignore_eos=each is None) for each in constraints]
        pairs = enumerate(zip(params, constraints, strict=True))
        ids = [rig.submit([5, number], wish, constraint=each) for number, (wish, each) in pairs]
        found = rig.run()
        answers.append([found[id].tokens for id in ids])
    assert answers[0] == answers[1] and recorder.replayed > 10
    assert len(answers[0][0]) == 20 and all(token % 7 == 0 or token == EOS for token in answers[0][1])
    assert answers[0][2] == tuple(range(40, 60))


LONG = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)


def test_merged_rows_have_recordings_of_their_own_until_the_weights_go(
    replayed: EngineRig, eager: EngineRig, recorder: Again, tmp_path: Path
) -> None:
    ids = add(replayed, tmp_path / "a", 3)
    assert ids == add(eager, tmp_path / "b", 3)

    def both(*adapters: AdapterId | None) -> None:
        prompts = [[5, 6, number] for number in range(len(adapters))]
        answers = []
        for one in (replayed, eager):
            names = [one.submit(prompt, LONG, adapter) for prompt, adapter in zip(prompts, adapters, strict=True)]
            answered = one.run()
            answers.append([answered[name] for name in names])
        assert all(alike(*pair) for pair in zip(*answers, strict=True))

    def kinds() -> set[tuple[bool, bool]]:
        return {(kind.merged, kind.gains) for kind in decoding(replayed)._recordings}

    for first, second in ((ids[0], ids[2]), (ids[2], ids[0])):
        for one in (replayed, eager):
            done = one.engine.merge(first)
            while not done.done():
                one.step()
        assert not any(merged for merged, _ in kinds()), "no recording has weights that are gone"
        both(first, first)
        assert (True, False) in kinds()
        before = recorder.replayed
        both(second, None)
        assert recorder.replayed > before, "others are replayed as ever"
        before = recorder.replayed
        both(first, second, None)
        assert recorder.replayed == before, "merged rows beside others are computed piece by piece"
        for one in (replayed, eager):
            one.engine.unmerge()
        assert kinds() == set(), "a graph is never let go of alone"
    both(ids[0], ids[2], None)
    assert kinds() and not any(merged for merged, _ in kinds())


def huge(factor: str) -> Callable[[Tensors], Tensors]:
    """Makes A or B finite, but nearly every row's product with it is not, nor is B once it is scaled."""
    return lambda tensors: {
        name: np.full_like(all_, 3e38) if factor in name else all_ for name, all_ in tensors.items()
    }


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_an_overflow_stays_in_its_own_rows(
    factor: str, replayed: EngineRig, eager: EngineRig, recorder: Again, tmp_path: Path
) -> None:
    """Prompts of one token, so that the bad one is in a recorded step; twice, so that it has been on stage before."""
    answers = []
    for number, rig in enumerate((replayed, eager)):
        bad = rig.add(write_adapter(tmp_path / f"bad{number}", rig.base.shape, change=huge(factor)))
        good = rig.add(write_adapter(tmp_path / f"good{number}", rig.base.shape, rank=3, seed=2, targets=MLP))
        for _ in range(2):
            broken = rig.submit([9], LONG, bad)
            fine = [rig.submit([at], LONG, adapter) for at, adapter in enumerate((None, good, None, good))]
            answered = rig.run()
            assert answered[broken].error_code == "adapter_overflow"
            answers.append([answered[name] for name in fine])
    assert recorder.replayed > 5
    for got, want in zip(answers[0] + answers[1], answers[2] + answers[3], strict=True):
        assert alike(got, want)


class Refuses:
    def record(self, compute: Callable[[], None]) -> Replay:
        raise NotRecordable("not this one")


def test_a_model_that_cannot_be_recorded_is_served_as_without(
    model_dir: Path, eager: EngineRig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig, answers = EngineRig.load(model_dir, tmp_path / "refused", recorder=Refuses()), []
    for number, one in enumerate((rig, eager)):
        adapter = one.add(write_adapter(tmp_path / f"a{number}", one.base.shape))
        names = [one.submit([1, 2, 3], LONG, adapter), one.submit([4], LONG)]
        answered = one.run()
        answers.append([answered[name].tokens for name in names])
    rig.close()
    assert answers[0] == answers[1] and not decoding(rig).works
    assert [record.getMessage() for record in caplog.records].count(
        "decode steps are computed without CUDA graphs from now on: not this one"
    ) == 1


class Simply:
    """Replays by computing again, and looks at nothing."""

    def record(self, compute: Callable[[], None]) -> Replay:
        compute()
        return compute


def test_flash_attention_is_told_the_same_by_a_recorded_step(model_dir: Path, tmp_path: Path) -> None:
    """In bfloat16 over blocks of 256, as on a GPU, against a plain `varlen_attn`."""
    recorders, answers, contexts = (Simply(), None), [], []
    for recorder in recorders:
        varlen, root = PlainVarlen(), tmp_path / str(recorder is None)
        rig = EngineRig.load(model_dir, root, dtype="bfloat16", block_size=256, num_blocks=16, recorder=recorder)
        runner = rig.engine._runner
        assert isinstance(runner, ModelRunner)
        runner._flash = Flash(varlen)
        if recorder is not None:
            decoding(rig)._flash = Flash(varlen)
        ids = add(rig, root / "adapters", 4)
        prompts = [[number] * length for number, length in enumerate((250, 3, 254, 1, 260))]
        names = [rig.submit(prompt, LONG, id) for prompt, id in zip(prompts, [*ids, None], strict=True)]
        answered = rig.run()
        answers.append([answered[name] for name in names])
        contexts.append(varlen.longest)
        rig.close()
        assert recorder is None or decoding(rig).works
    assert (1, 512) in contexts[0] and (1, 512) not in contexts[1], (
        "a recording reckons with the longest context there may be"
    )
    for got, want in zip(*answers, strict=True):
        assert got.tokens[:2] == want.tokens[:2], "later ones may differ by their rounding"
        pairs = zip(got.logprobs[:2], want.logprobs[:2], strict=True)
        assert all(abs(one.logprob - other.logprob) < 0.2 for one, other in pairs)
