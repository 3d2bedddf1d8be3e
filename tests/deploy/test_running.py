"""What is written for those who run it: the proxy's configuration, the image and compose, held against the server.

Both have been run by hand; here is what would break them unnoticed when a default or a folder changes.
"""

import re
import tomllib
from typing import Any

import pytest
import yaml

from server.form import CONFIG_BYTES
from server.serve import _GRACE_S
from server.settings import Settings
from tests.support.cases import ROOT, SECURITY

DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}


@pytest.fixture(scope="module")
def nginx() -> dict[str, str]:
    """Each directive that stands once, without its comment."""
    block = re.search(r"```nginx\n(.*?)```", SECURITY.read_text(), re.DOTALL)
    assert block, "docs/security.md has lost its nginx configuration"
    lines = [line.partition("#")[0].strip() for line in block[1].splitlines()]
    return dict(line.rstrip(";").split(None, 1) for line in lines if line.endswith(";"))


def test_the_proxy_holds_nothing_back(nginx: dict[str, str]) -> None:
    assert nginx["proxy_buffering"] == nginx["proxy_request_buffering"] == "off"
    assert nginx["proxy_http_version"] == "1.1", "unbuffered bodies without a length need chunks"


def test_the_proxy_passes_the_largest_form_and_waits_as_long_as_clients_do(nginx: dict[str, str]) -> None:
    size = re.fullmatch(r"(\d+)m", nginx["client_max_body_size"])
    assert size and int(size[1]) << 20 >= DEFAULTS["max_upload_bytes"] + CONFIG_BYTES
    assert nginx["proxy_read_timeout"] == "600s", "what OpenAI's clients and our commands wait"


def test_the_proxys_refusals_are_ones_that_clients_repeat(nginx: dict[str, str]) -> None:
    assert nginx["limit_conn_status"] == nginx["limit_req_status"] == "429"
    assert "$upstream_http_x_request_id" in nginx["log_format"]


def test_compose_waits_until_a_server_has_drained() -> None:
    services: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for name in ("cpu", "cuda"):
        grace = int(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace > DEFAULTS["drain_timeout"] + _GRACE_S
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"]


def test_the_image_has_every_folder_and_needs_no_other_image_to_be_built() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for package in packages:
        assert f"COPY {package} {package}\n" in dockerfile and f"!{package}" in ignored
    assert "# syntax=" not in dockerfile, "a frontend is one image more to fetch, where there may be no registry"
