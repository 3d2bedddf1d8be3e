"""What the docs promise is what tests show: every case has tests, and the tables name them as they are now."""

import re

import pytest

from tests.support.cases import (
    NOTHING,
    README,
    SECURITY,
    Case,
    cases,
    every_test,
    found,
    group,
    summed_up,
    written,
)

CASES = cases(SECURITY.read_text())
AGAIN = "run `python -m tests.support.cases`, which writes the tables again"
SECTION = "## Promises and their tests"


def test_every_case_has_one_row() -> None:
    numbers = [case.number for case in CASES]
    assert numbers == list(range(1, 87))
    assert all(case.number in group(case.letter) for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.letter}{case.number}")
def test_a_case_has_tests_and_its_row_names_them(case: Case) -> None:
    tests = found().get((case.letter, case.number), [])
    assert tests, f"no test is named test_{case.letter.lower()}{case.number}_…"
    assert list(case.tests) == tests, AGAIN


def test_the_tables_are_as_they_would_be_written() -> None:
    assert written(SECURITY.read_text()) == SECURITY.read_text(), AGAIN
    assert summed_up(README.read_text()) == README.read_text(), AGAIN


def test_each_row_of_the_readme_says_which_test_shows_it() -> None:
    section = README.read_text().partition(SECTION)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert [row[2] for row in rows[:9]] == list("ABCDEFGHI") and len(rows) > 9
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named and named <= every_test(), row


def test_a_group_is_summed_up_by_the_cases_that_have_tests() -> None:
    row = summed_up("| H | promised | x |\n")
    assert row.startswith("| H | promised | ") and " of 8, such as `test_h75_" in row


def test_the_table_is_written_from_what_is_there() -> None:
    text = "| H81 | promised | x |\n| A1 | other | y |\n"
    shown = cases(written(text))
    assert shown[0].promise == "promised" and "test_h81_logs_hold_no_key_and_no_prompt" in found()["H", 81]
    assert list(shown[0].tests) == found()["H", 81], "all of them, by their whole names"


def test_a_case_without_a_test_says_so() -> None:
    assert NOTHING in written("| A99 | promised | x |\n")
