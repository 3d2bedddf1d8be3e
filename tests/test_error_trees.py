"""Each layer's errors open with their tree as text. Here the text is held against the classes."""

import inspect
import re
from types import ModuleType

import pytest

import adapters.errors
import engine.errors
import loader.errors
import server.errors
import server.keys.errors

BRANCH = re.compile(r"(?P<stem>(?:[│ ]   )*[├└]── )(?P<name>\w+) |(?P<root>[A-Z]\w+)(?:  .*)?$")


def told(module: ModuleType) -> dict[str, str | None]:
    """Each error in the tree, and the one that it stands under."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in inspect.cleandoc(module.__doc__ or "").splitlines():
        if (found := BRANCH.match(line)) is None:
            continue
        depth, name = len(found["stem"] or "") // 4, found["name"] or found["root"]
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else None
    return parents


def real(module: ModuleType) -> dict[str, str | None]:
    """Each error that the module defines, and its parent there, or OSError, which a tree may name."""
    kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    parents: dict[str, str | None] = {}
    for kind in kinds:
        if issubclass(kind, Exception):
            parent = kind.__bases__[0]
            named = parent.__module__ == module.__name__ or parent is OSError
            parents[kind.__name__] = parent.__name__ if named else None
    return parents


@pytest.mark.parametrize(
    "module",
    [adapters.errors, engine.errors, loader.errors, server.errors, server.keys.errors],
    ids=lambda m: m.__name__,
)
def test_the_tree_is_the_classes(module: ModuleType) -> None:
    tree = told(module)
    tree.pop("OSError", None)  # the system's own root
    assert tree == real(module)
