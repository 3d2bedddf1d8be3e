"""The configs beside the demo data: readable, on data that is there, and small where adapters are kept in git."""

from contextlib import chdir
from pathlib import Path

import pytest

from demo.make_data import HERE
from loader.anatomy import anatomy_of
from training.config_file import read_config
from training.data.prepare import check
from training.memory.grafts import grafts_of

CONFIGS = sorted(HERE.glob("*.yaml"))
BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
"""The embedded base's shape."""
MAX_BYTES = 2_000_000


def test_there_is_one_for_each_adapter_and_for_the_task_of_the_readme() -> None:
    assert [path.stem for path in CONFIGS] == ["extract", "pirate", "reports"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_data_is_sound_and_its_score_has_answers_to_look_at(path: Path) -> None:
    config = read_config(path)
    with chdir(HERE.parent):
        checked = check(config)
    assert len(checked.train.rows) >= 200
    assert len(checked.heldout.rows) >= 40
    assert checked.notes == ()
    assert config.score is not None
    assert len(checked.heldout.rows) <= config.score.limit


@pytest.mark.parametrize("name", ["pirate", "extract"])
def test_what_is_kept_in_git_is_small(name: str) -> None:
    grafts = grafts_of(read_config(HERE / f"{name}.yaml"), anatomy_of(BASE))
    assert 2 * sum(graft.parameters for graft in grafts) < MAX_BYTES - 30_000, "bf16, and a header"
