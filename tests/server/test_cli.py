"""The `rootstock` command as a user runs it, against a live server over fakes."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.http import LiveServer
from tests.support.server_rig import BASE, ServerRig, write_adapter

RUN = "import sys; from server.cli import main; sys.argv[0] = 'rootstock'; main()"
ROOT = Path(__file__).parents[2]


def rootstock(*words: str, stdin: str = "", url: str = "", key: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "COLUMNS": "200", "NO_PROXY": "*"}
    if url:
        environment["ROOTSTOCK_URL"] = url
    if key:
        environment["ROOTSTOCK_API_KEY"] = key
    command = [sys.executable, "-c", RUN, *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)


def test_help_needs_no_torch() -> None:
    script = RUN.replace("main()", "\ntry:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules)")
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert "serve" in done.stdout and "adapters" in done.stdout
    assert done.stdout.rstrip().endswith("False")


def test_serve_has_a_flag_for_every_setting() -> None:
    shown = rootstock("serve", "--help").stdout
    for flag in (
        "--base",
        "--adapter ",
        "--kv-cache-memory",
        "--drain-timeout",
        "--adapter-root",
        "--config",
        "--allow-quantization-mismatch",
        "--no-cuda-graphs",
    ):
        assert flag in shown, flag


def test_a_bad_setting_is_exit_2_and_names_itself() -> None:
    done = rootstock("serve", "--port", "many")
    assert done.returncode == 2
    assert "ROOTSTOCK_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server_is_exit_3_with_the_fix() -> None:
    done = rootstock("adapters", "ls", "--url", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert "rootstock serve" in done.stderr


def test_the_life_of_an_adapter(live: LiveServer, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "sql", 1)
    pushed = rootstock("adapters", "push", str(folder), "--alias", "prod", url=live.url)
    assert pushed.returncode == 0, pushed.stderr
    assert "sql@1 added" in pushed.stdout
    again = rootstock("adapters", "push", str(folder), "--json", url=live.url)
    assert json.loads(again.stdout)["version"] == 1
    rootstock("adapters", "push", str(write_adapter(tmp_path / "new", 2)), "--name", "sql", url=live.url)
    assert "sql@2" in rootstock("adapters", "alias", "sql", "prod", "2", url=live.url).stdout
    shown = json.loads(rootstock("adapters", "show", "sql", "--json", url=live.url).stdout)
    assert [(card["version"], card["aliases"]) for card in shown] == [(1, []), (2, ["prod"])]
    assert "90.0%" in rootstock("adapters", "canary", "sql", "1", url=live.url).stdout
    assert "sql@2 again" in rootstock("adapters", "rollback", "sql", url=live.url).stdout
    assert "sql@2 has all" in rootstock("adapters", "canary", "sql", url=live.url).stdout
    for verb in ("pin", "unpin", "merge", "unmerge"):
        assert rootstock("adapters", verb, "sql", url=live.url).returncode == 0, verb
    table = rootstock("adapters", "ls", url=live.url).stdout
    assert "q_proj" in table and "sql" in table
    assert rootstock("adapters", "rm", "sql", url=live.url).returncode == 0
    gone = rootstock("adapters", "show", "sql", url=live.url)
    assert gone.returncode == 1
    assert "no such adapter" in gone.stderr


def test_pushing_what_is_no_adapter_says_so(live: LiveServer, tmp_path: Path) -> None:
    done = rootstock("adapters", "push", str(tmp_path), url=live.url)
    assert done.returncode == 1
    assert "adapter_config.json" in done.stderr
    folder = write_adapter(tmp_path / "bad")
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    refused = rootstock("adapters", "push", str(folder), url=live.url)
    assert refused.returncode == 1
    assert "adapter_model.safetensors" in refused.stderr


def test_chat_keeps_the_conversation(live: LiveServer, rig: ServerRig) -> None:
    done = rootstock("chat", "--model", BASE, "--max-tokens", "4", stdin="hello\nagain\n/quit\n", url=live.url)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert len(first) == 4 and len(second) == 4
    prompt = bytes(id for id in rig.worker.seen[-1].prompt if id < 256).decode()
    assert "hello" in prompt and first in prompt and "again" in prompt


def test_chat_with_an_unknown_model_fails(live: LiveServer) -> None:
    done = rootstock("chat", "--model", "nobody", stdin="hello\n", url=live.url)
    assert done.returncode == 1
    assert "/v1/models" in done.stderr
