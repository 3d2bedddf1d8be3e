"""The pages hang together: every link leads somewhere, no page is out of reach, and what they tell to type exists."""

import re
from collections import Counter
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from bench.commands import app as bench_app
from server.cli import _app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))

_FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def targets(page: Path) -> list[str]:
    """The links of a page that stay in the repository."""
    return [link for link in _LINK.findall(prose(page)) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link, as GitHub and its kin spell it."""
    found: Counter[str] = Counter()
    names: set[str] = set()
    for heading in _HEADING.findall(prose(page)):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def dead(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    return [link for link in targets(page) if not leads(page, link)]


def leads(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    aim = (page.parent / path).resolve() if path else page
    return aim.exists() and (not anchor or (aim.suffix == ".md" and anchor in anchors(aim)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert dead(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Here, and `there`\n## Twice\n## Twice\n```sh\n# no heading\n```\n")
    page = tmp_path / "page.md"
    good = ["other.md", "other.md#here-and-there", "other.md#twice", "other.md#twice-1", "#first"]
    bad = ["gone.md", "other.md#no-heading", "other.md#twice-2", "#second"]
    page.write_text("# First\n" + "".join(f"[x]({link})\n" for link in [*good, "https://example.org/x", *bad]))
    assert targets(page) == good + bad
    assert dead(page) == bad


def test_the_readme_links_every_page() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in targets(README)}
    assert set(PAGES) - linked == {README}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_make_is_asked_for_is_there(page: Path) -> None:
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    code = "".join(_FENCED.findall(page.read_text(encoding="utf-8")))
    asked = re.findall(r"^make ([a-z-]+)", code, re.MULTILINE) + re.findall(r"`make ([a-z-]+)", prose(page))
    assert set(asked) <= there


def typed(page: Path) -> list[str]:
    """The rootstock commands of a page: whole lines of code, and those within a sentence."""
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
    lines = re.findall(r"^(?:\S*bin/)?(rootstock [a-z][^#|>\n]*)", "".join(_FENCED.findall(text)), re.MULTILINE)
    return lines + [" ".join(words.split()) for words in re.findall(r"`(rootstock [a-z][^`]*)`", _FENCED.sub("", text))]


def unknown(line: str) -> list[str]:
    """The words of a command line that the command does not have."""
    words = line.split()[1:]
    command = get_command(bench_app if words[0] == "bench" else _app)
    if words[0] == "bench":
        words = words[1:]
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return words[:1]
        command = command.commands[words.pop(0)]
    known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)} | {"--help"}
    return [word for word in words if re.fullmatch(r"--[a-z-]+", word.partition("=")[0]) and word not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_there_with_their_flags(page: Path) -> None:
    assert {line: words for line in typed(page) if (words := unknown(line))} == {}


def test_a_command_or_flag_that_is_not_there_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`rootstock adapters ls`, `rootstock gone`\n```sh\n.venv/bin/rootstock bench run --nothing\nrootstock keys \\\n"
        "    sell  # away\n```\n"
    )
    assert [unknown(line) for line in typed(page)] == [["--nothing"], ["sell"], [], ["gone"]]


_FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|h|cpp|yml|yaml|json|jsonl|txt|toml))`")
MADE = ("runs/", "data/", "adapters/names/")
"""Folders of a user's, and of the data directory."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    named = {name for name in _FILE.findall(prose(page)) if not name.startswith(MADE)}
    assert {name for name in named if not (ROOT / name).exists()} == set()
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", prose(page))) <= tests
