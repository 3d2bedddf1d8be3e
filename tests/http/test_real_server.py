"""The embedded base and a demo adapter behind `rootstock serve`, spoken to as users do: SDK, curl's bodies, lm-eval."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.http.test_openai_client import (  # noqa: F401 -- the same tests, against the real engine
    Target,
    client,
    test_chat,
    test_chat_logprobs,
    test_completion,
    test_content_in_parts_is_the_same_text,
    test_e52_stop_is_cut_exactly,
    test_echo_with_logprobs,
    test_errors_are_the_clients_own,
    test_extensions,
    test_models,
    test_n_answers,
    test_prompts_in_four_spellings,
    test_seed_repeats_and_differs,
    test_streamed_chat_is_the_whole_one,
    test_streamed_completion_is_the_whole_one,
    test_the_adapter_is_named_in_the_headers,
    test_unserved_features_are_refused_by_name,
)
from tests.support.embedded import embedded_source
from tests.support.served import Served, served
from tests.support.structures import keeps_to, parsed

CLONE = Path(__file__).parents[2]
DEMOS = CLONE / "demo" / "adapters"
BASE = "smollm2-135m-instruct"
GIBI = 1 << 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    converted = embedded_source()  # so that the server's own start is that of a warm disk
    (root / "data").mkdir()
    (root / "data" / "bases").symlink_to(converted.path.parent)
    flags = [f"--adapter={name}={DEMOS / name}" for name in ("extract", "pirate")]
    budgets = ["--kv-cache-memory=128MiB", "--adapter-device-memory=32MiB", "--adapter-host-memory=32MiB"]
    with served("--data-dir", str(root / "data"), *budgets, *flags, log=root / "log") as running:
        yield running


def test_a_server_without_keys_listens_to_no_name_but_its_own(http: httpx.Client) -> None:
    assert http.get("/v1/models").status_code == 200
    assert http.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
    assert http.get("/v1/models", headers={"origin": "https://evil.example"}).status_code == 403


@pytest.fixture(scope="module")
def target(server: Served) -> Target:
    return Target(server.url, BASE, "extract")


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def test_it_stays_small(server: Served) -> None:
    """The issue of memory: beyond the budgets, the server with the bf16 base takes less than 1.2 GB."""
    assert server.resident_bytes < 1.2 * GIBI


def test_the_demo_adapters_change_what_is_said(http: httpx.Client) -> None:
    sentence = "Yesterday Maria Lopez paid 40 euros in Lisbon."
    answers = {name: _chat(http, name, sentence) for name in (BASE, "extract", "pirate")}
    assert len(set(answers.values())) == 3
    assert json.loads(answers["extract"]).keys() == {"name", "city", "date", "amount"}
    assert re.search(r"\b(arr|aye|ye|matey|cap'n|be)\b", answers["pirate"].lower())


def test_an_adapter_keeps_to_a_schema_that_it_was_not_trained_for(http: httpx.Client) -> None:
    properties = {"place": {"type": "string", "maxLength": 20}, "paid_by": {"enum": ["card", "cash"]}}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    body = {
        "model": "extract",
        "messages": [{"role": "user", "content": "Yesterday Maria Lopez paid 40 euros in Lisbon."}],
        "temperature": 0,
        "max_tokens": 60,
        "response_format": {"type": "json_schema", "json_schema": {"name": "payment", "schema": schema}},
    }
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "stop" and keeps_to(parsed(choice["message"]["content"]), schema)


def test_the_base_is_untouched_by_a_merged_neighbour(http: httpx.Client) -> None:
    """Whatever is merged, the base and other adapters answer to the letter as before, and so they do afterwards."""
    before = {name: _chat(http, name, "What is the capital of France?") for name in (BASE, "pirate")}
    assert http.post("/v1/adapters/extract/merge").is_success
    merged = http.post("/v1/completions", json={"model": "extract", "prompt": "Hello", "max_tokens": 1})
    assert merged.headers["x-rootstock-tier"] == "merged"
    during = {name: _chat(http, name, "What is the capital of France?") for name in before}
    assert http.delete("/v1/adapters/extract/merge").is_success
    after = {name: _chat(http, name, "What is the capital of France?") for name in before}
    assert before == during == after


def test_lm_eval_scores_each_model(server: Served, tmp_path: Path) -> None:
    """lm-eval's `local-completions`: a log-likelihood task over echoed prompts, for the base and an adapter."""
    lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    task = _write_task(tmp_path)
    scores = {}
    for model in (BASE, "extract"):
        results = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": model,
                "base_url": f"{server.url}/v1/completions",
                "tokenizer_backend": "huggingface",
                "tokenizer": str(embedded_source().path),
                "num_concurrent": 2,
                "max_retries": 1,
            },
            tasks=[task],
            bootstrap_iters=0,
        )
        scores[model] = results["results"]["extraction"]["acc,none"]
    assert scores["extract"] > scores[BASE]


def _chat(http: httpx.Client, model: str, content: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 48, "temperature": 0}
    reply = http.post("/v1/chat/completions", json=body)
    reply.raise_for_status()
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


def _write_task(root: Path) -> dict[str, object]:
    """Which of two continuations is likelier after a sentence: JSON, or chatter?"""
    examples = []
    for line in (CLONE / "demo" / "data" / "extract.heldout.jsonl").read_text().splitlines()[:4]:
        messages = json.loads(line)["messages"]
        examples.append({"query": messages[-2]["content"], "json": messages[-1]["content"]})
    (root / "examples.jsonl").write_text("\n".join(map(json.dumps, examples)))
    return {
        "task": "extraction",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(root / "examples.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "<|im_start|>user\n{{query}}<|im_end|>\n<|im_start|>assistant\n",
        "doc_to_choice": "{{[json, 'I am not sure what you mean.']}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    }
