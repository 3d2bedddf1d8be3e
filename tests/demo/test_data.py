"""The demo data and adapters in the repository: reproducible, disjoint, small, and described truthfully."""

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from adapters.provenance import trained_on
from demo import make_data
from training.config import TrainConfig
from training.config_file import read_config

DEMO = Path(make_data.__file__).parent
ADAPTERS = ("pirate", "extract")
MAX_BYTES = 2_000_000


def pairs(name: str, split: str) -> list[tuple[str, str]]:
    lines = (DEMO / "data" / f"{name}.{split}.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [json.loads(line)["messages"] for line in lines]
    assert all([message["role"] for message in row] == ["user", "assistant"] for row in messages)
    return [(user["content"], assistant["content"]) for user, assistant in messages]


def card(name: str) -> str:
    return (DEMO / "adapters" / name / "README.md").read_text(encoding="utf-8")


def compared(name: str, label: str) -> tuple[float, float]:
    """What a card says of the base and of what was trained."""
    found = re.search(rf"^\| {label} \| ([\d.]+) \| ([\d.]+) \|$", card(name), re.MULTILINE)
    assert found is not None
    return float(found[1]), float(found[2])


def test_make_data_writes_the_files_in_the_repository() -> None:
    made = make_data.make()
    assert sorted(made) == sorted(path.name for path in (DEMO / "data").glob("*.jsonl"))
    for name, text in made.items():
        assert (DEMO / "data" / name).read_text(encoding="utf-8") == text, f"run python -m demo.make_data: {name}"


@pytest.mark.parametrize("name", ADAPTERS)
def test_splits_share_no_prompt_and_no_answer(name: str) -> None:
    train, heldout = pairs(name, "train"), pairs(name, "heldout")
    assert len(train) >= 200
    assert len(heldout) >= 40
    for column in (0, 1):
        ours = [pair[column] for pair in train]
        theirs = [pair[column] for pair in heldout]
        assert not set(ours) & set(theirs)
    prompts = [prompt for prompt, _ in train + heldout]
    assert len(set(prompts)) == len(prompts)


def test_extract_answers_hold_words_of_their_sentence_or_null() -> None:
    for prompt, answer in pairs("extract", "train") + pairs("extract", "heldout"):
        fields = json.loads(answer)
        assert tuple(fields) == make_data.FIELDS
        assert all(value is None or value in prompt for value in fields.values())


def test_extract_heldout_sentences_use_no_name_and_no_city_of_training() -> None:
    def values(split: str) -> set[str]:
        answers = [json.loads(answer) for _, answer in pairs("extract", split)]
        return {answer[field] for answer in answers for field in ("name", "city") if answer[field]}

    assert not values("train") & values("heldout")


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_is_small_bf16_and_names_its_base_without_a_path(name: str) -> None:
    weights = DEMO / "adapters" / name / "adapter_model.safetensors"
    config = json.loads((weights.parent / "adapter_config.json").read_text(encoding="utf-8"))
    assert weights.stat().st_size <= MAX_BYTES
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"
    with safe_open(weights, framework="numpy") as file:
        dtypes = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (not a mapping)
        layers = {int(part) for key in file.keys() for part in key.split(".") if part.isdigit()}  # noqa: SIM118
    assert dtypes == {"BF16"}
    assert layers == set(config["layers_to_transform"])


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_was_trained_on_the_unquantized_base_that_its_card_names(name: str) -> None:
    with safe_open(DEMO / "adapters" / name / "adapter_model.safetensors", framework="numpy") as file:
        record = trained_on(file.metadata())
    assert record is not None
    assert record.quantization == "none"
    assert f"| base weights | `{record.weights}` |" in card(name)


@pytest.mark.parametrize("name", ADAPTERS)
def test_card_names_the_data_it_was_trained_on(name: str) -> None:
    for split in ("train", "heldout"):
        digest = sha256((DEMO / "data" / f"{name}.{split}.jsonl").read_bytes()).hexdigest()
        line = rf"^\| `demo/data/{name}\.{split}\.jsonl` \| {len(pairs(name, split))} \| [\d,]+ \| 0 \| `{digest}` \|$"
        assert re.search(line, card(name), re.MULTILINE)


@pytest.mark.parametrize("name", ADAPTERS)
def test_card_tells_a_score_above_the_base_and_a_lower_loss(name: str) -> None:
    score, loss = compared(name, "score"), compared(name, "loss, nats per token that counts")
    assert score[1] > score[0] + 0.3
    assert loss[1] < loss[0]


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_config_beside_the_data_is_the_one_in_the_card(name: str) -> None:
    found = re.search(r"```yaml\n(.*?)```", card(name), re.DOTALL)
    assert found is not None
    config = TrainConfig.model_validate(yaml.safe_load(found[1]))
    assert config.output == Path("runs/demo") / name, "where `make demo-adapters` trains it"
    assert config.model_copy(update={"output": Path("runs") / name}) == read_config(DEMO / f"{name}.yaml")


@pytest.mark.parametrize("name", ADAPTERS)
def test_nothing_in_an_adapter_directory_but_the_adapter_and_its_card(name: str) -> None:
    found = {path.name for path in (DEMO / "adapters" / name).iterdir()}
    assert found == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
