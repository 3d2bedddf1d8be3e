"""`rootstock adapters eval`, `promote`, `rollback`, and `push` of a folder with eval.jsonl, where keys are asked for.

The fake engine says how likely tokens are by the adapter alone, as in tests/http/test_promote.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.http.test_promote import EVAL, Opinionated
from tests.server.test_cli import rootstock
from tests.support.http import LiveServer, serve
from tests.support.keys import guarded_rig, key_of
from tests.support.server_rig import write_adapter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, str, Path]]:
    """A server, acme's key, and a folder for rows. `q@1` is good, `q@2` is bad; `prod` is at the first."""
    folder, worker = tmp_path_factory.mktemp("promoting"), Opinionated()
    worker.logprobs = {}
    with guarded_rig(folder, worker=worker) as (rig, store), serve(rig.app) as live:
        key = key_of(store, "acme")
        for seed, logprob, words in ((1, -1.0, ("--alias", "prod")), (2, -3.0, ())):
            source = write_adapter(folder / f"q{seed}", seed)
            card = json.loads(said("adapters", "push", str(source), "--name", "q", "--json", *words, made=(live, key)))
            worker.logprobs[card["id"]] = logprob
        (folder / "rows.jsonl").write_bytes(EVAL)
        yield live, key, folder


Made = tuple[LiveServer, str, Path]


def said(*words: str, made: tuple[LiveServer, str]) -> str:
    done = rootstock(*words, url=made[0].url, key=made[1])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_version_is_given_rows_measured_refused_forced_and_taken_back(made: Made) -> None:
    live, key, folder = made
    assert "q@2 carries 2 eval rows" in said("adapters", "eval", "q", str(folder / "rows.jsonl"), made=(live, key))
    refused = rootstock("adapters", "promote", "q", "2", url=live.url, key=key)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "-3.000" in refused.stderr and "-1.000" in refused.stderr and "Give --force" in refused.stderr
    forced = said("adapters", "promote", "q", "2", "--force", made=(live, key))
    assert forced.strip() == "q@prod is now q@2: forced, not measured"
    assert "q@prod is q@1 again" in said("adapters", "rollback", "q", made=(live, key))
    better = said("adapters", "promote", "q", "1", "--alias", "next", made=(live, key))
    assert better.strip() == "q@next is now q@1: not measured, no eval file"
    said("adapters", "eval", "q@1", str(folder / "rows.jsonl"), made=(live, key))
    output = said("adapters", "promote", "q", "1", "--alias", "next", made=(live, key))
    assert "-1.000 nats per token, 100% exact; before -1.000 and 100%" in output
    card = json.loads(said("adapters", "promote", "q", "1", "--alias", "next", "--json", made=(live, key)))
    assert (card["version"], card["before"]["mean_logprob"]) == (1, -1.0)


def test_what_is_wrong_is_told_without_a_traceback(made: Made) -> None:
    live, key, folder = made
    (folder / "bad.jsonl").write_text("{")
    for words, expected in (
        (("eval", "q", str(folder / "none.jsonl")), "There is no file"),
        (("eval", "q", str(folder / "bad.jsonl")), "eval.jsonl:1"),
        (("eval", "nobody", str(folder / "rows.jsonl")), "no such adapter"),
        (("promote", "q", "9"), "no such adapter"),
        (("rollback", "q", "--alias", "nowhere"), "nowhere"),
    ):
        done = rootstock("adapters", *words, url=live.url, key=key)
        assert done.returncode == 1 and expected in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_a_version_is_given_another_name(made: Made) -> None:
    live, key, _ = made
    assert said("adapters", "cp", "q@2", "renamed", "--alias", "prod", made=(live, key)).strip() == "renamed@1 added"
    assert "already there" in said("adapters", "cp", "q@2", "renamed", made=(live, key))
    with live.client(authorization=f"Bearer {key}") as client:
        copied, source = (client.get(f"/v1/adapters/{name}").json() for name in ("renamed@prod", "q@2"))
        assert copied["id"] == source["id"]
        found = client.get("/v1/adapters", params={"id": source["id"]}).json()["data"]
        assert [(card["name"], card["version"]) for card in found] == [("q", 2), ("renamed", 1)]
        assert client.get("/v1/adapters", params={"id": "../x"}).status_code == 400
        seen = client.post("/v1/adapters/renamed/versions", json={"source": "q@1"}, headers={"if-none-match": "*"})
        assert (seen.status_code, seen.json()["error"]["code"]) == (412, "precondition_failed")
    refused = rootstock("adapters", "cp", "nobody", "renamed", url=live.url, key=key)
    assert refused.returncode == 1 and "no such adapter" in refused.stderr


def test_push_takes_a_folders_eval_file_along(made: Made) -> None:
    live, key, folder = made
    source = write_adapter(folder / "along", 7)
    (source / "eval.jsonl").write_bytes(EVAL)
    assert "along@1 added" in said("adapters", "push", str(source), made=(live, key))
    with live.client(authorization=f"Bearer {key}") as client:
        assert rows(client) == EVAL
        (source / "eval.jsonl").write_bytes(EVAL.splitlines()[0])
        assert "already there" in said("adapters", "push", str(source), made=(live, key))
        assert rows(client) == EVAL.splitlines()[0], "the weights were there, the rows are new"
        (source / "eval.jsonl").write_text("{")
        refused = rootstock("adapters", "push", str(source), url=live.url, key=key)
        assert refused.returncode == 1 and "eval.jsonl:1" in refused.stderr


def rows(client: httpx.Client) -> bytes:
    return client.get("/v1/adapters/along@1/eval").content
