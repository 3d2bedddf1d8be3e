"""What the docs promise is what tests show: every case has its row, and every test that a row names is there."""

import re

import pytest

from tests.support.cases import README, SECURITY, Case, cases, found, group, summed_up, written

CASES = cases(SECURITY.read_text())


def test_every_case_has_one_row() -> None:
    numbers = [case.number for case in CASES]
    assert numbers == list(range(1, 87))
    assert all(case.number in group(case.letter) for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.letter}{case.number}")
def test_a_row_names_tests_that_exist(case: Case) -> None:
    assert set(case.tests) <= set(found().get((case.letter, case.number), ()))


def test_the_readme_names_tests_that_exist() -> None:
    everything = {name for names in found().values() for name in names}
    named = re.findall(r"`(test_[a-i]\d+_\w+)`", README.read_text())
    assert named and set(named) <= everything


def test_a_group_is_summed_up_by_the_cases_that_have_tests() -> None:
    row = summed_up("| H | promised | x |\n")
    assert row.startswith("| H | promised | ") and " of 8, such as `test_h75_" in row


def test_the_table_is_written_from_what_is_there() -> None:
    text = "| H81 | promised | x |\n| A1 | other | y |\n"
    shown = cases(written(text))
    assert shown[0].promise == "promised" and "test_h81_logs_hold_no_key_and_no_prompt" in found()["H", 81]
    assert shown[0].tests and set(shown[0].tests) <= set(found()["H", 81])
