"""The OpenAPI description against the application: no 5xx, no method and no answer that is not told, nothing
from inside."""

from pathlib import Path

from tests.fuzz.api import fuzz
from tests.support.server_rig import make_rig


def test_what_the_description_allows_is_never_a_5xx(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    seen = fuzz(rig, examples=4, same=True)
    rig.registry.close()
    labels = {label for label, _ in seen}
    described = {
        f"{method.upper()} {path}" for path, methods in rig.app.openapi()["paths"].items() for method in methods
    }
    assert labels >= described
    assert max(status for _, status in seen) < 500
    assert {200, 400, 404} <= {status for _, status in seen}
