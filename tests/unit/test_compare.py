"""Two reports side by side: one study run again, with a setting changed and worse answers."""

import json
import shutil

import pandas as pd
import pytest

from palimpsest.files import read_json
from palimpsest.report.compare import compare
from palimpsest.report.traces import FILE
from report_fixture import build_without_figures, write_study


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A report, and the same with another rate, another torch and a cell that is five worse."""
    root = tmp_path_factory.mktemp("compare")
    build_without_figures([write_study(root / "study")], root / "a")
    shutil.copytree(root / "a", root / "b")
    traced = read_json(root / "b" / FILE)
    for name, stage in traced["stages"].items():
        if "/lora/" in name:
            stage["identity"]["method"]["training"]["learning_rate"] = 1e-3
        stage["versions"]["torch"] = "2.12.0"
    traced["stages"].popitem()
    (root / "b" / FILE).write_text(json.dumps(traced))
    cells = pd.read_parquet(root / "b" / "matrix.parquet")
    cells.loc[3, "value"] -= 5
    cells.to_parquet(root / "b" / "matrix.parquet")
    return root / "a", root / "b"


def test_every_stage_is_traced_to_config_data_commit_and_versions(reports):
    stages = read_json(reports[0] / FILE)["stages"]
    assert stages
    for name, stage in stages.items():
        assert stage["record"].endswith(f"stages/{name}/stage/stage.json")
        assert stage.keys() == {"record", "fingerprint", "identity", "data", "commit", "versions"}


def test_every_number_is_traced_to_its_cell(reports):
    cells = pd.read_parquet(reports[0] / "matrix.parquet")
    for path, value in zip(cells["cell"], cells["value"], strict=True):
        assert read_json(reports[0].parent / path / "scores.json")["value"] == pytest.approx(value)


def test_a_report_is_the_same_as_itself(reports):
    text = compare(reports[0], reports[0])
    assert "Their config, data, commits and versions are the same" in text
    assert "only in" not in text
    assert "B − A" not in text


def test_what_was_changed_is_told(reports):
    lines = compare(*reports).splitlines()
    stages = len(read_json(reports[1] / FILE)["stages"])
    (rate,) = [line.split() for line in lines if line.startswith("method.training.learning_rate")]
    assert rate[1:3] == ["0.002", "0.001"]
    (torch,) = [line for line in lines if line.startswith("versions.torch")]
    assert torch.endswith(f"{stages} of {stages}")
    assert sum("only in A" in line for line in lines) == 1
    cells = len(pd.read_parquet(reports[0] / "matrix.parquet"))
    assert f"Cells: {cells} in both, {cells - 1} of them equal" in lines
    assert sum(line.endswith("−5.0") for line in lines) == 1


def test_an_older_report_is_told(reports, tmp_path):
    with pytest.raises(ValueError, match=f"{FILE}: file is missing"):
        compare(tmp_path, reports[0])
