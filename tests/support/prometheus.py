"""A real Prometheus that scrapes one server every second, and what it answers to queries.

Owns the process and its folder. Only where `prometheus` is installed: ask `HERE` first.
"""

import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.support.http import eventually

HERE = shutil.which("prometheus") is not None


class Prometheus:
    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def scrapes(self) -> bool:
        """Whether the server was scraped, without an error."""
        return [sample["value"][1] for sample in self.query("up")] == ["1"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that it gives now, each with its labels. Asserts that Prometheus takes the expression."""
        reply = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert reply["status"] == "success", f"{expression}: {reply['error']}"
        samples: list[dict[str, Any]] = reply["data"]["result"]
        return samples

    def sick_rules(self) -> list[dict[str, Any]]:
        """The rules that could not be evaluated."""
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"] if rule["health"] == "err"]


@contextlib.contextmanager
def scraping(target: str, rules: Path, folder: Path) -> Iterator[Prometheus]:
    """Until the block ends, one that watches `target`, a host and port, as the job `rootstock`."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "rootstock", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    at = f"127.0.0.1:{_free_port()}"
    flags = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "log").open("w") as log, httpx.Client(base_url=f"http://{at}", trust_env=False) as client:
        process = subprocess.Popen(["prometheus", *flags, f"--web.listen-address={at}"], stdout=log, stderr=log)
        try:
            eventually(lambda: _ready(client), within_s=30)
            yield Prometheus(client)
        finally:
            process.terminate()
            process.wait(30)


def _ready(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/-/ready").status_code == 200
    return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
