"""Studies, benchmarks, tasks, models and methods: YAML files as typed, frozen, validated objects.

    config/<study>.yaml   config/benchmarks/   config/tasks/   config/models/   config/methods/
    config/judges/        config/downloads/      config/concepts/     config/references.bib

Everything that is wrong in a file is reported at once, each with the file, the key, what was
found, what is allowed, and the nearest right name. This room imports no torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from palimpsest.config.benchmark import Benchmark
from palimpsest.config.judge import Asking, Judge, JudgeResources, Sampling, Serving
from palimpsest.config.method import Method
from palimpsest.config.model import AsPublished, Chat, Encoder, Model, Resources, TextEncoder
from palimpsest.config.references import FILE, read_references
from palimpsest.config.science import PACKAGE, Science, modules
from palimpsest.config.study import (
    AS_PUBLISHED,
    FIDELITY,
    METRIC,
    RULES,
    Evaluation,
    Probes,
    Published,
    Reference,
    Study,
)
from palimpsest.config.task import Task
from palimpsest.config.vocabulary import Described, Vocabulary
from palimpsest.data.downloads.settings import Download
from palimpsest.methods.settings import Training
from palimpsest.refusal import ConfigError, check_known, explain, read_yaml

__all__ = [
    "AS_PUBLISHED", "CONFIG", "FIDELITY", "METRIC", "PACKAGE", "RULES", "AsPublished", "Asking",
    "Benchmark", "Chat", "Described", "Download", "Encoder", "Evaluation", "Judge",
    "JudgeResources", "Method", "Model", "Probes", "Published", "Reference", "Resources",
    "Sampling", "Science", "Serving", "Study", "T", "Task", "TextEncoder", "Training", "Vocabulary",
    "check_named", "load", "modules", "read_references",
]  # fmt: skip

CONFIG = Path("config")
T = TypeVar("T", bound=BaseModel)
KINDS = {
    Task: "tasks", Benchmark: "benchmarks", Model: "models", Method: "methods", Judge: "judges",
    Download: "downloads", Vocabulary: "concepts", Study: ".",
}  # fmt: skip


def load(kind: type[T], name: str, root: Path = CONFIG) -> T:
    """Load the object of a kind by its name; ConfigError if there is none or it is wrong."""
    return _load(kind, name, root)


@cache
def _load(kind: type[T], name: str, root: Path) -> T:
    path = root / KINDS[kind] / f"{name}.yaml"
    if not path.is_file():
        check_named(kind, name, str(path), root)
    content, sources = _extended(path)
    try:
        loaded = kind.model_validate(content)
    except ValidationError as errors:
        found = errors.errors(include_url=False)
        lines = [explain(sources.get(next(iter(e["loc"]), ""), path), kind, e) for e in found]
        raise ConfigError("\n".join(lines)) from None
    for key in getattr(loaded, "cites", ()):
        where = f"{sources['cites']}: cites"
        check_known(key, read_references(root), where, f"work in {root / FILE}")
    return loaded


def check_named(kind: type[BaseModel], name: str, where: str, root: Path = CONFIG) -> None:
    """ConfigError, naming where the name was found, if no object of the kind has it."""
    known = [path.stem for path in (root / KINDS[kind]).glob("*.yaml")]
    check_known(name, known, where, kind.__name__.lower())


def _extended(path: Path, heirs: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, Path]]:
    """Read a file laid over the one it `extends`, and say which file each key is from."""
    content = read_yaml(path)
    own = dict.fromkeys(content, path)
    if "extends" not in content:
        return content, own
    heirs = (*heirs, path)
    name = content.pop("extends")
    known = {p.stem: p for p in path.parent.glob("*.yaml") if p not in heirs}
    check_known(name, known, f"{path}: extends", "file")
    inherited, sources = _extended(known[name], heirs)
    return {**inherited, **content}, {**sources, **own}
