"""`palimpsest check` says what is there, what is not, and how to come by it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from palimpsest.check import check
from palimpsest.config import CONFIG, Benchmark, Download, Task, load
from palimpsest.data.convert import convert
from palimpsest.data.downloads.download import download


def lines_of(text, start):
    return [line for line in text.splitlines() if line.strip().startswith(start)]


@pytest.mark.parametrize("benchmark", ["coin-diverse", "coin-10type"])
def test_an_empty_machine_is_told_what_to_fetch(tmp_path, benchmark):
    text = check(benchmark, tmp_path)
    tasks = load(Benchmark, benchmark).tasks
    wanted = {name for task in tasks for name in load(Task, task).downloads}
    for name in wanted:
        config = load(Download, name)
        assert f"palimpsest download {name}" in text
        assert config.licence in text
        assert config.size in text
    assert "To fetch (13):" in text
    assert len(lines_of(text, "By hand: ")) == 2
    assert "image-net.org" in text
    assert "val.json (expected: about 107,000 records)" in text
    assert "test.json (expected: 30,969 records)" in text
    assert not lines_of(text, "there")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    config = load(Download, "coin-miniature")
    download("coin-miniature", config, out / "downloads" / "coin-miniature")
    return out


@pytest.fixture
def results(downloaded, tmp_path):
    """A results directory with the miniature, downloaded."""
    shutil.copytree(downloaded, tmp_path, dirs_exist_ok=True)
    return tmp_path


def section(text, task):
    return text.split(f"\nmini-{task}\n")[1].split("\n\n")[0]


def test_what_is_there_is_counted(results):
    text = check("coin-miniature", results)
    found = section(text, "scienceqa")
    assert "Original/ScienceQA/train.json: 25 (expected: 25 records)" in found
    assert "there    train pictures  12 of 12 that were looked for" in found
    assert "there    splits" in found
    assert "not yet  converted       palimpsest convert mini-scienceqa" in found
    assert "broken   train pictures  24 of 25 that were looked for; there is no picture" in text
    assert "palimpsest download coin-miniature" not in text
    assert "palimpsest download miniature-qwen-vl" in text  # of the study's models
    for model in ("llava", "qwen-vl", "minigpt-v2"):
        name = f"miniature-{model}"
        download(name, load(Download, name), results / "downloads" / name)
    text = check("coin-miniature", results)
    assert "Every download is there. Next:\n  snakemake --profile profiles/local" in text


def test_what_is_converted_is_said(results):
    task = load(Task, name := "mini-gqa")
    told = {task.fingerprint: "train 24 (+ 1 rejected), test 24 (+ 0 rejected)"}
    for fingerprint in (task.fingerprint, "of another config"):
        convert(
            name, reader=task.reader, source=task.source, prompt=task.prompt,
            about={"task_fingerprint": fingerprint}, most_rejected=0.1,
            out=results / "data" / name, root=results / "downloads",
        )  # fmt: skip
        found = section(check("coin-miniature", results), "gqa")
        said = told.get(fingerprint, "from another config or wording: it is made anew")
        assert f"converted       {said}" in found


def damage(results, path, content=None):
    path = results / "downloads" / "coin-miniature" / path
    if content is None:
        path.unlink()
    else:
        path.write_text(content)


ORIGINAL = "Instructions_Original"


@pytest.mark.parametrize(
    ("path", "content", "task", "expected"),
    [
        (f"{ORIGINAL}/GQA/train.json", None, "gqa", "missing  train  "),
        (f"{ORIGINAL}/GQA/test.json", "[1, {", "gqa", "damaged or truncated at element 2"),
        (f"{ORIGINAL}/GQA/test.json", "[]", "gqa", "differs  test  .* 0 .expected: 24 records"),
        ("cl_dataset/ScienceQA/problems.json", None, "scienceqa", "missing  problems"),
        ("cl_dataset/ScienceQA/pid_splits.json", "{}", "scienceqa", "broken   splits .*KeyError"),
        ("download.json", None, "gqa", "there    train"),
    ],
)
def test_what_is_missing_or_broken_is_named(results, path, content, task, expected):
    damage(results, path, content)
    text = check("coin-miniature", results)
    assert re.search(expected, section(text, task))
    assert ("palimpsest download coin-miniature" in text) == (path == "download.json")


def test_folders_of_pictures_are_looked_for(results):
    folder = results / "downloads" / "coin-miniature" / "cl_dataset"
    folder.rename(folder.with_name("elsewhere"))
    found = section(check("coin-miniature", results), "vizwiz")
    assert f"missing  pictures        {folder}" in found
    assert "missing  train pictures  0 of 24 that were looked for" in found


def test_a_count_that_is_not_certain_may_differ(results):
    from palimpsest.data.survey import look

    path = results / "a.json"
    path.write_text(json.dumps([{}] * 95))
    for expected, state in (("about 100", "there"), ("about 110", "differs"), (100, "differs")):
        finding, _ = look("train", path, expected, lambda record: None, None)
        assert finding.state == state


def test_a_study_has_models_to_fetch(workplace):
    workplace.write(
        "downloads/vicuna",
        {"title": "Vicuna", "kind": "hub", "repo": "a/b", "revision": "main", "licence": "Llama 2",
         "size": "13 GB"},
    )  # fmt: skip
    workplace.change("models/tiny", parts={"language": "vicuna"})
    text = check("small", workplace.root / "results")
    assert "there    data" in text
    assert "palimpsest download vicuna" in text
    assert "Llama 2" in text
    (CONFIG / "small.yaml").unlink()
    assert "vicuna" not in check("three", workplace.root / "results")


def test_a_study_has_concepts_to_fetch(tmp_path):
    """Only where a method's concepts are not of a file here."""
    wanted = {"core-concepts-image", "core-concepts-text"}
    found = {name: check(name, tmp_path) for name in ("unlearning", "unlearning-miniature")}
    named = {re.search(r"download (\S+)", line)[1] for line in lines_of(found["unlearning"], "pal")}
    assert wanted < named
    assert "core-concepts" not in found["unlearning-miniature"]
