"""Forms that were sent before: they are what they would be compiled anew, and no more are kept than fit."""

import random
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import anyio
import pytest

from engine.constraint import Constraint
from server.errors import BadRequest
from server.grammars.cache import LEAST_SIZE, Cache, Key, key_of
from server.grammars.compiler import Compiler
from server.grammars.trial import Trial
from server.structure import CallForm, Kind, Part, Structure
from server.tools.markup import HERMES, MARKUPS, MISTRAL, Function
from tests.support.structures import allowed_bytes, in_elements, random_schema, written
from tests.support.tokenizer import END, byte_vocabulary

CODER = MARKUPS["qwen3_coder"]


class CountingTrial:
    """The real one, which counts what it is asked."""

    def __init__(self) -> None:
        self._trial, self.asked = Trial(), 0

    def __call__(self, kind: str, content: str | list[str]) -> str:
        self.asked += 1
        return self._trial(kind, content)


def json_form(schema: Any, field: str = "guided_json") -> Structure:
    return Structure(field, "json", schema)


def calls(schema: Any, name: str = "f", strict: bool = False) -> CallForm:
    function = Function(name, "Does it.", {"properties": {"p": schema}}, "tools[0].function.parameters", strict)
    return CallForm(HERMES, (function,), False, 2, None, {})


def in_the_coders_markup(form: CallForm) -> CallForm:
    return replace(form, markup=CODER, elements=in_elements(form.functions))


def forms() -> list[Structure]:
    draw = random.Random(5)
    schemas = [json_form(random_schema(draw)) for _ in range(6)]
    first, second = replace(calls(random_schema(draw)), forced=True), replace(calls({}), forced=True)
    others: tuple[tuple[Kind, Any], ...] = (
        ("calls", first),
        ("calls", in_the_coders_markup(second)),
        ("regex", "(ab|c){1,5}"),
        ("choice", ("a", "ab")),
        ("grammar", 'start: "x"'),
    )
    return [*schemas, *(Structure("x", kind, content) for kind, content in others)]


@pytest.mark.anyio
async def test_two_answers_at_once_to_one_kept_form_go_as_two_compiled_anew() -> None:
    """Step by step in turn, each its own way."""
    trial = CountingTrial()
    compiler, oracle = Compiler(byte_vocabulary, trial), Compiler(byte_vocabulary)
    for structure in forms():
        kept = [await compiler.compile(structure, "a") for _ in range(2)]
        pairs = [(make(), oracle.compile_now(structure)()) for make in kept]
        draws = [random.Random(seed) for seed in (1, 2)]
        for _ in range(150):
            for (answer, fresh), draw in zip(pairs, draws, strict=True):
                _go_on(answer, fresh, draw)
    assert trial.asked == len({key_of(structure, "a") for structure in forms()})


def _go_on(answer: Constraint, fresh: Constraint, draw: random.Random) -> None:
    assert answer.complete == fresh.complete
    if answer.complete:
        return
    assert answer.allowed() == fresh.allowed()
    going = sorted(allowed_bytes(fresh) - {END})
    if going:
        token = draw.choice(going)
        answer.accept(token)
        fresh.accept(token)


@pytest.mark.anyio
async def test_those_who_send_a_form_at_once_wait_for_one_compilation() -> None:
    trial = CountingTrial()
    compiler = Compiler(byte_vocabulary, trial)
    made: list[Constraint] = []

    async def ask(field: str) -> None:
        made.append((await compiler.compile(json_form({"enum": ["yes", "no"]}, field), "a"))())

    async with anyio.create_task_group() as clients:
        for field in ("guided_json", "response_format", "structured_outputs.json"):
            clients.start_soon(ask, field)
    assert trial.asked == 1
    assert {written(answer, seed) for seed, answer in enumerate(made)} <= {b'"yes"', b'"no"'}


@pytest.mark.anyio
async def test_a_tenant_does_not_meet_anothers() -> None:
    trial = CountingTrial()
    compiler = Compiler(byte_vocabulary, trial)
    for tenant in ("a", "b", "a", "b"):
        await compiler.compile(json_form({"const": 1}), tenant)
    assert trial.asked == 2


@pytest.mark.anyio
async def test_a_form_that_is_refused_is_refused_again_under_its_own_field() -> None:
    compiler = Compiler(byte_vocabulary)
    for field in ("guided_json", "response_format"):
        with pytest.raises(BadRequest, match="cannot be kept to") as refused:
            await compiler.compile(json_form({"not": {}}, field), "a")
        assert refused.value.param == field


@pytest.mark.anyio
async def test_a_form_that_is_nested_too_deeply_is_refused_as_such() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    assert key_of(json_form(schema), "a") is None
    with pytest.raises(BadRequest, match="nested more than"):
        await Compiler(byte_vocabulary).compile(json_form(schema), "a")


TEXT = Part("response_format", {"const": 1})
DIFFERENT: Mapping[str, Structure] = {
    "json": json_form({"const": "1"}),
    "number": json_form({"const": 1}),
    "float": json_form({"const": 1.0}),
    "bool": json_form({"const": True}),
    "null": json_form({"const": None}),
    "nan": json_form({"const": float("nan")}),
    "order": json_form({"properties": {"a": {}, "b": {}}}),
    "other order": json_form({"properties": {"b": {}, "a": {}}}),
    "regex": Structure("x", "regex", "ab"),
    "grammar": Structure("x", "grammar", "ab"),
    "choice": Structure("x", "choice", ("a", "b")),
    "one choice": Structure("x", "choice", ("a, b",)),
    **{
        f"calls, {name}": Structure("tools", "calls", form)
        for name, form in {
            "usual": calls({}),
            "schema": calls({"type": "string"}),
            "name": calls({}, "g"),
            "strict": calls({}, strict=True),
            "forced": replace(calls({}), forced=True),
            "once": replace(calls({}), max_calls=1),
            "markup": replace(calls({}), markup=MISTRAL),
            "elements": in_the_coders_markup(calls({})),
            "text": replace(calls({}), text=TEXT),
            "lenient text": replace(calls({}), text=replace(TEXT, strict=False)),
            "two": replace(calls({}), functions=calls({}).functions + calls({}, "g").functions),
        }.items()
    },
}


def test_forms_that_differ_have_different_keys() -> None:
    keys = [key_of(structure, "a") for structure in DIFFERENT.values()]
    assert len(set(keys)) == len(DIFFERENT) and None not in keys


def test_where_a_form_is_sent_and_what_describes_it_make_no_difference() -> None:
    one, form = json_form({"const": 1}), calls({})
    assert key_of(one, "a") == key_of(replace(one, field="response_format"), "a") != key_of(one, "b")
    said = replace(form.functions[0], description="Something else.", field="tools[7]")
    assert key_of(Structure("tools", "calls", form), "a") == key_of(
        Structure("tools", "calls", replace(form, functions=(said,))), "a"
    )


def key(tenant: str, name: str, size: int) -> Key:
    return Key(tenant, name.encode(), size)


def none() -> Constraint:
    raise AssertionError("nobody follows these")


def test_the_longest_unused_of_the_fullest_tenant_goes() -> None:
    cache = Cache(10)
    first, second, third, others = key("a", "1", 3), key("a", "2", 3), key("a", "3", 3), key("b", "1", 3)
    for each in (others, first, second):
        cache.put(each, none)
    assert cache.get(first) is none
    cache.put(third, none)
    assert cache.get(second) is None and cache.size == 9
    assert all(cache.get(each) is none for each in (others, first, third))


def test_a_form_that_is_larger_than_the_cache_leaves_the_others() -> None:
    cache = Cache(10)
    cache.put(key("a", "1", 10), none)
    cache.put(key("a", "2", 11), none)
    assert cache.get(key("a", "1", 10)) is none and cache.get(key("a", "2", 11)) is None


@pytest.mark.parametrize("seed", range(20))
def test_one_tenants_forms_are_a_plain_list_of_the_last_used(seed: int) -> None:
    draw, cache, bound = random.Random(seed), Cache(20), 20
    sizes = {str(name): draw.randint(1, 8) for name in range(12)}
    plain: OrderedDict[str, int] = OrderedDict()
    for _ in range(200):
        name = draw.choice(list(sizes))
        there = cache.get(key("a", name, sizes[name])) is not None
        assert there == (name in plain)
        if not there:
            cache.put(key("a", name, sizes[name]), none)
        plain[name] = sizes[name]
        plain.move_to_end(name)
        while sum(plain.values()) > bound:
            plain.popitem(last=False)
        assert cache.size == sum(plain.values()) <= bound


@pytest.mark.anyio
async def test_what_is_kept_of_many_forms_is_bounded() -> None:
    cache = Cache()
    for number in range(2000):
        cache.put(key_of(json_form({"const": number}), f"tenant {number % 7}"), none)
    assert cache.size <= 1 << 20
    assert 200 <= cache.size // LEAST_SIZE <= 256
