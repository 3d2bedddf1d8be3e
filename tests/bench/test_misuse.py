"""The benchmarks' command line as it is misused: what is typed wrongly names its option, before anything is started."""

from pathlib import Path

import httpx
import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from bench.commands import app
from bench.errors import BenchError, words
from tests.support import tiny_base
from tests.support.fake_openai import FakeServer, running

NOWHERE = "http://127.0.0.1:9"


def commands() -> TyperGroup:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def test_every_option_says_what_it_is_for() -> None:
    silent = [
        f"{name} {option.opts[0]}"
        for name, command in commands().commands.items()
        for option in command.params
        if not getattr(option, "help", None)
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("run localhost:8000", "[NAME=]URL"),
        ("run ours=", "[NAME=]URL"),
        (f"run {NOWHERE} --adapters 0", "--adapters"),
        (f"run {NOWHERE} --rank 0", "--rank"),
        (f"run {NOWHERE} --rank 257", "--rank"),
        (f"run {NOWHERE} --minutes -3", "--minutes"),
        (f"run {NOWHERE} --base-dir nowhere", "--base-dir"),
        (f"run {NOWHERE} --prompt-tokens few", "--prompt-tokens"),
        (f"run {NOWHERE} --prompt-tokens 9-3", "--prompt-tokens"),
        (f"run {NOWHERE} --output-tokens 0", "--output-tokens"),
        (f"run {NOWHERE} --popularity zipf:", "--popularity"),
        (f"run {NOWHERE} --arrivals closed:0", "--arrivals"),
        (f"run {NOWHERE} --arrivals poisson:", "--arrivals"),
        (f"run {NOWHERE} --arrivals poisson:nan", "--arrivals"),
        (f"run {NOWHERE} --arrivals poisson:-1", "--arrivals"),
        (f"run {NOWHERE} --arrivals nowhere.jsonl", "--arrivals"),
        (f"run {NOWHERE} --work-dir file", "--work-dir"),
        ("compare --url ftp://127.0.0.1", "--url"),
        ("compare --url http://127.0.0.1:99999", "--url"),
        (f"compare --url {NOWHERE}", "--base-dir"),
        ("compare --precision bf16 --precision int8", "--precision"),
        ("compare --serve-flags '", "--serve-flags"),
        ("connections --url localhost:1", "--url"),
        ("soak --work-dir file/below", "--work-dir"),
        ("step --dtype int8", "--dtype"),
        ("step --quantization q9", "--quantization"),
        ("step --adapters -1", "--adapters"),
        ("limits nowhere", "BASE"),
        ("limits file", "BASE"),
        ("adapters nowhere made", "BASE"),
        ("adapters base file", "TARGET"),
        ("base tiny base --like base", "TARGET"),
        ("base tiny made --like nowhere", "--like"),
        ("training --config nowhere.yaml", "--config"),
        ("show base", "FILE"),
        ("regress HEAD --repository nowhere", "--repository"),
    ],
)
def test_a_line_that_is_typed_wrongly_names_the_field(
    line: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "file").write_text("no folder")
    result = CliRunner().invoke(app, line.split(), env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    assert field in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"base", "file"}, "nothing is written"


def test_a_step_and_its_floor_may_be_the_bases_alone(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["limits", str(tiny_base.write(tmp_path)), "--adapters", "0", "--rows", "3"])
    assert result.exit_code == 0, result.output
    assert "0 adapters" in result.output


def test_a_folder_that_is_no_base_says_so(tmp_path: Path) -> None:
    assert "Hugging Face" in str(CliRunner().invoke(app, ["limits", str(tmp_path)]).exception)
    for content in (b"short", b"\xff" * 8 + b"{", (2).to_bytes(8, "little") + b"no"):
        (tmp_path / "model.safetensors").write_bytes(content)
        failed = CliRunner().invoke(app, ["limits", str(tmp_path)]).exception
        assert isinstance(failed, BenchError)
        assert "model.safetensors is no safetensors file" in str(failed)


@pytest.mark.parametrize("text", ["just words", "data: 3", "- a list", "a: [1"])
def test_a_config_without_data_says_so(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    result = CliRunner().invoke(app, ["training", "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path)])
    assert isinstance(result.exception, BenchError)
    assert "c.yaml" in str(result.exception)


def test_a_server_that_does_not_answer_is_named() -> None:
    failed = CliRunner().invoke(app, ["run", f"ours={NOWHERE}/"]).exception
    assert isinstance(failed, httpx.TransportError)
    told = words(failed)
    assert told is not None
    assert f"{NOWHERE}/ does not answer" in told


def test_a_server_of_another_kind_is_named() -> None:
    with running(FakeServer([{"id": "sql", "parent": "base"}])) as url:
        assert f"{url} lists no base" in str(CliRunner().invoke(app, ["run", url]).exception)
        failed = CliRunner().invoke(app, ["run", url, "--api", "llama.cpp"]).exception
    assert isinstance(failed, httpx.HTTPStatusError)
    assert f"{url}/lora-adapters answered 404" in str(words(failed))


def test_a_file_that_cannot_be_written_is_named_and_our_bugs_keep_their_traceback(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        (tmp_path / "missing" / "file").write_text("")
    assert words(raised.value) == f"{tmp_path / 'missing' / 'file'}: No such file or directory."
    assert words(ValueError("ours")) is None
    assert words(OSError("without a file")) is None
