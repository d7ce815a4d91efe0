"""A small configuration of its own for each test that asks for one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from palimpsest import config, study

TASK = {
    "version": 1,
    "title": "Signs",
    "category": "reading text in a picture",
    "reader": "rendered",
    "source": {"scene": "signs", "seed": 21, "sizes": {"train": 8, "test": 4}},
    "prompt": "{question}\nAnswer with the letters.",
    "answer_format": "[A-Z]{3,4}",
    "metric": "exact_match",
    "max_new_tokens": 8,
    "licence": "CC0-1.0",
}
BENCHMARK = {
    "title": "Three",
    "orders": {"first": ["signs", "count", "boxes"], "second": ["signs", "boxes", "count"]},
}
MODEL = {
    "title": "Tiny",
    "family": "llava",
    "weights": "results/models/tiny",
    "chat": {
        "user": "USER: {question}",
        "assistant": " ASSISTANT: {answer}</s>",
        "image": "<image>\n",
    },
    "max_length": 64,
    "adapter_targets": ".*proj",
    "projector": "projector",
    "precision": "fp32",
    "micro_batch": 4,
    "resources": {"memory_mb": 100, "minutes": 1, "checkpoint_steps": 10},
}
METHOD = {
    "title": "LoRA",
    "source": "a test",
    "adapter": {"name": "lora", "rank": 4, "alpha": 8},
    "training": {"batch": 8, "epochs": 1, "learning_rate": 0.001, "schedule": "cosine"},
}
STUDY = {
    "title": "A study",
    "benchmark": "three",
    "models": ["tiny"],
    "methods": ["lora"],
    "orders": ["first"],
    "seeds": [0],
    "references": {
        "zero-shot": {"title": "Zero-shot", "protocol": "zero-shot"},
        "direct": {"title": "Direct", "protocol": "direct", "method": "lora"},
        "joint": {"title": "Joint", "protocol": "joint", "method": "lora"},
        "blind": {
            "title": "Blind", "protocol": "direct", "method": "lora", "benchmark": "three-blind",
        },
    },
    "evaluation": {"batch": 4},
}  # fmt: skip


class Workplace:
    """A working directory with its own `config/`, whose files a test changes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for task in BENCHMARK["orders"]["first"]:
            self.write(f"tasks/{task}", TASK | {"title": task.title()})
        self.write("benchmarks/three", BENCHMARK)
        self.write("benchmarks/three-blind", {"extends": "three", "pictures": "blank"})
        self.write("models/tiny", MODEL)
        self.write("methods/lora", METHOD)
        self.write("small", STUDY)

    def write(self, name: str, content: dict[str, Any] | str) -> None:
        """Write `config/<name>.yaml`, from a mapping or word for word."""
        path = self.root / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str):
            content = yaml.safe_dump(content, sort_keys=False)
        path.write_text(content)
        forget()

    def change(self, name: str, **values: Any) -> None:
        """Set values of `config/<name>.yaml`; `a__b=1` sets key b inside a."""
        path = self.root / "config" / f"{name}.yaml"
        content = yaml.safe_load(path.read_text())
        for key, value in values.items():
            *outer, last = key.split("__")
            inner = content
            for part in outer:
                inner = inner[part]
            inner[last] = value
        self.write(name, content)


def forget() -> None:
    """Forget what was loaded, as a new process does."""
    config._load.cache_clear()
    study.identity.cache_clear()


@pytest.fixture(autouse=True)
def no_figure_stays_open() -> Iterator[None]:
    """Close what a test has drawn: matplotlib warns of many, and a warning is an error."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working directory with a study `small` of three tasks."""
    monkeypatch.chdir(tmp_path)
    yield Workplace(tmp_path)
    forget()
