"""Names, aliases and references: what is a slug, what is taken, what a reference selects."""

import pytest

from adapters.errors import AliasInvalid, NameInvalid, NameReserved, UnknownAdapter
from adapters.naming import Reference, check_alias, check_name, parse_reference

ID = "sha256:" + "0a" * 32


@pytest.mark.parametrize("name", ["a", "A9", "my-adapter_v1.2", "0", "x" * 64, "console"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b", ".", "..", ".hidden", "-x", "_x", "a b", "a@1", "a:b", "%2e%2e", "x" * 65, "a\n", "a\0", "con",
     "CON", "nul.txt", "Com1", "lpt9.a.b", "\u0430bc", "a\u202eb", "caf\u00e9", "cafe\u0301", "C:\\x", "\U0001d41a"],
)  # fmt: skip
def test_names_refused(name: str) -> None:
    with pytest.raises(NameInvalid) as caught:
        check_name(name)
    assert not isinstance(caught.value, NameReserved)
    assert str(caught.value).isascii() and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["base", "Base"])
def test_names_reserved(name: str) -> None:
    with pytest.raises(NameReserved):
        check_name(name, frozenset({"base"}))


@pytest.mark.parametrize("alias", ["prod", "v1", "1a", "2024-01-01"])
def test_aliases(alias: str) -> None:
    assert check_alias(alias) == alias


@pytest.mark.parametrize(
    "alias", ["", "3", "0", "007", "sha256", "SHA256-x", "sha256x", "a/b", "a@b", "\u0663", "x" * 65]
)
def test_aliases_refused(alias: str) -> None:
    with pytest.raises(AliasInvalid):
        check_alias(alias)


def test_references() -> None:
    assert parse_reference("a") == Reference("a")
    assert parse_reference("a@3") == Reference("a", number=3)
    assert parse_reference("a@prod") == Reference("a", alias="prod")
    assert parse_reference(f"a@{ID}").id == ID


@pytest.mark.parametrize(
    "text", ["", "@", "@3", "a@", "a@@", "a@b@c", "a/b/c", "/b", "a/", "a@sha256:00", "a@../x", f"a@{ID.upper()}"]
)
def test_references_refused(text: str) -> None:
    with pytest.raises(UnknownAdapter):
        parse_reference(text)
