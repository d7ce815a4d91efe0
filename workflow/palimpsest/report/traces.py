"""Where the numbers of a report come from: `stages.json` beside them says what made each stage.

{"study": …, "commit": of the report,
 "stages": {"<benchmark>/<model>/<method>/seed-<n>/<lineage>":
            {"record": path of its stage.json, "fingerprint": …, "identity": …, "data": …,
             "commit": …, "versions": …}}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palimpsest.files import read_json
from palimpsest.report.sections import costs
from palimpsest.report.spec import StudyView

FILE = "stages.json"
KEPT = ("fingerprint", "identity", "data", "commit", "versions")


def traces(view: StudyView) -> dict[str, Any]:
    """Return the content of `stages.json`: every trained stage of a study, once."""
    records = {path: None for e in view.experiments for path in costs.records(e)}
    stages = {_name(path, view.results_root): _trace(path) for path in records}
    return {"study": view.name, "commit": view.commit, "stages": stages}


def _name(record: Path, results_root: Path) -> str:
    """Return what a stage is called by every command: its path below results/stages/."""
    return record.relative_to(results_root / "stages").parent.parent.as_posix()


def _trace(record: Path) -> dict[str, Any]:
    content = read_json(record)
    return {"record": record.as_posix(), **{key: content.get(key) for key in KEPT}}
