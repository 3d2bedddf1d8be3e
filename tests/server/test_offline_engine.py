"""The serving path in this process, against PEFT: each precision within the gate's bound, and a spoiled adapter not."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.errors import InvalidAdapter
from loader.quantize import config_for
from server.offline_engine import OfflineEngine
from tests.support.kernels import furnished
from tests.support.models import tiny_model_dir
from tests.support.peft_adapters import KINDS, write_adapter
from training.base import disable_repacking
from training.parity import ReferenceLogprobs, bound, compare
from training.reference_logprobs import reference_logprobs

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

ROWS = tuple(tuple(7 + (3 * i * i + 5 * i * n) % 200 for i in range(n)) for n in (2, 40, 17, 33, 9, 25))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smaller than the ones of the tests of mixing, whose bounds are wider: as a trained one is."""
    folder = write_adapter(model, tmp_path_factory.mktemp("adapter") / "a", KINDS["lora"], seed=4)
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor * 0.5 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return folder


def trainer(model: Path, adapter: Path, quantization: str | None) -> ReferenceLogprobs:
    """What a trainer in fp32 knows of its adapter at the end."""
    config = config_for(quantization, torch.float32) if quantization else None
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, quantization_config=config)
    assert isinstance(base, torch.nn.Module)
    disable_repacking(base)
    return reference_logprobs(PeftModel.from_pretrained(base, adapter), ROWS)


@pytest.fixture(scope="module")
def known(model: Path, adapter: Path) -> Mapping[str | None, ReferenceLogprobs]:
    return {quantization: trainer(model, adapter, quantization) for quantization in (None, "nf4")}


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("float32", None), ("bfloat16", None), ("float16", None), ("float32", "nf4"), ("bfloat16", "nf4")],
)
def test_the_serving_path_says_what_the_trainer_said(
    known: Mapping[str | None, ReferenceLogprobs],
    model: Path,
    adapter: Path,
    tmp_path: Path,
    dtype: str,
    quantization: str | None,
) -> None:
    serving = OfflineEngine(str(model), furnished(tmp_path), "cpu")
    verdict = compare(known[quantization], serving, adapter, dtype=dtype, quantization=quantization)
    assert verdict.complaint is None
    assert verdict.parity.positions == sum(len(row) - 1 for row in ROWS)
    assert verdict.parity.effect > 3 * bound(dtype, quantization), "else a missing adapter would have passed"


def test_the_base_alone_is_offered_too(
    known: Mapping[str | None, ReferenceLogprobs], model: Path, tmp_path: Path
) -> None:
    serving = OfflineEngine(str(model), furnished(tmp_path), "cpu")
    served, trained = serving.logprobs(None, ROWS, dtype="float32", quantization="nf4"), known["nf4"].base
    assert trained is not None and _largest(trained, served) < 1e-3


def test_an_adapter_that_was_exported_otherwise_fails_the_gate(
    known: Mapping[str | None, ReferenceLogprobs], model: Path, adapter: Path, tmp_path: Path
) -> None:
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    (spoiled / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: tensor * 1.5 if "q_proj.lora_B" in name else tensor for name, tensor in tensors.items()},
        spoiled / "adapter_model.safetensors",
    )
    verdict = compare(
        known[None], OfflineEngine(str(model), furnished(tmp_path), "cpu"), spoiled, dtype="float32", quantization=None
    )
    assert "it is the adapter" in str(verdict.complaint)


def test_what_the_servers_reader_refuses_is_refused_here(model: Path, adapter: Path, tmp_path: Path) -> None:
    config = (adapter / "adapter_config.json").read_text().replace('"bias": "none"', '"bias": "all"')
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text(config)
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    with pytest.raises(InvalidAdapter, match="bias"):
        serving = OfflineEngine(str(model), furnished(tmp_path), "cpu")
        serving.logprobs(tmp_path / "a", ROWS, dtype="float32", quantization=None)


def _largest(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    pairs = zip((value for row in one for value in row), (value for row in other for value in row), strict=True)
    return max(abs(a - b) for a, b in pairs)
