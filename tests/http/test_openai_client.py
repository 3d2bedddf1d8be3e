"""The official OpenAI client against a live server.

The `target` fixture names the server, its base and one adapter; another module may provide one for the real
engine and import these tests.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import openai
import pytest

from tests.support.http import LiveServer
from tests.support.server_rig import BASE, ServerRig, form


@dataclass(frozen=True)
class Target:
    url: str
    base: str
    adapter: str


@pytest.fixture(scope="module")
def target(live: LiveServer, rig: ServerRig) -> Target:
    with live.client() as client:
        client.post("/v1/adapters", data={"name": "sql", "alias": "prod"}, files=form()).raise_for_status()
    return Target(live.url, BASE, "sql")


@pytest.fixture(scope="module")
def client(target: Target) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{target.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]


def test_models(client: openai.OpenAI, target: Target) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids[0] == target.base
    assert target.adapter in ids
    card = client.models.retrieve(target.adapter).model_dump()
    assert card["parent"] == target.base
    assert card["root"].startswith("sha256:")


def test_completion(client: openai.OpenAI, target: Target) -> None:
    reply = client.completions.create(model=target.base, prompt="Once", max_tokens=8, temperature=0)
    assert reply.object == "text_completion"
    assert reply.model == target.base
    assert reply.choices[0].finish_reason in ("length", "stop")
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 8
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_prompts_in_four_spellings(client: openai.OpenAI, target: Target) -> None:
    for prompt, count in (("ab", 1), (["ab", "c"], 2), ([97, 98], 1), ([[97, 98], [99]], 2)):
        reply = client.completions.create(model=target.base, prompt=prompt, max_tokens=2, temperature=0)
        assert [choice.index for choice in reply.choices] == list(range(count))


def test_streamed_completion_is_the_whole_one(client: openai.OpenAI, target: Target) -> None:
    for model in (target.base, target.adapter):
        whole = client.completions.create(model=model, prompt="Once", max_tokens=12, temperature=0)
        chunks = client.completions.create(model=model, prompt="Once", max_tokens=12, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_echo_with_logprobs(client: openai.OpenAI, target: Target) -> None:
    reply = client.completions.create(model=target.base, prompt="Once", max_tokens=1, echo=True, logprobs=2)
    choice = reply.choices[0]
    assert choice.text.startswith("Once")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None and choice.logprobs.token_logprobs is not None
    values: list[float | None] = list(choice.logprobs.token_logprobs)
    assert values[0] is None
    assert len(choice.logprobs.tokens) == len(values)
    assert all(value is not None and value <= 0 for value in values[1:])


def test_chat(client: openai.OpenAI, target: Target) -> None:
    reply = client.chat.completions.create(model=target.adapter, messages=HELLO, max_completion_tokens=6)
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert isinstance(reply.choices[0].message.content, str)


def test_content_in_parts_is_the_same_text(client: openai.OpenAI, target: Target) -> None:
    parts: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]}
    ]
    one = client.chat.completions.create(model=target.base, messages=HELLO, max_tokens=6, temperature=0)
    two = client.chat.completions.create(model=target.base, messages=parts, max_tokens=6, temperature=0)
    assert one.choices[0].message.content == two.choices[0].message.content


def test_streamed_chat_is_the_whole_one(client: openai.OpenAI, target: Target) -> None:
    whole = client.chat.completions.create(model=target.base, messages=HELLO, max_tokens=9, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=target.base,
            messages=HELLO,
            max_tokens=9,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] is not None
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_chat_logprobs(client: openai.OpenAI, target: Target) -> None:
    reply = client.chat.completions.create(
        model=target.base, messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=4, temperature=0
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    for token in logprobs.content:
        assert token.logprob <= 0
        assert token.bytes is not None
        assert len(token.top_logprobs) == 4
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)


def test_n_answers(client: openai.OpenAI, target: Target) -> None:
    reply = client.chat.completions.create(model=target.base, messages=HELLO, max_tokens=5, n=3, seed=7)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert reply.usage is not None
    assert reply.usage.completion_tokens <= 15


def test_seed_repeats_and_differs(client: openai.OpenAI, target: Target) -> None:
    def say(seed: int) -> str:
        reply = client.completions.create(model=target.base, prompt="Once", max_tokens=16, temperature=2, seed=seed)
        return reply.choices[0].text

    assert say(1) == say(1)
    assert say(1) != say(2)


def test_e52_stop_is_cut_exactly(client: openai.OpenAI, target: Target) -> None:
    whole = client.completions.create(model=target.base, prompt="Once", max_tokens=12, temperature=0).choices[0].text
    stop = whole[4:6]
    reply = client.completions.create(model=target.base, prompt="Once", max_tokens=12, temperature=0, stop=[stop])
    assert reply.choices[0].text == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_extensions(client: openai.OpenAI, target: Target) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "ignore_eos": True, "min_tokens": 2, "return_token_ids": True}
    reply = client.completions.create(model=target.base, prompt="Once", max_tokens=4, extra_body=extra)
    choice = reply.choices[0].model_dump()
    assert len(choice["token_ids"]) == 4
    assert choice["prompt_token_ids"]


def test_errors_are_the_clients_own(client: openai.OpenAI, target: Target) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nobody", prompt="x")
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=target.base, messages=HELLO, temperature=3)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=target.base, prompt="x", max_tokens=1 << 20)
    assert long.value.code == "context_length_exceeded"


def test_unserved_features_are_refused_by_name(client: openai.OpenAI, target: Target) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=target.base, messages=HELLO, functions=[{"name": "f", "parameters": {}}])
    assert refused.value.param == "functions" and "`tools`" in refused.value.message


def test_the_adapter_is_named_in_the_headers(target: Target, client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model=target.adapter, prompt="Once", max_tokens=1)
    assert raw.headers["x-rootstock-adapter"] == client.models.retrieve(target.adapter).model_dump()["root"]
    assert raw.headers["x-rootstock-tier"] in ("device", "host", "disk", "merged")
    assert float(raw.headers["x-rootstock-queue-ms"]) >= 0
    with httpx.Client(base_url=target.url, trust_env=False) as plain:
        reply = plain.post("/v1/completions", json={"model": target.base, "prompt": "x", "max_tokens": 1})
    assert reply.headers["x-rootstock-tier"] == "base"
