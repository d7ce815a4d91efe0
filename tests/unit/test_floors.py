"""The house: imports run down only, and what the Snakefile reads loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from palimpsest.config import PACKAGE

# From the ground up; rooms on one floor do not know each other, but for BESIDE.
FLOORS = [
    {"data", "methods", "metrics", "lineage", "files", "provenance", "refusal"}
    | {"slurm", "attempts", "lock", "logs", "imports"},
    {"config", "study", "tasks", "launch", "leftovers", "embeddings"},
    {"models", "report"},
    {"training", "evaluation", "judging", "plan", "setting", "status", "check"},
    {"cli"},
]
BESIDE = {
    "data": {"files", "lineage"},
    "methods": {"files", "lineage"},
    "metrics": {"files", "lineage"},
    "attempts": {"slurm", "files"},
    "lock": {"slurm", "files"},
    "study": {"config"},
    "tasks": {"config", "study"},
    "launch": {"config", "study"},
    "embeddings": {"config"},
    "judging": {"evaluation"},
    "plan": {"setting"},
}
REPORT_KNOWS = {"report", "files", "lineage", "refusal"}  # tables: no models, data or config
LIGHT = ["config", "study", "lineage", "files", "metrics", "plan", "launch", "cli", "tasks"]
LIGHT += ["data.shards", "data.convert", "evaluation.score", "evaluation.chance", "report"]
LIGHT += ["judging.judge", "judging.serving"]
LIGHT += ["slurm", "attempts", "lock", "logs", "leftovers", "status", "check"]
LIGHT += ["embeddings", "methods.similarity"]
LIGHT += ["data.downloads.download", "data.miniatures.coin"]
HEAVY = ["torch", "transformers", "peft", "deepspeed", "datasets"]
FOR_REPORTS = ["pandas", "matplotlib", "scipy", "sklearn"]
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """Return `palimpsest.data.shards` for its file, and `palimpsest.data` for an `__init__`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported(path: Path) -> list[str]:
    """Return every module and name that a file imports, lazily or not, by its full name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room(name: str) -> str | None:
    """Return the room of a name of this package: the part after `palimpsest`."""
    parts = name.split(".")
    return parts[1] if parts[0] == "palimpsest" and len(parts) > 1 else None


def rooms_known_to(path: Path) -> set[str]:
    found = {room(name) for name in imported(path)}
    return {name for name in found if name and name != "__version__"}


def may_know(name: str) -> set[str]:
    """Return the rooms that a room may import from."""
    if name == "report":
        return REPORT_KNOWS
    floor = next(n for n, rooms in enumerate(FLOORS) if name in rooms)
    return set().union(*FLOORS[:floor]) | BESIDE.get(name, set()) | {name}


def test_every_room_has_a_floor():
    rooms = {room(module_name(path)) for path in MODULES} - {None}
    assert rooms <= set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_run_down_only(path):
    name = room(module_name(path))
    if name is None:  # palimpsest/__init__.py
        assert not imported(path)
    else:
        assert rooms_known_to(path) <= may_know(name)


def test_no_two_modules_import_each_other():
    names = {module_name(path) for path in MODULES}
    graph = {}
    for path in MODULES:
        wanted = {n if n in names else n.rpartition(".")[0] for n in imported(path)}
        graph[module_name(path)] = (wanted & names) - {module_name(path)}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_imports_snakemake(path):
    assert not [name for name in imported(path) if name.split(".")[0] == "snakemake"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "metrics").glob("*.py")), ids=module_name)
def test_metrics_are_pure_python(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots <= sys.stdlib_module_names | {"palimpsest", "__future__"}


def loaded(code: str, *packages: str) -> str:
    """Run code in a new process; return what it prints, which may use `found()`: what is loaded."""
    found = f"def found(): return [name for name in {packages} if name in sys.modules]"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{found}\n{code}"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_light_modules_load_nothing_heavy():
    code = (
        f"for name in {LIGHT}:\n"
        "    __import__(f'palimpsest.{name}')\n"
        "    if found(): sys.exit(f'{name} loads {found()}')\n"
        "import palimpsest.cli\n"
        "palimpsest.cli.parser().format_help()\n"
        "print(found())"
    )
    assert loaded(code, *HEAVY, *FOR_REPORTS) == "[]\n"


def test_jobs_of_a_model_load_only_what_they_use():
    code = (
        "from palimpsest import cli, imports\n"
        "imports.hide(cli.UNUSED[cli.evaluate])\n"
        "import palimpsest.evaluation.generate, palimpsest.evaluation.embed\n"
        "import pyarrow\n"
        "pyarrow.array(['pandas, if it is there'])\n"
        "print(found())"
    )
    asked = ("torch", "deepspeed", "palimpsest.models.image_text", *FOR_REPORTS)
    assert loaded(code, *asked) == "['torch']\n"
