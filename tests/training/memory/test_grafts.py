"""An adapter's parameters are those that PEFT makes, for every family; what a base lacks is told."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from loader import configs
from loader.anatomy import anatomy_of
from tests.support.models import ARCHITECTURES, CONFIGS
from training.config import TrainConfig
from training.config_file import parse_config
from training.errors import ConfigInvalid
from training.memory.grafts import grafts_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def config(method: str = "lora", **adapter: Any) -> TrainConfig:
    return parse_config({"output": "x", "data": {"train": "x"}, "method": method, "adapter": adapter})


def made_by_peft(model_config: Any, **lora: Any) -> int:
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = get_peft_model(make(model_config), LoraConfig(task_type="CAUSAL_LM", **lora))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_every_linear_layer_as_peft_counts_it(arch: str, method: str) -> None:
    model_config = CONFIGS[arch]()
    anatomy = anatomy_of(model_config.to_dict())
    names = sorted({linear.name for linear in anatomy.linears})
    expected = made_by_peft(model_config, r=8, target_modules=names, use_dora=method == "dora")
    assert sum(graft.parameters for graft in grafts_of(config(method, rank=8), anatomy)) == expected


@pytest.mark.parametrize(
    "chosen",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["mlp.down_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 3]},
    ],
)
def test_chosen_layers_as_peft_chooses_them(chosen: Mapping[str, Any]) -> None:
    model_config = CONFIGS["llama"]()
    layers = chosen.get("layers_to_transform")
    asked = config(targets=chosen["target_modules"], rank=8, layers=layers)
    counted = sum(graft.parameters for graft in grafts_of(asked, anatomy_of(model_config.to_dict())))
    assert counted == made_by_peft(model_config, r=8, **chosen)


def test_pissa_has_twice_the_rank() -> None:
    seven = anatomy_of(configs.read("llama-2-7b").values)
    plain, pissa = (
        sum(graft.parameters for graft in grafts_of(config(init=init), seven)) for init in ("default", "pissa")
    )
    assert pissa == 2 * plain


def test_a_full_fine_tune_has_no_adapter() -> None:
    assert grafts_of(config("full"), anatomy_of(configs.read("llama-2-7b").values)) == ()


def test_what_the_base_lacks_is_told_at_once() -> None:
    with pytest.raises(ConfigInvalid) as told:
        grafts_of(config(targets=["query", "v_proj"], layers=[1, 99]), anatomy_of(configs.read("llama-2-7b").values))
    assert len(told.value.faults) == 2
    assert "no query. It has q_proj" in str(told.value)
    assert "layers 0 to 31, not 99" in str(told.value)
