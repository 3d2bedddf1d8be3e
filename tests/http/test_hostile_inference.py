"""Requests that ask for too much, or for what is no number: cases E47 to E52, a group a case.

Each refusal is told with its status, its code and the field that is to blame; after every one of them the invariants
of tests/support/reply_checks.py hold. What both routes take is sent to both. E46 is in test_adapters.py, exact stops
(E52) also in test_openai_client.py and tests/engine/test_detokenize.py; what is no text or no object in
test_hostile_bodies.py.
"""

from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from server.ports import Limits
from tests.support.http import serve
from tests.support.invariants import MARK
from tests.support.marked_bodies import CHAT, COMPLETIONS, SYNTAX, VALUE, Odd, as_chat, body, each, raw, to_both, values
from tests.support.processor import least_time
from tests.support.reply_checks import check_after, check_reply, post, refused
from tests.support.server_rig import BASE, ServerRig, make_rig


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_e47_beyond_the_context_is_told_with_the_numbers(path: str, http: httpx.Client, rig: ServerRig) -> None:
    """Too long a prompt; too long an answer; and two that fit, but not together."""
    field, limit = ("prompt", 4096) if path == COMPLETIONS else ("messages", 4096)
    for length, wanted in ((6000, 1), (12, 10_000_000), (12, 5000), (3000, 1097)):
        text = MARK * (length // len(MARK))
        said = text if path == COMPLETIONS else [{"role": "user", "content": text}]
        reply = http.post(path, json={"model": BASE, field: said, "max_tokens": wanted})
        refused(reply, http, rig, code="context_length_exceeded", param=field)
        beside = 0 if path == COMPLETIONS else len("<user\n><assistant\n")
        for number in (limit, length + beside, wanted):
            assert f"{number}" in reply.json()["error"]["message"].replace(",", "")


def test_e47_what_just_fits_is_taken(http: httpx.Client) -> None:
    for wanted, status in ((1096, 200), (1097, 400)):
        body = {"model": BASE, "prompt": [1] * 3000, "max_tokens": wanted, "ignore_eos": True}
        assert http.post(COMPLETIONS, json=body).status_code == status


E48 = {
    **values("n", "1000000000", "true", '"2"', "2.0", "0"),
    **values("best_of", "5", "1000000000"),
    **values("logprobs", "1000000", "-1", '"5"'),
}
E48_LISTS = {"n times prompts": (body(n=128, prompt=[MARK] * 3), "n", VALUE)}
E48_CHAT = values("top_logprobs", "1000000", "-1") | {
    "top_logprobs alone": (raw("top_logprobs", "5"), "top_logprobs", VALUE)
}


def bounded(http: httpx.Client, rig: ServerRig, path: str, content: str, param: str | None, code: str) -> None:
    seen = len(rig.worker.seen)
    assert least_time(lambda: post(http, content, path)) < 0.05, "the client's part included"
    assert len(rig.worker.seen) == seen
    refused(post(http, content, path), http, rig, code=code, param=param)


@to_both(E48)
def test_e48_counts_are_bounded_before_anything_is_made(
    path: str, content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    bounded(http, rig, path, content, param, code)


@each(E48_LISTS)
def test_e48_choices_are_counted_over_all_prompts(
    content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    bounded(http, rig, COMPLETIONS, content, param, code)


@each(E48_CHAT)
def test_e48_alternatives_of_a_chat(
    content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    bounded(http, rig, CHAT, as_chat(content), param, code)


LENGTHS = ("-1", "0", "1e308", "true", '"5"', "1.0", "[]", str(1 << 31), "9" * 400)
E49 = values("max_tokens", *LENGTHS)
E49_CHAT = values("max_completion_tokens", *LENGTHS) | {
    "two that differ": (raw("max_completion_tokens", "3"), "max_tokens", VALUE)
}


@to_both(E49)
def test_e49_odd_lengths(
    path: str, content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    refused(post(http, content, path), http, rig, code=code, param=param)


@each(E49_CHAT)
def test_e49_odd_lengths_by_their_new_name(
    content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    refused(post(http, as_chat(content), CHAT), http, rig, code=code, param=param)


NUMBERS = {
    "temperature": "-1", "top_p": "-1", "min_p": "-1", "repetition_penalty": "-1",
    "presence_penalty": "-3", "frequency_penalty": "-3",
}  # fmt: skip
"""And a number that is out of bounds; -1 is a penalty that OpenAI takes."""
NO_NUMBERS = ("NaN", "Infinity", "-Infinity")
E50 = {
    name: odd
    for field, below in NUMBERS.items()
    for name, odd in (
        values(field, *NO_NUMBERS, code=SYNTAX) | values(field, below, "1e400", "-1e400", "11", '"1"', "true", "[]")
    ).items()
} | values("top_k", "-2", "1.5", "true", "1e400")


@to_both(E50)
def test_e50_numbers_that_are_none_or_out_of_bounds(
    path: str, content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    refused(post(http, content, path), http, rig, code=code, param=param)


def biases(count: int) -> str:
    return raw("logit_bias", "{" + ",".join(f'"{token}":1' for token in range(count)) + "}")


E51 = {
    **values("logit_bias", '{"1": NaN}', '{"1": -Infinity}', code=SYNTAX),
    **values("logit_bias", '{"-1": 5}', '{"258": 5}', '{"a": 5}', '{"\u0661": 5}', '{"": 5}', '{"1.0": 5}', "[[1, 5]]"),
    **values("logit_bias", '{"1": 101}', '{"1": -101}', '{"1": 1e400}', '{"1": "5"}', param="logit_bias.1"),
    **values("stop_token_ids", "[258]"),
    **values("stop_token_ids", "[-1]", "[true]", param="stop_token_ids[0]"),
    "too many": (biases(1025), "logit_bias", VALUE),
    "more than an object has": (biases(2049), None, SYNTAX),
    "more than a body has": (biases(100_000), None, SYNTAX),
}


@to_both(E51)
def test_e51_biases_of_tokens_that_are_not_there(
    path: str, content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    refused(post(http, content, path), http, rig, code=code, param=param)


def test_e51_a_million_biases_are_more_than_a_body_may_have(http: httpx.Client, rig: ServerRig) -> None:
    """They are 13 MB, so it is their length that is told, before they are read."""
    refused(post(http, biases(1_000_000)), http, rig, status=413, code="body_too_large", param=None)


def test_e51_where_a_million_biases_fit_they_are_counted_unparsed(tmp_path: Path) -> None:
    rig = make_rig(tmp_path, limits=Limits(4096, max_body_bytes=16 << 20))
    with serve(rig.app) as live, live.client() as client:
        refused(post(client, biases(1_000_000)), client, rig, code=SYNTAX, param=None)
    rig.registry.close()


E52 = {
    **values("stop", '""', param="stop[0]"),
    **values("stop", f'["{MARK}", ""]', f'["{MARK}", 1]', f'["{MARK}", null]', param="stop[1]"),
    **values("stop", "5", "true", "{}"),
    "long": (body(stop=MARK * 25), "stop[0]", VALUE),
    "too many": (body(stop=[MARK] * 10_000), "stop", VALUE),
    "one too many": (body(stop=[MARK] * 17), "stop", VALUE),
}


@to_both(E52)
def test_e52_stops_that_cannot_be(
    path: str, content: str, param: str | None, code: str, http: httpx.Client, rig: ServerRig
) -> None:
    refused(post(http, content, path), http, rig, code=code, param=param)


def test_every_body_holds_what_no_error_repeats() -> None:
    """The groups themselves: what is looked for in each refusal was sent."""
    groups: tuple[Mapping[str, Odd], ...] = (E48, E48_LISTS, E48_CHAT, E49, E49_CHAT, E50, E51, E52)
    assert all(MARK in odd[0] for group in groups for odd in group.values())


def test_a_refusal_is_told_apart_from_an_answer(http: httpx.Client, rig: ServerRig) -> None:
    """The helper itself: a good answer passes, and what was sent is looked for."""
    reply = post(http, body())
    check_reply(reply)
    check_after(http, rig)
    with pytest.raises(AssertionError, match="I7"):
        check_reply(post(http, raw("temprature", f'"{MARK}"')), sent="not known here")
