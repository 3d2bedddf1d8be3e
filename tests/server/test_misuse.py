"""The command line as it is misused: one message that names the field ends each line, and nothing is left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from server.cli import _app, _exit_code, _words
from server.commands.errors import CommandFailed
from server.datadir import DataDir, DataDirUnusable
from server.keys.opening import open_keys
from server.serve import serve
from server.settings import Settings, SettingsError, read_settings
from training.config_file import read_config
from training.errors import ConfigInvalid


def commands(group: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*path, name))
        else:
            assert isinstance(command, TyperCommand)
            yield " ".join((*path, name)), command


def test_every_option_says_what_it_is_for() -> None:
    group = get_command(_app)
    assert isinstance(group, TyperGroup)
    found = dict(commands(group))
    assert "adapters push" in found
    assert [f"{n} {o.opts[0]}" for n, c in found.items() for o in c.params if not getattr(o, "help", None)] == []


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("adapters ls --url localhost:8000", "--url"),
        ("adapters ls --url http://", "--url"),
        ("adapters ls --url http://127.0.0.1:99999", "--url"),
        ("chat --url ftp://127.0.0.1", "--url"),
        ("train c.yaml --push 127.0.0.1:8000", "--push"),
        ("adapters canary sql 2 --weight 7", "--weight"),
        ("validate a --quantization q8", "--quantization"),
        ("merge a out --quantization q8", "--quantization"),
        ("merge a out --dtype int8", "--dtype"),
        ("merge a out --heldout nowhere.jsonl", "--heldout"),
        ("plan --gpu lots", "--gpu"),
        ("plan --png a", "--png"),
        ("keys create --tenant no/name --data-dir d", "--tenant"),
        ("keys create --tenant a --project no/name --data-dir d", "--project"),
        ("keys create --tenant a --expires never --data-dir d", "--expires"),
    ],
)
def test_a_line_that_is_typed_wrongly_names_the_field(
    line: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    result = CliRunner().invoke(_app, line.split(), env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert field in result.output
    assert list(tmp_path.iterdir()) == [tmp_path / "a"], "nothing is written"


def test_doctor_makes_no_data_directory_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for folder in ("nowhere", "other"):
        failed = CliRunner().invoke(_app, ["doctor", "--data-dir", str(tmp_path / folder)]).exception
        assert isinstance(failed, CommandFailed)
        assert "--data-dir" in str(failed)
    assert [path.name for path in tmp_path.rglob("*")] == ["other"]


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        for use in (lambda data: data.lock(), open_keys):
            with pytest.raises(DataDirUnusable, match="--data-dir"):
                use(DataDir(folder))


def test_a_checkpoint_that_cannot_be_made_is_told_before_the_base_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = CliRunner().invoke(_app, ["merge", str(tmp_path), str(tmp_path / "file" / "out"), "--base", "none/such"])
    assert isinstance(failed.exception, CommandFailed)
    assert f"cannot be made in {tmp_path / 'file'}" in str(failed.exception)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 3", "prot in the settings file is no setting. Did you mean `port`?"),
        ("[quota]\nweigth = 2", "[quota] weigth in the settings file is no setting. Did you mean `weight`?"),
        (
            "[tenants.acme]\nadpters = 2",
            "[tenants.acme] adpters in the settings file is no setting. Did you mean `adapters`?",
        ),
        ("zzz = 3", "zzz in the settings file is no setting. docs/settings.md lists them."),
    ],
)
def test_a_key_that_is_no_setting_is_told_with_the_nearest(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(SettingsError) as raised:
        read_settings({"config": tmp_path / "r.toml"})
    assert str(raised.value) == told


@pytest.mark.parametrize(
    ("name", "setting"), [("MAX_SEQUENCE", "MAX_SEQUENCES"), ("LOGLEVEL", "LOG_LEVEL"), ("adapter", "ADAPTERS")]
)
def test_a_variable_that_is_nearly_a_setting_is_told_with_it(
    name: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ROOTSTOCK_{name}", "3")
    with pytest.raises(SettingsError, match=f"ROOTSTOCK_{name} in .* Did you mean `ROOTSTOCK_{setting}`"):
        read_settings({})


@pytest.mark.parametrize(
    "name", ["API_KEY", "URL", "SERVICE_HOST", "SERVICE_PORT", "PORT_8000_TCP", "PORT_8000_TCP_ADDR", "HOME"]
)
def test_variables_of_commands_and_of_kubernetes_are_let_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ROOTSTOCK_{name}", "tcp://10.0.0.1:8000")
    read_settings({})


def test_a_settings_file_that_is_a_directory_is_said_to_be_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--config .* is no file"):
        read_settings({"config": tmp_path})


@pytest.mark.parametrize("name", ["ROOTSTOCK_QUOTA", "ROOTSTOCK_TENANTS"])
def test_a_table_in_the_environment_that_is_no_json_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "{")
    with pytest.raises(SettingsError, match=f"{name} is no JSON"):
        read_settings({})


def test_an_adapter_that_is_not_there_is_told_before_anything_is_made(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "d", adapters={"sql": tmp_path / "nowhere"})
    with pytest.raises(SettingsError, match="--adapter sql="):
        serve(settings)
    assert list(tmp_path.iterdir()) == []


def test_an_override_without_a_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("output: x")
    with pytest.raises(ConfigInvalid, match="KEY=VALUE"):
        read_config(tmp_path / "c.yaml", ["=3"])


def test_a_path_that_leads_nowhere_is_told_in_words_and_our_bugs_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        (tmp_path / "missing" / "x").write_text("")
    assert _exit_code(raised.value) == 1
    assert _words(raised.value) == f"{tmp_path / 'missing' / 'x'}: No such file or directory."
    assert _exit_code(OSError("ours")) is None
