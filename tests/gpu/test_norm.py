"""On a GPU norms are torch's own function where they compute the same, and a model's own where they do not."""

from pathlib import Path

import pytest

from loader.base import load
from loader.pointwise import TorchNorm
from loader.source import resolve
from tests.support.gpu import needs_gpu
from tests.support.models import tiny_model_dir

pytestmark = needs_gpu


@pytest.mark.parametrize(("arch", "replaced"), [("llama", True), ("qwen3", True), ("gemma3", False)])
def test_it_stands_where_a_model_computes_the_same(arch: str, replaced: bool, tmp_path: Path) -> None:
    """Gemma's norms add one to their weights."""
    model = load(resolve(str(tiny_model_dir(arch, tmp_path)), tmp_path), device="cuda").model
    norms = [module for path, module in model.named_modules() if path.endswith("norm")]
    assert norms
    assert {isinstance(norm, TorchNorm) for norm in norms} == {replaced}
