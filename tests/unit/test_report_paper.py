"""What is for a paper: works that configs cite, paragraphs, tables that fit and compile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latex import complaints
from palimpsest.config import Benchmark, Judge, Method, Model, Task, load, read_references
from palimpsest.refusal import ConfigError
from palimpsest.report.paper.latex import SPECIAL, latex, tex
from palimpsest.setting import setting
from palimpsest.study import plan
from workspace import REPOSITORY, forget

STUDIES = sorted(path.stem for path in (REPOSITORY / "config").glob("*.yaml"))
PREAMBLE = r"""\documentclass[twocolumn]{article}
\usepackage[margin=0.75in]{geometry}
\usepackage{array,booktabs,graphicx}
\begin{document}
"""


@pytest.fixture
def repository(monkeypatch):
    """The shipped configuration."""
    monkeypatch.chdir(REPOSITORY)
    forget()
    yield REPOSITORY
    forget()


def test_every_work_is_cited_and_sorted_by_its_key(repository):
    works = read_references(Path("config"))
    assert list(works) == sorted(works)
    kinds = {Task: "tasks", Model: "models", Method: "methods", Judge: "judges"}
    kinds[Benchmark] = "benchmarks"
    loaded = [
        load(kind, path.stem)
        for kind, folder in kinds.items()
        for path in Path("config", folder).glob("*.yaml")
    ]
    assert {key for one in loaded for key in one.cites} == set(works)
    text = Path("config/references.bib").read_text()
    assert text.count("\n@") == len(works)  # none twice, none that is not read
    assert text.isascii()


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_hands_over_every_work_that_it_cites(repository, name):
    found = setting(plan(name))
    views = (*found.models, *found.methods, *found.judges, *found.used)
    cited = {*found.cites, *(key for view in views for key in view.cites)}
    assert cited <= set(found.works) <= set(read_references(Path("config")))
    assert all(one.licence for one in found.used)
    assert set(found.lengths) == set(plan(name).tasks)
    assert len(set(found.used)) == len(found.used)


def test_a_study_says_what_it_trains_and_on_what(repository):
    found = setting(plan("coin"))
    first = found.methods[0]
    assert (first.title, first.parts["adapter"]["rank"]) == ("LoRA", 128)
    assert first.batches["coin-imagenet"] == 128
    assert {"hu2022lora", "chen2024coin", "goyal2017vqav2", "liu2024llava15"} <= set(found.works)
    assert "vitter1985reservoir" not in found.works
    licences = {one.title: one.licence for one in found.used}
    assert licences["VQAv2"].startswith("CC-BY-4.0")
    assert licences["Qwen/Qwen1.5-32B-Chat"] == "see huggingface.co/Qwen/Qwen1.5-32B-Chat"
    assert "Llama 2 Community License" in " ".join(licences.values())


def test_a_work_that_is_not_there_is_refused_with_the_nearest(workplace):
    Path("config/references.bib").write_text("@misc{vqa2017,\n  title = {VQA},\n}\n")
    workplace.change("tasks/signs", cites=["vqa2018"])
    with pytest.raises(ConfigError) as error:
        plan("small")
    assert str(error.value) == (
        "config/tasks/signs.yaml: cites: there is no work in config/references.bib 'vqa2018', did "
        "you mean 'vqa2017'? Known: vqa2017"
    )


def test_text_cites_as_pandoc_does_and_as_latex_does():
    assert tex("LoRA [@a2022; @b_2] at 5 %") == r"LoRA~\cite{a2022,b_2} at 5 \%"
    assert tex("in `a_b|c`") == r"in \texttt{a\_b$|$c}"
    assert tex("[1] 漢 é") == "{[}1{]} ? é"


def test_all_characters_and_works_compile_and_no_table_is_too_wide(tmp_path):
    works = REPOSITORY / "config/references.bib"
    (tmp_path / "references.bib").write_text(works.read_text())
    keys = "; ".join(f"@{key}" for key in read_references(works.parent))
    characters = " ".join([*SPECIAL, *"éüçñåßæøŁěő’“”…·±", "漢"])
    code = "".join(filter(str.isascii, SPECIAL))
    numbers = ["98.3 [97.0, 99.1]"] * 9
    tables = [
        ("column", f"Code: `{code}`", ["", "score"], [["a", "1.0"]]),
        ("page", characters, ["", *["a long title"] * 4], [["a row", *numbers[:4]]]),
        ("wide", f"All works [{keys}]", ["", *["Method of a name"] * 9], [["a row", *numbers]]),
        ("many", "Sixteen", ["after", *["Answerable things"] * 16], [["x", *["9.1"] * 16]]),
        ("text", "Lines", ["", "licence"], [["x", "see some.where/" + "a-long-address/" * 9]]),
    ]
    written = dict(zip((name for name, *_ in tables), map(latex, tables), strict=True))
    bodies = [*written.values(), r"\bibliographystyle{plain}", r"\bibliography{references}"]
    document = tmp_path / "all.tex"
    document.write_text(PREAMBLE + "\n".join(bodies) + "\n\\end{document}\n")
    assert complaints(document) == []
    kinds = {name: re.match(r"\\begin\{(.*)\}", text)[1] for name, text in written.items()}
    assert kinds == {
        "column": "table", "page": "table*", "wide": "table*", "many": "table*", "text": "table",
    }  # fmt: skip
    assert [name for name, text in written.items() if r"\rotatebox" in text] == ["many"]
