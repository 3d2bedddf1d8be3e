"""Five hundred adapters, a device budget for eight: all answer correctly, within the budget, and nothing stalls."""

from itertools import count
from pathlib import Path

from adapters.bank import num_bytes
from adapters.device_quotas import DeviceQuota
from adapters.manifest import AdapterId
from engine.sequence import Output, SamplingParams
from tests.support.adapters import write_adapter
from tests.support.engine_rig import Answer, EngineRig
from tests.support.models import tiny_model_dir

ADAPTERS = 500
ON_DEVICE = 8
PROMPT = [17, 4, 99, 23]
PARAMS = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)


def test_five_hundred_adapters_share_a_budget_for_eight(tmp_path: Path) -> None:
    model = tiny_model_dir("llama", tmp_path)
    roomy = EngineRig.load(model, tmp_path / "store", max_sequences=16)
    shape = roomy.base.shape
    ids = [roomy.add(write_adapter(tmp_path / str(n), shape, rank=2, seed=n, scale=0.5)) for n in range(ADAPTERS)]
    size = num_bytes(roomy.store.open(ids[0]).manifest, itemsize=4)
    alone = {adapter: _alone(roomy, adapter) for adapter in ids}
    assert len(set(alone.values())) > ADAPTERS // 4, "the adapters must differ for the answers to prove anything"
    roomy.close()

    tight = EngineRig.load(
        model, tmp_path / "store", device_bytes=ON_DEVICE * size, host_bytes=2 * ON_DEVICE * size, max_sequences=16
    )
    requests = {tight.submit(PROMPT, PARAMS, adapter): adapter for adapter in ids}
    base = tight.submit(PROMPT, SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True))
    outputs: dict[str, list[Output]] = {}
    base_gained: list[int] = []
    for step in count():
        if not tight.engine.scheduler.has_work:
            break
        for request, output in tight.step():
            outputs.setdefault(request, []).append(output)
            base_gained += [step] * (request == base)
        assert tight.bank_bytes <= ON_DEVICE * size
    tight.close()
    answers = {request: Answer.of(every) for request, every in outputs.items()}
    assert {adapter: answers[request].tokens for request, adapter in requests.items()} == alone
    assert base_gained == list(range(base_gained[0], base_gained[0] + 40)), "it gains a token in every step it is in"


def test_a_device_quota_changes_no_answer(tmp_path: Path) -> None:
    """Twenty adapters of a tenant that may have two at once, on a real engine that has room for all."""
    model = tiny_model_dir("llama", tmp_path)
    rig = EngineRig.load(model, tmp_path / "store", max_sequences=16, device_quota=DeviceQuota(adapters=2))
    ids = [rig.add(write_adapter(tmp_path / str(n), rig.base.shape, rank=2, seed=n, scale=0.5)) for n in range(20)]
    size = num_bytes(rig.store.open(ids[0]).manifest, itemsize=4)
    alone = {adapter: _alone(rig, adapter) for adapter in ids}
    requests = {rig.submit(PROMPT, PARAMS, adapter): adapter for adapter in ids * 2}
    tokens: dict[str, list[int]] = {request: [] for request in requests}
    while rig.engine.scheduler.has_work:
        for request, output in rig.step():
            tokens[request] += output.token_ids
        assert rig.bank_bytes <= 2 * size
    rig.close()
    assert {request: tuple(each) for request, each in tokens.items()} == {
        request: alone[adapter] for request, adapter in requests.items()
    }


def _alone(rig: EngineRig, adapter: AdapterId) -> tuple[int, ...]:
    request = rig.submit(PROMPT, PARAMS, adapter)
    return rig.run()[request].tokens
