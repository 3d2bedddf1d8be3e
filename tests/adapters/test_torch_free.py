"""The disk side of the adapters must start in milliseconds: it may not import torch, nor PEFT, nor transformers."""

import os
import subprocess
import sys

import pytest

MODULES = (
    "errors", "strict_json", "fields", "config", "targets", "header", "identity", "finite", "expected", "canonical",
    "checkpoint", "manifest", "manifest_json", "naming", "store", "tables", "database", "registry", "catalog",
    "disk", "labels", "recovery",
)  # fmt: skip


def imported_with(modules: tuple[str, ...]) -> set[str]:
    code = f"import sys\nfor name in {modules!r}: __import__('adapters.' + name)\nprint(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return set(run.stdout.split())


def test_nothing_heavy_is_imported() -> None:
    assert not imported_with(MODULES) & {"torch", "peft", "transformers", "safetensors", "fastapi"}


@pytest.mark.parametrize("module", ["naming", "manifest", "header", "identity", "checkpoint", "sandbox_json"])
def test_the_small_modules_need_neither_numpy_nor_sqlalchemy(module: str) -> None:
    assert not imported_with((module,)) & {"numpy", "sqlalchemy", "alembic"}
