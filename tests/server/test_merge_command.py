"""`rootstock merge`: the choice that an adapter of a 4-bit base asks for, both ways, and what each one costs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from adapters.errors import BaseMismatch
from loader.fingerprint import fingerprint
from loader.quantize import config_for
from server.commands.errors import CommandFailed
from server.commands.merge import Way, merge
from tests.support.kernels import furnished
from tests.support.models import tiny_model_dir
from tests.support.peft_adapters import KINDS, write_adapter
from training.base import disable_repacking
from training.errors import DataInvalid

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

ROW = torch.tensor([[7 + (3 * i * i) % 200 for i in range(24)]])
PAIRS = [{"prompt": f"say {word}", "completion": f"{word}!"} for word in ("ahoy", "grog", "parrot")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a QLoRA run would write it: its record says NF4."""
    folder = write_adapter(model, tmp_path_factory.mktemp("adapter") / "a", KINDS["dora"], seed=2)
    record = {"base_weights": fingerprint(model, None), "base_quantization": "nf4"}
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", **record})
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "merged"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".merged")], "something was left behind"


def logits(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(ROW).logits.float()
    return found


def loaded(path: Path, quantization: str | None = None) -> PreTrainedModel:
    config = config_for(quantization, torch.float32) if quantization else None
    made = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, quantization_config=config)
    assert isinstance(made, PreTrainedModel)
    disable_repacking(made)
    made.eval()
    return made


@pytest.mark.parametrize("way", list(Way))
def test_each_way_is_what_it_says(model: Path, adapter: Path, out: Path, tmp_path: Path, way: Way) -> None:
    merge(adapter, out, base=str(model), way=way, dtype="float32", data_dir=tmp_path / "data")
    found = logits(loaded(out))
    expected = {
        kind.value: logits(PeftModel.from_pretrained(loaded(model, quantization), adapter).eval())
        for kind, quantization in ((Way.quantized, "nf4"), (Way.original, None))
    }
    torch.testing.assert_close(found, expected[way.value], rtol=0, atol=2e-3)
    other = next(logits_ for kind, logits_ in expected.items() if kind != way.value)
    assert (found - other).abs().max() > 0.1, "else the two ways would not be told apart"


def test_without_a_choice_it_asks_and_writes_nothing(model: Path, adapter: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as caught:
        merge(adapter, out, base=str(model), data_dir=tmp_path / "data")
    for part in ("--from quantized", "--from original", "nf4", "--heldout"):
        assert part in str(caught.value)
    assert not out.exists()


def test_heldout_reports_base_and_adapter_beside_both_ways(
    model: Path, adapter: Path, out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    data = furnished(tmp_path / "data")
    merge(adapter, out, base=str(model), way=Way.quantized, heldout=heldout, dtype="float32", data_dir=data)
    output, beside = capfd.readouterr()
    assert "it/s]" not in beside, "a library drew bars of its own"
    losses = {name.strip(): float(loss) for name, loss in re.findall(r"^  (\S.*?)\s+([\d.]+)$", output, re.M)}
    assert list(losses) == ["base + adapter", "merged, from quantized", "merged, from original"]
    assert losses["merged, from quantized"] == pytest.approx(losses["base + adapter"], abs=2e-3)
    assert abs(losses["merged, from original"] - losses["base + adapter"]) > 0.01
    assert out.is_dir()


def test_a_merge_that_fails_after_it_wrote_leaves_nothing_beside_out(
    model: Path, adapter: Path, out: Path, tmp_path: Path
) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text('{"neither": "prompt"}\n')
    before = set(out.parent.iterdir())
    with pytest.raises(DataInvalid, match="no known format"):
        merge(adapter, out, base=str(model), heldout=heldout, data_dir=tmp_path / "data")
    assert {path for path in set(out.parent.iterdir()) - before if out.name in path.name} == set()


def test_an_adapter_without_a_record_is_merged_as_before_or_as_it_is_told(
    model: Path, out: Path, tmp_path: Path
) -> None:
    folder = write_adapter(model, tmp_path / "a", KINDS["lora"], seed=3)
    with pytest.raises(CommandFailed, match="--quantization nf4"):
        merge(folder, out, base=str(model), way=Way.quantized, data_dir=tmp_path / "data")
    with pytest.raises(CommandFailed, match="--from original"):
        merge(folder, out, base=str(model), quantization="fp4", data_dir=tmp_path / "data")
    merge(folder, out, base=str(model), dtype="float32", data_dir=tmp_path / "data")
    expected = logits(PeftModel.from_pretrained(loaded(model), folder).eval())
    torch.testing.assert_close(logits(loaded(out)), expected, rtol=0, atol=2e-3)


def test_other_weights_are_refused(adapter: Path, out: Path, tmp_path: Path) -> None:
    llama = tiny_model_dir("llama", tmp_path / "models")
    weights = load_file(llama / "model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseMismatch, match="other weights"):
        merge(adapter, out, base=str(llama), way=Way.original, data_dir=tmp_path / "data")
