"""The packages keep their shape: whose folders these are, which modules import no torch, and how large things grow.

The direction of imports is import-linter's, in pyproject.toml.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE_MAP = ROOT / "docs" / "architecture.md"
LAYERS = ("server", "engine", "training", "adapters", "loader", "native")
SOURCES = (*LAYERS, "bench", "demo", "tests")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

MAY_IMPORT_TORCH = {
    "adapters.bank",
    "adapters.buffers",
    "adapters.lane",
    "adapters.layer",
    "adapters.loading",
    "adapters.merge",
    "adapters.op",
    "adapters.stage",
    "adapters.supply",
    "bench.decode_steps",
    "engine.attention",
    "engine.batch",
    "engine.build",
    "engine.compiled_attention",
    "engine.compiled_layer",
    "engine.compiled_model",
    "engine.draws",
    "engine.flash",
    "engine.graphs",
    "engine.kv_cache",
    "engine.recording",
    "engine.runner",
    "engine.sampler",
    "loader.base",
    "loader.convert",
    "loader.dequantize",
    "loader.discover",
    "loader.kernels",
    "loader.pages",
    "loader.pointwise",
    "loader.product",
    "loader.quantize",
    "loader.skeleton",
    "loader.suitability",
    "native.kernels",
    "native.tables",
    "server.assembly",
    "server.heldout",
    "server.offline_engine",
    "server.serve",
    "training.base",
    "training.eval_mode",
    "training.evaluation",
    "training.export",
    "training.forecast",
    "training.general_text",
    "training.graft",
    "training.loss",
    "training.padding",
    "training.peak_memory",
    "training.quiet",
    "training.reference_logprobs",
    "training.reward_model",
    "training.run",
    "training.score",
    "training.sharding",
    "training.trainers.common",
    "training.trainers.dpo",
    "training.trainers.recorder",
    "training.trainers.ref_adapter",
    "training.trainers.reward",
    "training.trainers.rl",
    "training.trainers.sft",
    "training.trainers.weights",
}
"""Tensors live here; everything else is policy, files or HTTP, and is imported in milliseconds."""

IMPORT_WITHOUT_TORCH = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "peft", "bitsandbytes"}:
            raise ImportError(f"imports {name}")

sys.meta_path.insert(0, Refuse())
faults = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        faults.append(f"{name}: {error}")
sys.exit("\\n".join(faults) or None)
"""


def modules() -> set[str]:
    """Every module of the layers and the bench; migrations run inside alembic, and locust patches the interpreter."""
    paths = (path.relative_to(ROOT) for folder in (*LAYERS, "bench") for path in (ROOT / folder).rglob("*.py"))
    apart = {"__init__.py", "locustfile.py"}
    return {
        ".".join(path.with_suffix("").parts)
        for path in paths
        if path.name not in apart and "migrations" not in path.parts
    }


def run_python(*arguments: str, cwd: Path) -> str:
    ended = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("layer", LAYERS)
def test_the_folders_of_this_clone_are_what_is_imported(layer: str) -> None:
    """Another distribution is called `adapters`: had it won, every test would test something else."""
    assert Path(__import__(layer).__file__ or "") == ROOT / layer / "__init__.py"


def test_so_they_are_from_any_working_directory(tmp_path: Path) -> None:
    found = run_python("-c", "import adapters; print(adapters.__file__)", cwd=tmp_path)
    assert Path(found.strip()) == ROOT / "adapters" / "__init__.py"


def test_all_but_the_listed_modules_import_no_torch() -> None:
    run_python("-c", IMPORT_WITHOUT_TORCH, *sorted(modules() - MAY_IMPORT_TORCH), cwd=ROOT)


def test_the_list_of_modules_names_only_those_that_exist() -> None:
    assert modules() >= MAY_IMPORT_TORCH


@pytest.mark.parametrize("package", ["server", "engine", "adapters", "loader", "native", "training"])
def test_the_module_map_names_every_module_once(package: str) -> None:
    parts = re.split(r"^`(\w+)/`", MODULE_MAP.read_text(encoding="utf-8"), flags=re.MULTILINE)
    listed = [
        name
        for heading, part in zip(parts[1::2], parts[2::2], strict=True)
        for name in re.findall(r"`(\w+)(?:`|/`)", part.partition("\n#")[0])
        if heading == package
    ]
    files = (path.relative_to(ROOT / package) for path in (ROOT / package).rglob("*.*") if path.suffix != ".pyc")
    there = {path.parts[0].removesuffix(".py") for path in files if len(path.parts) > 1 or path.suffix == ".py"}
    assert sorted(listed) == sorted(there - {"__init__"})


def test_packages_run_nothing_on_import() -> None:
    written = [path for folder in SOURCES for path in (ROOT / folder).rglob("__init__.py") if path.read_bytes()]
    assert not written, "an __init__.py that imports would bring torch into every module of its folder"


@pytest.mark.parametrize("folder", SOURCES)
def test_files_and_functions_stay_small_and_say_what_they_own(folder: str) -> None:
    assert not [fault for path in sorted((ROOT / folder).rglob("*.py")) for fault in faults(path)]


def faults(path: Path) -> Iterator[str]:
    text, where = path.read_text(), path.relative_to(ROOT)
    module = ast.parse(text)
    if module.body and not ast.get_docstring(module):
        yield f"{where} does not open with what it owns"
    if (lines := len(text.splitlines())) > MAX_FILE_LINES:
        yield f"{where} has {lines} lines"
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{where}: {node.name} has {lines} lines"
