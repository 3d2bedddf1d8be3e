"""From a config to a request by name: `rootstock train --push` into a running `rootstock serve`, as users type them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernels import furnished
from tests.support.models import tiny_model_dir
from tests.support.served import Served, run, served

BUDGETS = ("--kv-cache-memory=8MiB", "--adapter-device-memory=8MiB", "--adapter-host-memory=8MiB")
CONFIG = """
output: {folder}/out
base: {base}
method: qlora
data: {{train: {folder}/data.jsonl}}
steps: {{max_steps: 2, batch: 4, eval_every: 2, threads: 1}}
adapter: {{rank: 4}}
gate: {{examples: 2}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("train")
    base = tiny_model_dir("llama", made)
    lines = ({"prompt": f"say {n}", "completion": f"{n}! ahoy"} for n in range(12))
    (made / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (made / "config.yaml").write_text(CONFIG.format(folder=made, base=base))
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    flags = ("--base", str(folder / "llama"), "--quantization", "nf4", "--data-dir", str(folder / "data"))
    with served(*flags, *BUDGETS, log=folder / "log") as running:
        yield running


def test_one_command_makes_an_adapter_callable(server: Served, folder: Path) -> None:
    push = ("--push", server.url, "--name", "taught", "--alias", "prod")
    done = run("train", str(folder / "config.yaml"), "--data-dir", str(folder / "data"), *push)
    assert done.returncode == 0, done.stderr
    assert f"curl {server.url}/v1/chat/completions" in done.stdout and '"model": "taught@prod"' in done.stdout
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["parity"]["passed"] and report["parity"]["quantization"] == "nf4"
    with server.client() as http:
        body = {"model": "taught@prod", "messages": [{"role": "user", "content": "say 3"}], "max_tokens": 4}
        reply = http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        card = http.get("/v1/adapters/taught").json()
    assert reply.headers["x-rootstock-adapter"] == card["id"]
    assert (card["base_weights"], card["base_quantization"]) == (report["base_weights"], "nf4")


def test_another_server_refuses_it_and_says_what_to_add(server: Served, folder: Path) -> None:
    """After the test above: the server of the fixture keeps the first data directory to itself."""
    assert (folder / "out").is_dir()
    data = furnished(folder / "other")
    flags = ("--base", str(folder / "llama"), "--data-dir", str(data), f"--adapter=taught={folder / 'out'}")
    refused = run("serve", "--port", "0", *flags, *BUDGETS)
    assert refused.returncode == 1
    for part in ("--adapter taught=", "quantization nf4", "quantization none", "--allow-quantization-mismatch"):
        assert part in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
