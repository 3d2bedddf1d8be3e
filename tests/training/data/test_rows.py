"""What is refused before anything is tokenized: each bad line by file and number, with its reason."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.training_data import chat, config, write
from training.data.prepare import check
from training.errors import ConfigInvalid, DataInvalid

GOOD = chat("2 + 2?", "4")
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def faults(tmp_path: Path, rows: list[Any], objective: str = "sft", **data: Any) -> list[str]:
    """The faults of these lines, without the folder they are in."""
    with pytest.raises(DataInvalid) as caught:
        check(config(write(tmp_path / "train.jsonl", rows), objective=objective, **data))
    return [fault.removeprefix(f"{tmp_path}/") for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON array where an object was expected"),
        ('{"messages": [], "messages": []}', "'messages' occurs twice"),
        ('{"text": NaN}', "NaN is not JSON"),
        (r'{"messages": [{"role": "user", "content": "\ud83d"}]}', "half of a surrogate pair"),
        ({"mesages": []}, "unknown key 'mesages'. Did you mean 'messages'?"),
        ({"conversations": []}, "ShareGPT"),
        ({"messages": "hello"}, "messages is no list"),
        ({"messages": []}, "messages is empty"),
        ({"messages": ["hello"]}, "messages[0] is no object"),
        ({"messages": [{"role": "user"}]}, "messages[0]: 'content' is missing"),
        ({"messages": [{"role": "human", "content": "x"}]}, "messages[0]: the role 'human'"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0]: unknown key 'name'"),
        ({"messages": [{"role": "user", "content": "x", "weight": 0}]}, "messages[0]: unknown key 'weight'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content is no string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content has parts"),
        (chat("hello"), "no assistant message"),
        (chat("hello", "  "), "messages[1].content is empty"),
        (chat("a", "b", "c"), "ends with user"),
        (
            {"messages": [*chat("a", "b")["messages"], {"role": "system", "content": "x"}]},
            "system where user was expected",
        ),
        ({"messages": [GOOD["messages"][1]]}, "assistant where user was expected"),
        ({"messages": [GOOD["messages"][0], *GOOD["messages"]]}, "messages[1]: user where assistant was expected"),
        ({"text": "plain"}, "text where messages was expected, like line 1"),
    ],
)
def test_a_bad_line_is_told_by_number_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    told = faults(tmp_path, [GOOD, row])
    assert all(fault.startswith("train.jsonl:2: ") for fault in told)
    assert reason in told[0]
    assert told[0].endswith((".", "?")), "it ends with what to do"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, "'rejected' is missing"),
        ({**PAIR, "rejected": "a"}, "chosen and rejected are the same"),
        ({**PAIR, "chosen": ""}, "chosen is empty"),
        ({**PAIR, "chosen": [{"role": "assistant", "content": "a"}]}, "chosen is a list while prompt is text"),
        ({**PAIR, "prompt": GOOD["messages"]}, "prompt ends with assistant"),
        ({**PAIR, "prompt": GOOD["messages"][:1], "chosen": GOOD["messages"][:1]}, "chosen has no assistant message"),
        ({**PAIR, "margin": 1}, "unknown key 'margin'"),
    ],
)
def test_bad_preferences(tmp_path: Path, row: Any, reason: str) -> None:
    [fault] = faults(tmp_path, [PAIR, row], "dpo")
    assert fault.startswith("train.jsonl:2: ")
    assert reason in fault


def test_a_prompt_alone_misses_its_completion(tmp_path: Path) -> None:
    [fault] = faults(tmp_path, [{"prompt": "a", "completion": "b"}, {"prompt": "c"}])
    assert fault == "train.jsonl:2: 'completion' is missing. Add it."


def test_what_is_not_utf8_is_told_by_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataInvalid, match=r"train\.jsonl:2: byte 11 of the line is not UTF-8"):
        check(config(path))
    path.write_bytes('{"text": "a"}'.encode("utf-16"))
    with pytest.raises(DataInvalid, match="UTF-16"):
        check(config(path))


def test_a_byte_order_mark_and_blank_lines_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes('\ufeff{"text": "a"}\r\n\r\n{"text": "b\u2028c"}'.encode())
    checked = check(config(path))
    assert [(one.line, one.row.answers) for one in checked.train.rows] == [(1, ("a",)), (3, ("b\u2028c",))]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_and_a_missing_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(content)
    with pytest.raises(DataInvalid, match="no examples"):
        check(config(path))
    with pytest.raises(DataInvalid, match="cannot be read: No such file"):
        check(config(tmp_path / "nowhere.jsonl"))


def test_all_faults_of_both_files_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [GOOD, *["{"] * 30])
    heldout = write(tmp_path / "heldout.jsonl", ["{"])
    with pytest.raises(DataInvalid, match=r"\.\.\. and 11 more\.") as caught:
        check(config(train, heldout=heldout))
    assert len(caught.value.faults) == 31
    assert caught.value.faults[-1].startswith(str(heldout))
    assert len(str(caught.value).splitlines()) == 22


@pytest.mark.parametrize(
    ("objective", "row", "allowed"),
    [
        ("sft", PAIR, "messages or prompt_completion or text"),
        ("dpo", GOOD, "preference"),
        ("reward", {"text": "x"}, "preference"),
        ("grpo", {"text": "x"}, "prompts or messages or prompt_completion"),
    ],
)
def test_an_objective_learns_from_its_own_formats(tmp_path: Path, objective: str, row: Any, allowed: str) -> None:
    [fault] = faults(tmp_path, [row], objective)
    assert fault.startswith("train.jsonl:1: its format is ")
    assert fault.endswith(f"objective: {objective} learns from {allowed}.")


def test_a_format_that_is_asked_for_is_kept(tmp_path: Path) -> None:
    [fault] = faults(tmp_path, [{"text": "a"}], format="messages")
    assert "text where messages was expected, as data.format says" in fault


@pytest.mark.parametrize(
    ("row", "objective", "loss_on"),
    [
        ({"text": "a"}, "sft", "completion"),
        ({"prompt": "a", "completion": "b"}, "sft", "assistant"),
        (PAIR, "dpo", "assistant"),
    ],
)
def test_a_loss_that_the_format_does_not_have(tmp_path: Path, row: Any, objective: str, loss_on: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"data.loss_on: {loss_on}"):
        check(config(write(tmp_path / "train.jsonl", [row]), objective=objective, loss_on=loss_on))


def test_what_is_held_out_must_not_be_trained_on(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [chat("a", "b"), GOOD, GOOD])
    heldout = write(tmp_path / "heldout.jsonl", [chat("c", "d"), GOOD])
    with pytest.raises(DataInvalid, match=r"heldout\.jsonl:2: it is also in .*train\.jsonl:2\b"):
        check(config(train, heldout=heldout))


def test_repeats_and_shared_prompts_are_noted(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [GOOD, GOOD, chat("a", "b")])
    heldout = write(tmp_path / "heldout.jsonl", [chat("a", "another"), chat("c", "d")])
    repeated, shared = check(config(train, heldout=heldout)).notes
    assert repeated.startswith("1 of 3 lines")
    assert shared.startswith("1 of 2 held-out prompts")


def test_a_share_is_held_out_by_seed_whatever_the_order(tmp_path: Path) -> None:
    rows = [{"text": f"line {number % 45}"} for number in range(50)]
    first = check(config(write(tmp_path / "a.jsonl", rows), heldout_share=0.2))
    again = check(config(write(tmp_path / "b.jsonl", rows[::-1]), heldout_share=0.2))
    texts = {one.row for one in first.heldout.rows}
    assert texts == {one.row for one in again.heldout.rows}
    assert 10 <= len(first.heldout.rows) <= 11
    assert len(first.train.rows) + len(first.heldout.rows) == 50
    assert not texts & {one.row for one in first.train.rows}, "repeats go to one side"
    assert [one.line for one in first.train.rows] == sorted(one.line for one in first.train.rows)


def test_at_least_one_is_held_out_unless_the_share_is_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", [{"text": "a"}, {"text": "b"}])
    assert len(check(config(path, heldout_share=0.01)).heldout.rows) == 1
    assert not check(config(path, heldout_share=0)).heldout.rows
