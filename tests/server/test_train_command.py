"""`rootstock train` around the run: errors with their exit codes, the dry run, and the way to the server."""

import json
import subprocess
from pathlib import Path

import pytest

from adapters.errors import AliasInvalid, NameInvalid
from server.commands.deliver import Destination, curl
from server.commands.errors import CommandFailed, Unreachable
from server.commands.train import train
from tests.server.test_cli import rootstock
from tests.support.http import LiveServer
from tests.support.models import tiny_model_dir
from tests.support.server_rig import ServerRig, write_adapter

NOWHERE = "http://127.0.0.1:9"


def run(folder: Path, config: str, *words: str) -> "subprocess.CompletedProcess[str]":
    (folder / "config.yaml").write_text(config)
    return rootstock("train", str(folder / "config.yaml"), "--data-dir", str(folder / "data"), *words)


def data(folder: Path, *lines: object) -> Path:
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_bad_config_is_exit_2_with_every_fault(tmp_path: Path) -> None:
    done = run(
        tmp_path, "output: out\nmethd: lora\ndata: {train: t.jsonl, max_seq_length: 5}\n", "--set", "steps.batch=5"
    )
    assert done.returncode == 2
    for part in ("methd", "method", "data.max_tokens"):
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_flags_are_keys_of_the_config(tmp_path: Path) -> None:
    config = f"output: out\nmethod: full\ndata: {{train: {tmp_path / 't.jsonl'}}}\n"
    done = run(tmp_path, config, "--push", NOWHERE, "--name", "7")
    assert done.returncode == 2
    assert "only adapters are pushed" in done.stderr


def test_a_bad_line_of_data_is_exit_1_before_a_base_is_looked_for(tmp_path: Path) -> None:
    file = data(tmp_path, {"prompt": "a", "completion": "b"}, {"prompt": "a"})
    done = run(tmp_path, f"output: {tmp_path / 'out'}\nbase: /nowhere\ndata: {{train: {file}}}\n", "--dry-run")
    assert done.returncode == 1
    assert f"{file}:2" in done.stderr and "Traceback" not in done.stderr


def test_a_server_that_is_not_there_is_exit_3_before_anything_is_trained(tmp_path: Path) -> None:
    file = data(tmp_path, *({"prompt": f"say {n}", "completion": f"{n}!"} for n in range(12)))
    done = run(tmp_path, f"output: {tmp_path / 'out'}\nbase: /nowhere\ndata: {{train: {file}}}\n", "--push", NOWHERE)
    assert done.returncode == 3
    assert "train without --push" in done.stderr


def test_the_dry_run_shows_an_example_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_model_dir("llama", tmp_path / "models")
    file = data(tmp_path, *({"prompt": f"say {n}", "completion": f"{n}!"} for n in range(12)))
    config = tmp_path / "config.yaml"
    config.write_text(f"output: {tmp_path / 'out'}\nbase: {base}\ndata: {{train: {file}}}\n")
    train(config, dry_run=True, data_dir=tmp_path / "data", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["train"]["examples"] + told["heldout"]["examples"] == 12
    assert not list(tmp_path.glob("*out*"))


def test_a_parcel_is_callable_before_its_alias_moves(live: LiveServer, rig: ServerRig, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 1)
    told = Destination(live.url, "taught", "prod").deliver(folder)
    assert "taught@1 added" in told and told.endswith(curl(live.url, "taught@prod"))
    version = rig.catalog.resolve("taught@prod")
    assert [request.adapter for request in rig.worker.seen[-1:]] == [version.id]
    again = Destination(live.url, "taught", None).deliver(folder)
    assert "was there already" in again and '"model": "taught"' in again


def test_an_alias_stays_where_it_is_when_the_new_version_fails(
    live: LiveServer, rig: ServerRig, tmp_path: Path
) -> None:
    Destination(live.url, "steady", "prod").deliver(write_adapter(tmp_path / "a", 2))
    rig.worker.fail_after = 0
    try:
        with pytest.raises(CommandFailed) as caught:
            Destination(live.url, "steady", "prod").deliver(write_adapter(tmp_path / "b", 3))
    finally:
        rig.worker.fail_after = None
    assert rig.catalog.resolve("steady@prod").number == 1
    assert f"rootstock adapters push {tmp_path / 'b'} --name steady --url {live.url} --alias prod" in str(caught.value)


def test_what_the_server_refuses_is_told_with_the_way_to_try_again(live: LiveServer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CommandFailed, match="rootstock adapters push"):
        Destination(live.url, "broken", None).deliver(folder)


def test_names_and_addresses_are_checked_first(live: LiveServer) -> None:
    Destination(live.url, "fine", "prod").check_address(None)
    with pytest.raises(CommandFailed, match="--allow-quantization-mismatch"):
        Destination(live.url, "fine", "prod").check_address("nf4")
    with pytest.raises(NameInvalid):
        Destination(live.url, "not a name", None).check_address(None)
    with pytest.raises(AliasInvalid):
        Destination(live.url, "fine", "3").check_address(None)
    with pytest.raises(Unreachable):
        Destination(NOWHERE, "fine", None).check_address(None)
