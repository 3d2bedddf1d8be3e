"""The plan of a run: what moves it, by how much, and what is offered when it is too much."""

from typing import Any

import pytest

from loader import configs
from loader.anatomy import Anatomy, anatomy_of
from training.config import TrainConfig
from training.config_file import parse_config
from training.memory.plan import TrainingMemoryPlan, batch_of, predict
from training.memory.suggestions import PlannedRun, suggestions, until_it_fits

GB = 10**9


def seven() -> Anatomy:
    return anatomy_of(configs.read("llama-2-7b").values)


def config(**values: Any) -> TrainConfig:
    return parse_config({"output": "x", "data": {"train": "x"}, **values})


def plan(tokens: int = 1024, cuda: bool = True, bf16: bool = True, **values: Any) -> TrainingMemoryPlan:
    return predict(config(**values), seven(), tokens=tokens, bf16=bf16, cuda=cuda)


def test_the_parts_are_the_total_and_the_libraries_are_no_tensors() -> None:
    made = plan()
    assert made.total_bytes == sum(row.bytes for row in made.rows)
    assert 0 < made.total_bytes - made.tensor_bytes < 2 * GB
    assert made.bytes_of("no such row") == 0
    assert made.parameters == seven().parameters


@pytest.mark.parametrize(
    "more",
    [
        {"steps": {"checkpointing": False}},
        {"adapter": {"rank": 64}},
        {"method": "dora"},
        {"method": "full"},
        {"steps": {"micro_batch": 16}},
        {"precision": "float32"},
        {"objective": "dpo"},
    ],
)
def test_it_grows_with(more: dict[str, Any]) -> None:
    assert plan(**more).total_bytes > 1.005 * plan().total_bytes


def test_it_grows_with_tokens_and_shrinks_with_what_is_paged() -> None:
    assert plan(tokens=2048).total_bytes > plan(tokens=1024).total_bytes
    paged, small = (plan(optimizer={"name": name}) for name in ("paged_adamw_8bit", "adamw_8bit"))
    assert paged.total_bytes < small.total_bytes < plan().total_bytes
    assert paged.pageable > 0 == small.pageable
    assert plan(cuda=False, optimizer={"name": "paged_adamw_8bit"}).pageable == 0


def test_where_bf16_is_not_multiplied_all_is_in_fp32() -> None:
    narrow, wide = plan(bf16=True), plan(bf16=False)
    assert wide.bytes_of("base weights") == 2 * narrow.bytes_of("base weights")
    assert "products in fp32" in wide.regime and "products in bf16" in narrow.regime
    assert plan(bf16=True, precision="float32").regime == wide.regime
    assert plan(bf16=False, precision="bfloat16").regime == narrow.regime


def test_gradients_are_whole_beside_activations_only_when_they_are_summed() -> None:
    """One micro-batch a step frees its activations while gradients appear."""
    once = plan(method="full", steps={"batch": 4, "micro_batch": 4})
    summed = plan(method="full", steps={"batch": 16, "micro_batch": 4})
    assert once.moment == "backward, first layer"
    assert summed.moment == "forward"
    assert summed.total_bytes - once.total_bytes > 10 * GB


def test_pairs_are_two_sequences_and_several_need_a_mask() -> None:
    assert batch_of(config(objective="dpo", steps={"micro_batch": 2}), 10).sequences == 4
    assert batch_of(config(steps={"micro_batch": 1}), 10).masked is False
    assert batch_of(config(steps={"micro_batch": 2}), 10).masked is True
    assert batch_of(config(steps={"micro_batch": 1}, data={"train": "x", "packing": True}), 10).masked is True


def test_a_second_model_is_counted_where_there_is_one() -> None:
    base = seven().parameters
    reward = {"model": "somewhere"}
    assert plan(objective="dpo").bytes_of("reference model") == 0, "the base without its adapter is the reference"
    assert plan(objective="dpo", method="full").bytes_of("reference model") == 4 * base
    assert plan(objective="grpo", reward=reward).bytes_of("reward model") >= 2 * base
    assert plan(objective="reward").bytes_of("loss head") == 0


def test_one_change_at_a_time_the_greatest_first() -> None:
    run = PlannedRun(config(method="full"), 1024)
    offered = suggestions(run, seven())
    totals = [each.plan.total_bytes for each in offered]
    assert totals == sorted(totals)
    assert [each.change for each in offered][:2] == ["method: qlora", "method: lora"]
    assert totals[-1] < run.plan(seven()).total_bytes
    for each in offered:
        assert each.plan == each.run.plan(seven()), "a suggestion's total is a plan of its own"


def test_every_lever_is_offered_where_it_applies() -> None:
    stored = {"method": "dora", "precision": "float32", "steps": {"checkpointing": False}, "adapter": {"dropout": 0.1}}
    assert levers(config(**stored)) >= {
        "method",
        "steps.checkpointing",
        "steps.micro_batch",
        "data.max_tokens",
        "adapter.dropout",
        "precision",
    }
    assert levers(config(method="qlora", adapter={"rank": 64})) >= {"adapter.rank", "optimizer.name"}


def levers(asked: TrainConfig) -> set[str]:
    return {each.change.split(":")[0] for each in suggestions(PlannedRun(asked, 1024), seven())}


def test_changes_until_it_fits_and_no_more() -> None:
    run = PlannedRun(config(method="full"), 1024)
    assert until_it_fits(run, seven(), 10**12) == ()
    path = until_it_fits(run, seven(), 80 * GB)
    assert path[-1].plan.total_bytes <= 80 * GB
    assert all(each.plan.total_bytes > 80 * GB for each in path[:-1])
    tight = until_it_fits(run, seven(), 6 * GB)
    assert tight[-1].plan.total_bytes <= 6 * GB
    hopeless = until_it_fits(run, seven(), GB)
    assert hopeless[-1].plan.total_bytes > GB
    assert suggestions(hopeless[-1].run, seven()) == ()


def test_a_small_run_is_offered_nothing_that_saves_nothing() -> None:
    small = {"steps": {"micro_batch": 1, "batch": 1}, "optimizer": {"name": "paged_adamw_8bit"}}
    assert suggestions(PlannedRun(config(method="qlora", adapter={"rank": 4}, **small), 64), seven()) == ()
