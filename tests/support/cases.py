"""The cases that docs/security.md promises, and the tests that carry their numbers.

A test shows case 44 of group D when its name begins with `test_d44_`. Run as `python -m tests.support.cases` to write
what is found into the tables there and in the README.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECURITY = ROOT / "docs" / "security.md"
README = ROOT / "README.md"
LAST = {"A": 14, "B": 27, "C": 36, "D": 45, "E": 60, "F": 66, "G": 74, "H": 82, "I": 86}
"""Each group's last case; the next group begins after it."""
NOTHING = "none of this number"

_ROW = re.compile(r"^\| ([A-I])(\d+) \| (.*) \| (.*) \|$", re.MULTILINE)
_GROUP = re.compile(r"^\| ([A-I]) \| (.*) \| (.*) \|$", re.MULTILINE)
_TEST = re.compile(r"def (test_([a-i])(\d+)_\w+)")


@dataclass(frozen=True, slots=True)
class Case:
    """One row: what is promised, and the names of the tests that show it."""

    letter: str
    number: int
    promise: str
    tests: tuple[str, ...]


def cases(text: str) -> list[Case]:
    """The rows of the table."""
    return [
        Case(letter, int(number), promise, tuple(re.findall(r"`(\w+)`", tests)))
        for letter, number, promise, tests in _ROW.findall(text)
    ]


def every_test() -> set[str]:
    """Every test's name, with a case's number or without."""
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def found() -> dict[tuple[str, int], list[str]]:
    """The tests of each case, by name."""
    tests: dict[tuple[str, int], list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, letter, number in _TEST.findall(path.read_text()):
            tests.setdefault((letter.upper(), int(number)), []).append(name)
    return tests


def written(text: str) -> str:
    """`text` with the last column of each row filled from what is there."""
    tests = found()

    def row(match: re.Match[str]) -> str:
        letter, number, promise, _ = match.groups()
        names = tests.get((letter, int(number)), [])
        shown = ", ".join(f"`{name}`" for name in names) or NOTHING
        return f"| {letter}{number} | {promise} | {shown} |"

    return _ROW.sub(row, text)


def group(letter: str) -> range:
    """The numbers of a group's cases."""
    before = [last for last in LAST.values() if last < LAST[letter]]
    return range(max(before, default=0) + 1, LAST[letter] + 1)


def summed_up(text: str) -> str:
    """`text` with the last column of each group filled: how many of its cases have tests, and the first of them."""
    tests = found()

    def row(match: re.Match[str]) -> str:
        letter, promise, _ = match.groups()
        shown = [tests[letter, number][0] for number in group(letter) if (letter, number) in tests]
        first = f", such as `{shown[0]}`" if shown else ""
        return f"| {letter} | {promise} | {len(shown)} of {len(group(letter))}{first} |"

    return _GROUP.sub(row, text)


if __name__ == "__main__":
    SECURITY.write_text(written(SECURITY.read_text()))
    README.write_text(summed_up(README.read_text()))
