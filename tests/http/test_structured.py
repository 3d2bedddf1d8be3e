"""Answers that must have a form: OpenAI's client and vLLM's fields against a tiny random model behind the whole server.

The model knows nothing, so whatever keeps to a form does so because it is made to.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import openai
import pydantic
import pytest

from tests.support.real_engine_server import RealEngineServer, real_engine_server
from tests.support.server_rig import BASE
from tests.support.structures import COMPACT, keeps_to, parsed

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Who?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "role": {"enum": ["cook", "clerk"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "role"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA | COMPACT, "strict": True}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngineServer]:
    with real_engine_server(tmp_path_factory.mktemp("structured")) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: RealEngineServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.live.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def http(server: RealEngineServer) -> httpx.Client:
    return server.http


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_a_schema(client: openai.OpenAI, temperature: float) -> None:
    for seed in range(5):
        reply = client.chat.completions.create(
            model=BASE, messages=HELLO, response_format=FORMAT, max_tokens=200, temperature=temperature, seed=seed
        )
        assert reply.choices[0].finish_reason == "stop"
        assert keeps_to(parsed(reply.choices[0].message.content or ""), SCHEMA)


def test_a_schema_streamed_is_the_whole_one(client: openai.OpenAI) -> None:
    wish: dict[str, Any] = {"model": BASE, "messages": HELLO, "response_format": FORMAT, "max_tokens": 200, "seed": 3}
    whole = client.chat.completions.create(**wish)
    chunks = list(client.chat.completions.create(**wish, stream=True))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content and keeps_to(parsed(text), SCHEMA)
    assert chunks[-1].choices[0].finish_reason == "stop"


class Person(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=5)]
    role: Literal["cook", "clerk"]
    age: Annotated[int, pydantic.Field(ge=0, lt=100)] | None


class Table(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(json_schema_extra=COMPACT)

    host: Person
    guests: Annotated[list[Person], pydantic.Field(max_length=1)]


def test_a_pydantic_model_is_parsed_by_the_client(client: openai.OpenAI) -> None:
    """The client makes a strict schema of it, with references."""
    for seed in range(3):
        reply = client.chat.completions.parse(
            model=BASE, messages=HELLO, response_format=Table, max_tokens=220, seed=seed, temperature=0.5
        )
        assert isinstance(reply.choices[0].message.parsed, Table)


def test_completions_through_the_client(client: openai.OpenAI) -> None:
    wishes = ({"guided_regex": "[0-9]{3}"}, {"guided_choice": ["red", "blue"]})
    for extra, pattern in zip(wishes, ("[0-9]{3}", "red|blue"), strict=True):
        reply = client.completions.create(model=BASE, prompt="x", extra_body=extra, stream=False)
        assert re.fullmatch(pattern, reply.choices[0].text) and reply.choices[0].finish_reason == "stop"
        chunks = client.completions.create(model=BASE, prompt="x", extra_body=extra, stream=True)
        assert re.fullmatch(pattern, "".join(chunk.choices[0].text for chunk in chunks))


def test_any_object(client: openai.OpenAI) -> None:
    """A random model's strings need not end, so that most answers are cut; the beginning is an object's."""
    reply = client.chat.completions.create(
        model=BASE, messages=HELLO, response_format={"type": "json_object"}, max_tokens=60, seed=1
    )
    text = reply.choices[0].message.content or ""
    assert re.match(r"\{\s*[\"}]", text)
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(parsed(text), dict)


def test_each_answer_has_its_own_place(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=BASE, messages=HELLO, response_format=FORMAT, max_tokens=200, n=4, seed=5, temperature=1.5
    )
    texts = [choice.message.content or "" for choice in reply.choices]
    assert all(keeps_to(parsed(text), SCHEMA) for text in texts) and len(set(texts)) > 1


VLLM = {
    "guided_regex": ({"guided_regex": "[0-9]{2}-[a-c]{1,3}"}, "[0-9]{2}-[a-c]{1,3}"),
    "guided_choice": ({"guided_choice": ["yes", "no", "yes, but"]}, "yes|no|yes, but"),
    "guided_grammar": ({"guided_grammar": 'root ::= "a" ("b" | "c")'}, "a[bc]"),
    "guided_json": ({"guided_json": {"enum": [1, "two"]}}, '1|"two"'),
    "guided_json as text": ({"guided_json": '{"type": "boolean"}'}, "true|false"),
    "regex": ({"structured_outputs": {"regex": "[xy]{4}"}}, "[xy]{4}"),
    "choice": ({"structured_outputs": {"choice": ["é", "ö"], "json": None}}, "é|ö"),
    "grammar": ({"structured_outputs": {"grammar": 'start: /[0-9]+/ "!"'}}, r"[0-9]+!"),
    "json": ({"structured_outputs": {"json": {"const": None}, "disable_fallback": False}}, "null"),
    "json_object": ({"structured_outputs": {"json_object": True}}, r"\{.*"),
    "response_format": ({"response_format": FORMAT}, r"\{.*\}"),
    "text": ({"response_format": {"type": "text"}}, ".*"),
}


@pytest.mark.parametrize(("fields", "pattern"), VLLM.values(), ids=VLLM)
def test_vllms_fields_on_both_routes(http: httpx.Client, fields: dict[str, Any], pattern: str) -> None:
    common = {"model": BASE, "max_tokens": 100, "seed": 8, **fields}
    reply = http.post(COMPLETIONS, json={"prompt": ["Say", "it"], "n": 2, **common})
    assert reply.status_code == 200, reply.text
    texts = [choice["text"] for choice in reply.json()["choices"]]
    chat = http.post(CHAT, json={"messages": HELLO, **common})
    texts.append(chat.json()["choices"][0]["message"]["content"])
    assert len(texts) == 5 and all(re.fullmatch(pattern, text, re.DOTALL) for text in texts), texts


def test_an_adapter_keeps_to_it_too(http: httpx.Client, server: RealEngineServer, tmp_path: Path) -> None:
    server.add(tmp_path, "loud", seed=4)
    common = {"prompt": "x", "max_tokens": 40, "temperature": 0, "logprobs": 0}
    said = {}
    for model in (BASE, "loud"):
        reply = http.post(COMPLETIONS, json={"model": model, **common, "guided_regex": "[a-z]{12}"})
        said[model] = reply.json()["choices"][0]["text"]
        assert re.fullmatch("[a-z]{12}", said[model])
    assert said[BASE] != said["loud"]


def test_echo_and_stop_strings(http: httpx.Client) -> None:
    body = {"model": BASE, "prompt": "Q: ", "max_tokens": 40, "guided_regex": "a{3}b{3}", "echo": True}
    whole = http.post(COMPLETIONS, json=body).json()["choices"][0]
    cut = http.post(COMPLETIONS, json=body | {"stop": ["ab"]}).json()["choices"][0]
    assert (whole["text"], whole["finish_reason"], whole["stop_reason"]) == ("Q: aaabbb", "stop", None)
    assert (cut["text"], cut["finish_reason"], cut["stop_reason"]) == ("Q: aa", "stop", "ab")


def test_max_tokens_cut_it(http: httpx.Client) -> None:
    body = {"model": BASE, "prompt": "Q: ", "guided_regex": "[ab]{8}"}
    for most, reason in ((7, "length"), (8, "stop"), (9, "stop")):
        choice = http.post(COMPLETIONS, json=body | {"max_tokens": most}).json()["choices"][0]
        assert choice["finish_reason"] == reason and len(choice["text"]) == min(most, 8)


def test_logprobs_are_the_models_own(http: httpx.Client) -> None:
    body = {"model": BASE, "prompt": "Q: ", "max_tokens": 1, "logprobs": 20, "temperature": 0}
    free = http.post(COMPLETIONS, json=body).json()["choices"][0]["logprobs"]
    made = http.post(COMPLETIONS, json=body | {"guided_choice": ["\x7f"]}).json()["choices"][0]["logprobs"]
    assert made["tokens"] == ["\x7f"] and made["token_logprobs"][0] < max(free["token_logprobs"])
    assert free["top_logprobs"][0].items() <= made["top_logprobs"][0].items()


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a bad schema": ({"response_format": {**FORMAT, "json_schema": {"name": "x", "schema": {"type": "thing"}}}},
                     "response_format.json_schema.schema", "grammar_invalid"),
    "a bad regex": ({"guided_regex": "("}, "guided_regex", "grammar_invalid"),
    "a bad grammar": ({"structured_outputs": {"grammar": "("}}, "structured_outputs.grammar", "grammar_invalid"),
    "two kinds at once": ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "validation_error"),
    "two kinds within one": ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs",
                             "validation_error"),
    "none": ({"structured_outputs": {}}, "structured_outputs", "validation_error"),
    "a form and vLLM's": ({"response_format": FORMAT, "guided_json": {}}, "guided_json", "validation_error"),
    "an unknown key": ({"structured_outputs": {"regex": "a", "lark": "x"}}, "structured_outputs.lark",
                       "validation_error"),
    "an unserved key": ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag", "unsupported_field"),
    "an unknown type": ({"response_format": {"type": "xml"}}, "response_format.type", "validation_error"),
    "a type without its schema": ({"response_format": {"type": "json_schema"}}, "response_format", "validation_error"),
    "a schema without its type": ({"response_format": {"type": "text", "json_schema": FORMAT["json_schema"]}},
                                  "response_format", "validation_error"),
    "no choices": ({"guided_choice": []}, "guided_choice", "validation_error"),
    "an empty choice": ({"guided_choice": [""]}, "guided_choice[0]", "validation_error"),
    "too large": ({"guided_json": {"const": "x" * 70_000}}, "guided_json", "grammar_invalid"),
    "a schema that is no object": ({"guided_json": "[1]"}, "guided_json", "validation_error"),
    "ignore_eos": ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "validation_error"),
    "min_tokens": ({"response_format": FORMAT, "min_tokens": 2}, "min_tokens", "validation_error"),
    "vLLM's old backend": ({"guided_regex": "a", "guided_decoding_backend": "xgrammar"}, "guided_decoding_backend",
                           "unsupported_field"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(http: httpx.Client, fields: dict[str, Any], param: str, code: str) -> None:
    for path, prompt in ((COMPLETIONS, {"prompt": "x"}), (CHAT, {"messages": HELLO})):
        reply = http.post(path, json={"model": BASE, **prompt, **fields})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error


def test_one_that_cannot_be_followed_is_the_requests_own_fault(http: httpx.Client, server: RealEngineServer) -> None:
    """This one is compiled, and gets out of hand with its tokens."""
    body = {"model": BASE, "prompt": "x", "max_tokens": 200, "guided_grammar": 'start: s\ns: s s | "a"'}
    reply = http.post(COMPLETIONS, json=body)
    if reply.status_code == 422:
        assert reply.json()["error"]["code"] == "constraint_failed"
    else:
        assert reply.json()["choices"][0]["text"].strip("a") == ""
    assert http.post(COMPLETIONS, json={"model": BASE, "prompt": "x"}).status_code == 200
