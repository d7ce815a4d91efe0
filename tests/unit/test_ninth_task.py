"""The ninth task of docs/coin.md: as it stands there, and no line of Python."""

from __future__ import annotations

import json
import re
from contextlib import chdir
from pathlib import Path

import pytest
from PIL import Image

from palimpsest import cli
from palimpsest.config import Benchmark, load
from palimpsest.data.shards import Shards
from workspace import REPOSITORY, forget

DOCS = (REPOSITORY / "docs" / "coin.md").read_text()
FILES = dict(re.findall(r"```yaml\n# (config/\S+)\n(.*?)```", DOCS, re.DOTALL))


@pytest.fixture
def root(tmp_path):
    """A project with the files that the docs show, and five charts."""
    for name in ("tasks", "benchmarks", "downloads"):
        (tmp_path / "config" / name).mkdir(parents=True)
        for path in (REPOSITORY / "config" / name).glob("coin*.yaml"):
            (tmp_path / "config" / name / path.name).write_text(path.read_text())
    references = "config/references.bib"
    (tmp_path / references).write_text((REPOSITORY / references).read_text())
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    charts = tmp_path / "results" / "downloads" / "my-charts"
    (charts / "images").mkdir(parents=True)
    for n in range(5):
        Image.new("RGB", (40, 30 + n)).save(charts / "images" / f"{n}.png")
    train = [{"id": n, "image": f"{n}.png", "conversations": talk(n)} for n in range(5)]
    test = [
        {"question_id": n, "image": f"{n}.png", "text": "How high?", "answer": str(n)}
        for n in range(5)
    ]
    (charts / "train.json").write_text(json.dumps(train))
    (charts / "test.json").write_text(json.dumps(test))
    with chdir(tmp_path):
        yield tmp_path
    forget()


def talk(n):
    question = {"from": "human", "value": "<image>\nHow high?"}
    return [question, {"from": "gpt", "value": str(n)}]


def test_the_docs_show_all_three_files():
    assert [Path(name).stem for name in FILES] == ["my-charts", "my-charts", "coin-and-charts"]


def test_a_ninth_task_takes_yaml_only(root):
    for command in (["download", "my-charts"], ["convert", "my-charts"]):
        args = cli.parser().parse_args(command)
        args.work(args)
    shards = Shards(root / "results" / "data" / "my-charts", "test")
    assert [example.references for example in shards] == [(str(n),) for n in range(5)]
    assert [example.image_size for example in shards] == [(40, 30 + n) for n in range(5)]
    tasks = load(Benchmark, "coin-and-charts").tasks
    assert tasks == (*load(Benchmark, "coin").tasks, "my-charts")
