"""The dialects: what each sends for the same request, and what it counts."""

from bench.api import CompletionRequest, LlamaCpp, OpenAI, Vllm

ASK = CompletionRequest("a1", (5, 6, 7), 9)


def test_vllm_fixes_the_length_and_asks_for_ids() -> None:
    body = Vllm().body(ASK)
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("a1", [5, 6, 7], 9)
    assert body["ignore_eos"] is body["return_token_ids"] is body["stream"] is True
    assert Vllm().tokens({"choices": [{"token_ids": [1, 2]}]}) == 2
    assert Vllm().tokens({"choices": []}) == 0


def test_plain_openai_has_no_extension() -> None:
    assert set(OpenAI().body(ASK)) == {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert OpenAI().tokens({"choices": [{"text": "ab"}]}) == 1
    assert OpenAI().tokens({"choices": [{"text": ""}]}) == 0


def test_llama_cpp_names_every_adapter_in_every_request() -> None:
    api = LlamaCpp({"a0": 0, "a1": 1})
    assert api.body(ASK)["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
    assert api.body(CompletionRequest("", (5,), 9))["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
    assert api.body(ASK)["cache_prompt"] is False
    assert api.tokens({"tokens": [4], "stop": False}) == 1
    assert api.tokens({"tokens": [4, 5], "stop": True}) == 0, "the last event repeats what came"
    assert api.total({"tokens": [4], "tokens_predicted": 1, "stop": False}) is None
    assert api.total({"tokens": [], "tokens_predicted": 3, "stop": True}) == 3, "some tokens were in no event"
