"""What an objective cannot do with a config is told before anything is loaded, with what to write instead."""

from typing import Any

import pytest

from training.config import TrainConfig
from training.config_file import parse_config
from training.errors import ConfigInvalid

DPO: dict[str, Any] = {"output": "out", "data": {"train": "pairs.jsonl"}, "objective": "dpo"}
RLOO: dict[str, Any] = {**DPO, "objective": "rloo", "reward": {"model": "taste"}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({**DPO, "objective": "grpo"}, "objective: grpo needs reward.model"),
        (
            {**RLOO, "steps": {"batch": 6, "micro_batch": 2}},
            "no multiple of sampling.completions.*Set steps.batch to 8",
        ),
        ({**RLOO, "adapter": {"dropout": 0.1}}, "adapter.dropout: .*Set it to 0"),
        ({**RLOO, "preference": {"beta": 0.2}}, "preference: objective: rloo does not read it.*sampling.beta"),
        ({**DPO, "sampling": {"completions": 8}}, "sampling: objective: dpo does not read it"),
        ({**DPO, "reward": {"model": "taste"}}, "reward: objective: dpo does not read it"),
        ({**DPO, "score": {}}, "score: the examples of objective: dpo have no answer"),
        ({**DPO, "data": {"train": "pairs.jsonl", "packing": True}}, "data.packing: objective: dpo"),
        ({**DPO, "adapter": {"targets": ["q_proj", "lm_head"]}}, "adapter.targets: .*lm_head"),
        ({**DPO, "objective": "ppo"}, "Write rloo or grpo: they learn from the same reward.model"),
        ({**DPO, "objective": "rm"}, "objective: rm is called reward here"),
        ({**DPO, "objective": "reward", "push": {"url": "http://localhost"}}, "push: only adapters are pushed"),
    ],
)
def test_a_contradiction_is_told_with_its_fix(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        parse_config(values)


@pytest.mark.parametrize("values", [DPO, RLOO, {**RLOO, "adapter": {"dropout": 0.1}, "method": "full"}])
def test_a_config_that_was_written_out_is_read_again(values: dict[str, Any]) -> None:
    """`config.yaml` names every section, those that the objective does not read with their defaults."""
    told = parse_config(values)
    assert TrainConfig.model_validate(told.model_dump(mode="json")) == told
