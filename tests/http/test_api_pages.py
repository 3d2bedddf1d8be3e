"""docs/api.md and docs/coming-from.md name the server's routes, fields, error codes and flags, and no others."""

import re
from pathlib import Path

import pytest

from server.chat_body import ChatBody
from server.completion_body import CompletionBody
from server.errors import TABLE
from server.fields import UNSERVED
from server.settings import MANY, Settings
from tests.support.server_rig import ServerRig

ROOT = Path(__file__).parents[2]
DOCS, SERVER = ROOT / "docs", ROOT / "server"
API = (DOCS / "api.md").read_text(encoding="utf-8")
COMING = (DOCS / "coming-from.md").read_text(encoding="utf-8")
_METHODS = re.compile(r"[A-Z]+(?:/[A-Z]+)*")


def section(heading: str) -> str:
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^## |\Z)", API, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def first_cells(text: str) -> list[str]:
    """The first cell of each row of the tables in `text`, without their heads."""
    rows = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
    return [cell for cell in rows if "`" in cell]


def routes_of(cell: str) -> set[str]:
    """`GET`, `HEAD /a`, `POST` the same: methods belong to the next path, or to the last one where none comes."""
    routes: set[str] = set()
    path, waiting = "", list[str]()
    for token in re.findall(r"`([^`]+)`", cell):
        methods, _, aim = token.partition(" ") if not token.startswith("/") else ("", "", token)
        if _METHODS.fullmatch(methods):
            waiting += methods.split("/")
        if aim:
            path = aim.partition("?")[0]
            routes |= {f"{method} {path}" for method in waiting}
            waiting = []
    return routes | {f"{method} {path}" for method in waiting}


@pytest.fixture(scope="module")
def routes(rig: ServerRig) -> set[str]:
    described = rig.app.openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in described.items() for method in methods}


def test_every_route_has_a_row_and_every_row_a_route(routes: set[str]) -> None:
    told = set().union(*map(routes_of, first_cells(section("Routes"))))
    assert told == routes


def test_every_field_of_a_generation_is_told_and_no_other() -> None:
    served = set(CompletionBody.model_fields) | set(ChatBody.model_fields)
    cells = first_cells(section("Fields of a generation"))
    told = {name.partition(".")[0] for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}
    without_effect = section("Accepted, without effect").partition(". ")[0]
    told |= {name.partition(".")[0] for name in re.findall(r"`([\w.]+)`", without_effect)}
    assert told == served | set(UNSERVED)


def test_every_error_code_is_told_beside_its_status() -> None:
    told = {status: codes for status, codes in re.findall(r"^\| (\d{3}) \| (.+) \|$", section("Errors"), re.MULTILINE)}
    for _, row in TABLE:
        assert f"`{row.code}`" in told[str(row.status)], row.code
    raised = {code for path in SERVER.rglob("*.py") for code in re.findall(r'code="(\w+)"', path.read_text())}
    assert raised <= set(re.findall(r"`(\w+)`", section("Errors")))


def ours(text: str) -> list[str]:
    """The last cell of each row: what a thing is called here."""
    return [row.rpartition(" | ")[2] for row in re.findall(r"^\| (.*) \|$", text, re.MULTILINE)]


def test_what_others_call_otherwise_is_there_under_our_name(routes: set[str]) -> None:
    flags = {f"--{name.replace('_', '-')}" for name in Settings.model_fields} | {flag for flag, _ in MANY.values()}
    for cell in ours(COMING):
        code = re.findall(r"`([^`]+)`", cell)
        served = {word for piece in code for word in piece.split() if word.startswith("--")}
        assert served - flags <= {"--no-cuda-graphs", "--name"}, cell
        assert {piece for piece in code if re.match(r"(GET|POST|PUT|DELETE) /", piece)} <= routes, cell
