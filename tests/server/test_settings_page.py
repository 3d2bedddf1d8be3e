"""docs/settings.md has a row for every setting and quota, no other, and the defaults that they have."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ByteSize, TypeAdapter

from server.quotas.quota import Quota
from server.settings import MANY, TABLES, Settings

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
FIELDS = {name: field for name, field in Settings.model_fields.items() if name not in TABLES}
UNSET = {"none", "from what is free", "by device", "the base's", "in the data directory", "`rootstock.toml`"}
"""What stands for None or for nothing."""


def flag(name: str) -> str:
    return MANY[name][0] if name in MANY else f"--{name.replace('_', '-')}"


def documented() -> dict[str, str]:
    rows = re.findall(r"^\| `(--[a-z-]+)`[^|]* \| ([^|]+) \| [^|]+ \|$", PAGE, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a flag stands there twice"
    return dict(rows)


def told(default: Any) -> set[str]:
    """The ways to write a default."""
    if default is None or default == () or default == {}:
        return UNSET
    if isinstance(default, bool):
        return {"on" if default else "off"}
    if isinstance(default, Path):
        return {f"`{default}`".replace(str(Path.home()), "~", 1)}
    return {f"`{default:g}`" if isinstance(default, float) else f"`{default}`"}


def test_every_setting_has_a_row_and_every_row_a_setting() -> None:
    assert set(documented()) == {flag(name) for name in FIELDS}


@pytest.mark.parametrize("name", FIELDS)
def test_the_default_is_the_one_of_the_setting(name: str) -> None:
    written, default = documented()[flag(name)], FIELDS[name].get_default(call_default_factory=True, validated_data={})
    if isinstance(default, ByteSize):
        assert TypeAdapter(ByteSize).validate_python(written.strip("`")) == default
    else:
        assert written in told(default)


def test_every_quota_has_a_row() -> None:
    table = PAGE.partition("## Tenants' quotas")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(Quota.model_fields)


def test_the_files_of_the_page_are_ones() -> None:
    files = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(files) == 2
    first, second = (Settings(**tomllib.loads(text)) for text in files)
    assert first.adapters and first.trusted_hosts == ("llm.example.org",)
    assert second.tenant_quotas()["acme"].weight == 2
