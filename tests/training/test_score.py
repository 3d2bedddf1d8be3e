"""The task score: what counts as right, and that batched greedy answers are what each prompt alone gives."""

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.support.models import EOS, tiny_model, tiny_tokenizer
from training.config import Score
from training.data.examples import Example
from training.report import BeforeAfter
from training.score import SAMPLES, Answer, answer_heldout, end_tokens, greedy_answers, is_right, samples, task_score

PROMPTS = ("a", "What is due?", "one two three four five six", "b c")


@pytest.fixture(scope="module", autouse=True)
def few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def example(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str | None) -> Example:
    ids = tuple(tokenizer.encode(prompt))
    end = tuple(tokenizer.encode(answer or ""))
    return Example(ids + end, (False,) * len(ids) + (True,) * len(end), len(ids), answer)


@pytest.mark.parametrize(
    ("metric", "answer", "expected", "right"),
    [
        ("exact", " water/now\n", "water/now", True),
        ("exact", "water/now.", "water/now", False),
        ("exact", "Water/now", "water/now", False),
        ("json", '{"b": [1, 2], "a": null}', '{"a": null, "b": [1, 2.0]}', True),
        ("json", '{"a": true}', '{"a": 1}', False),
        ("json", '{"a": 1, "a": 1}', '{"a": 1}', False),
        ("json", '{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ("json", 'Here: {"a": 1}', '{"a": 1}', False),
        ("json", "[" * 100_000, "[]", False),
        ("json", '{"a": {"x": 1}}', '{"a": [["x", 1]]}', False),
        ("contains", "Arr, that be Lima, Matey!", "lima\nmatey", True),
        ("contains", "That is Lima.", "lima\nmatey", False),
    ],
)
def test_what_is_right(metric: Literal["exact", "json", "contains"], answer: str, expected: str, right: bool) -> None:
    assert is_right(Score(metric=metric), answer, expected) is right


def test_words_stand_for_the_expected_text() -> None:
    settings = Score(metric="contains", words=("matey", "be"))
    assert is_right(settings, "That BE Lima, Matey.", "anything at all")
    assert not is_right(settings, "That is Lima, matey.", "That is Lima, matey.")


@torch.inference_mode()
def alone(model: PreTrainedModel, ids: list[int], ends: frozenset[int], limit: int) -> list[int]:
    """The oracle: no cache, no padding, no batch."""
    said: list[int] = []
    while len(said) < limit:
        token = int(model(input_ids=torch.tensor([ids + said]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        said.append(token)
    return said


def test_a_batch_says_what_each_prompt_alone_says(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    ends = end_tokens(model, tokenizer)
    expected = [tokenizer.decode(alone(model, ids, ends, 12), skip_special_tokens=True) for ids in prompts]
    assert greedy_answers(model, tokenizer, prompts, max_new_tokens=12) == expected
    assert len(set(expected)) > 1


def test_an_answer_ends_where_the_model_ends_it(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama")
    prompt = tokenizer.encode(PROMPTS[1])
    said = alone(model, prompt, frozenset(), 8)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [said[3]]
    assert end_tokens(model, tokenizer) == {EOS, said[3]}
    cut = said[: said.index(said[3])]
    given = greedy_answers(model, tokenizer, [prompt], max_new_tokens=8)
    assert given == [tokenizer.decode(cut, skip_special_tokens=True)]


def test_what_is_asked_and_how_it_is_counted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    ends = end_tokens(model, tokenizer)
    truth = [str(tokenizer.decode(alone(model, tokenizer.encode(prompt), ends, 6))) for prompt in PROMPTS[:2]]
    heldout = [
        example(tokenizer, "plain text has no answer", None),
        example(tokenizer, PROMPTS[0], truth[0]),
        example(tokenizer, PROMPTS[1], truth[1] + "!"),
        example(tokenizer, PROMPTS[2], "beyond the limit"),
    ]
    model.train()
    asked = answer_heldout(model, tokenizer, heldout, Score(max_new_tokens=6, limit=2))
    assert model.training, "the mode is as it was"
    model.eval()
    assert [one.right for one in asked] == [True, False]
    assert [one.prompt for one in asked] == list(PROMPTS[:2])
    assert [one.expected for one in asked] == [truth[0], truth[1] + "!"]


def answer(index: int, right: bool) -> Answer:
    return Answer(f"prompt {index}", "expected", "expected" if right else f"said {index}", right)


def test_the_score_is_the_share_of_right_answers_of_both() -> None:
    base = [answer(index, False) for index in range(4)]
    trained = [answer(index, index != 1) for index in range(4)]
    assert task_score(base, trained) == BeforeAfter(0.0, 0.75)
    assert task_score([], []) is None


def test_samples_show_a_failure_where_there_is_one() -> None:
    base = [answer(index, False) for index in range(10)]
    fails_late = [answer(index, index != 8) for index in range(10)]
    shown = samples(base, fails_late)
    assert [sample.right for sample in shown] == [True] * SAMPLES + [False]
    assert shown[-1].prompt == "prompt 8"
    assert shown[-1].base == "said 8"
    fails_early = [answer(index, index != 0) for index in range(10)]
    assert len(samples(base, fails_early)) == SAMPLES
    assert len(samples(base[:1], fails_late[:1])) == 1


def test_nothing_to_ask_is_no_score(tokenizer: PreTrainedTokenizerFast) -> None:
    assert answer_heldout(tiny_model("llama"), tokenizer, [example(tokenizer, "text", None)], Score()) == ()
