"""`rootstock validate` and the record of the base in training: the server's verdict, without a server."""

import json
from pathlib import Path

import pytest
import typer
from safetensors.numpy import load_file, save_file

from loader.fingerprint import fingerprint
from loader.skeleton import shape
from loader.source import resolve
from server.commands.errors import CommandFailed
from server.commands.validate import validate
from tests.support.adapters import write_adapter
from tests.support.models import tiny_model_dir

OTHER = f"sha256:{9:064x}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir("llama", tmp_path_factory.mktemp("base"))


def trained(folder: Path, model: Path, weights: str, quantization: str = "none") -> Path:
    write_adapter(folder, shape(resolve(str(model), folder)))
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"base_weights": weights, "base_quantization": quantization})
    return folder


def test_a_record_of_this_base_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path / "a", model, fingerprint(model, None))
    validate(folder, base=str(model), data_dir=tmp_path / "data")
    assert "trained on these weights, quantization none" in capsys.readouterr().out
    validate(folder, base=str(model), data_dir=tmp_path / "data", as_json=True)
    assert json.loads(capsys.readouterr().out)["base_quantization"] == "none"


def test_other_weights_and_another_quantization_are_refused(model: Path, tmp_path: Path) -> None:
    other = trained(tmp_path / "other", model, OTHER)
    with pytest.raises(CommandFailed, match=OTHER):
        validate(other, base=str(model), data_dir=tmp_path / "data")
    mine = trained(tmp_path / "mine", model, fingerprint(model, None))
    with pytest.raises(CommandFailed, match="--allow-quantization-mismatch"):
        validate(mine, base=str(model), quantization="nf4", data_dir=tmp_path / "data")
    validate(mine, base=str(model), quantization="nf4", allow_quantization_mismatch=True, data_dir=tmp_path / "data")


def test_as_json_the_fix_stands_by_itself(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        validate(trained(tmp_path / "a", model, OTHER), base=str(model), data_dir=tmp_path / "data", as_json=True)
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert OTHER in fault["problem"] and "--base" in fault["fix"]


def test_without_a_record_that_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_adapter(tmp_path / "a", shape(resolve(str(model), tmp_path)))
    validate(folder, base=str(model), data_dir=tmp_path / "data")
    assert "no record" in capsys.readouterr().out
    assert not (tmp_path / "data" / "fingerprints").exists(), "the weights were hashed for nothing"
