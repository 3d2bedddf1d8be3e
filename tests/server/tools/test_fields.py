"""Which functions a body offers, which of them may be called, and whether one must be."""

from collections.abc import Mapping
from typing import Any

import pytest

from server.tools.fields import ToolsBody

TOOLS = [{"type": "function", "function": {"name": name}} for name in "abc"]
A, B = TOOLS[:2]


def allowed(mode: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [B, A, B]}}


CHOICES: Mapping[str, tuple[Any, str, bool, bool]] = {
    "auto": ("auto", "abc", False, True),
    "required": ("required", "abc", True, True),
    "by name": (B, "b", True, False),
    "allowed ones": (allowed("auto"), "ab", False, True),
    "allowed ones, and one of them must be": (allowed("required"), "ab", True, True),
    "as if not sent": (None, "abc", False, True),
}


@pytest.mark.parametrize(("choice", "callable", "forced", "parallel"), CHOICES.values(), ids=CHOICES)
def test_what_is_offered(choice: Any, callable: str, forced: bool, parallel: bool) -> None:
    offer = ToolsBody.model_validate({"tools": TOOLS, "tool_choice": choice}).offer()
    assert offer is not None
    assert [function.name for function in offer.functions] == list("abc"), "the model is told of all"
    assert [function.name for function in offer.callable] == list(callable)
    assert (offer.forced, offer.parallel) == (forced, parallel)
    one = ToolsBody.model_validate({"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}).offer()
    assert one is not None and not one.parallel


@pytest.mark.parametrize("body", [{}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}], ids=str)
def test_what_offers_nothing(body: dict[str, Any]) -> None:
    assert ToolsBody.model_validate(body).offer() is None
