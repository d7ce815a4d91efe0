"""A model that starts from a stage: what that learnt is folded in, and it is trained first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from palimpsest import models
from palimpsest.config import Model, load
from palimpsest.evaluation.export import export
from palimpsest.evaluation.generate import answer, load_stage
from palimpsest.files import read_json, write_json
from palimpsest.models import checkpoint
from palimpsest.plan import describe
from palimpsest.refusal import ConfigError
from palimpsest.study import Manner, identity, method_of, plan, stage_fingerprint
from palimpsest.tasks import Examples
from workspace import LORA, change, entered, stage_of, write

RESULTS = Path("results")
START = stage_of("choice/reading")
OWN = {"extends": "tiny", "exported": str(START), "weights": "results/models/own"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace with a stage that has learnt something, and a model `own` that starts there."""
    with entered(tmp_path_factory.mktemp("export"), train=8, test=12) as path:
        _finish(START)
        projector = {"adapter": {"name": "projector"}, "router": {
            "name": "keys", "steps": 1, "learning_rate": 0.1, "strength": 1, "batch": 2,
            "examples": 2,
        }}  # fmt: skip
        write(path, "methods/eproj", LORA | projector)
        write(path, "models/own", OWN)
        change(path, "tiny", models=["own"], references={})
        yield path


@pytest.fixture(autouse=True)
def fresh(root):
    yield
    write(root, "models/own", OWN)


def _finish(stage):
    """Write the directory of a stage whose adapter holds random numbers."""
    config, method = load(Model, stage.model), method_of(stage)
    lmm = models.load(config)
    adapter = checkpoint.attach(lmm, config, method)
    drawn = torch.Generator().manual_seed(5)
    learnt = {n: p.data for n, p in lmm.module.named_parameters() if adapter.owns(n)}
    for tensor in learnt.values():
        tensor.normal_(0, 0.3, generator=drawn)
    checkpoint.save(learnt, stage.directory(RESULTS), lmm, config, adapter)
    known_by = {"fingerprint": stage_fingerprint(stage), "identity": identity(stage)}
    record = known_by | {"samples": 8, "wall_seconds": 1.0}
    write_json(stage.directory(RESULTS) / "stage.json", record)


def _answers(stage):
    asked = Examples(RESULTS, stage.benchmark, ["counting"], "test")
    rows, _ = answer(load_stage(stage, RESULTS), asked, Manner("counting", {}, 6), batch=12)
    return [row["prediction"] for row in rows]


def test_a_model_made_of_a_stage_answers_as_the_stage_does(root):
    export(START, RESULTS, Path("results/models/own"))
    own = _answers(stage_of("base", model="own"))
    assert own == _answers(START)
    assert own != _answers(stage_of("base"))
    assert sorted(p.name for p in (RESULTS / "models").iterdir()) == ["own"]  # nothing half-written


def test_what_cannot_be_folded_in_is_refused(root):
    for method in ("eproj", "moelora"):
        with pytest.raises(ValueError, match="depends on the question, and cannot be folded"):
            export(stage_of("choice", method), RESULTS, Path("results/models/other"))
    with pytest.raises(ValueError, match="has learnt nothing"):
        export(stage_of("base"), RESULTS, Path("results/models/other"))
    assert not Path("results/models/other").exists()


def test_the_stages_it_starts_from_are_planned_first(root):
    found = plan("tiny")
    first = [stage_of("choice"), START]
    assert list(found.stages[:2]) == first
    assert [s for s in found.trained if s.model == "tiny"] == first
    assert found.models == ("tiny", "own")
    told = describe(found)
    assert "5 to train: 1 done, 4 to do\n" in told
    assert "tiny" in told.split("training left")[1]


def test_their_data_is_needed_though_nobody_asks_for_it(root):
    write(root, "benchmarks/rest", {"title": "Rest", "orders": {"first": ["counting"]}})
    change(root, "tiny", benchmark="rest")
    assert plan("tiny").tasks == ("counting",)
    assert plan("tiny").data == ("counting", "choice", "reading")
    change(root, "tiny", benchmark="three")


def test_a_stage_is_another_one_if_it_starts_from_another(root):
    stage = stage_of("counting", model="own")
    before = stage_fingerprint(stage)
    assert identity(stage)["model"]["exported"] == stage_fingerprint(START)
    change(root, "methods/lora", training__warmup=0.2)
    assert identity(stage)["model"]["exported"] != read_json(_record(START))["fingerprint"]
    change(root, "methods/lora", training__warmup=0.1)
    assert stage_fingerprint(stage) == before


def _record(stage):
    return stage.directory(RESULTS) / "stage.json"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": "weights/tiny"}, "weights: found 'weights/tiny': should be 'results/models/o"),
        ({"exported": "three/tiny/lora"}, "exported: stage 'three/tiny/lora': expected"),
        ({"exported": "three/tiny/base"}, "exported: found 'three/tiny/base': should be a trained"),
        ({"exported": "three/own/lora/seed-0/choice"}, "should be a trained stage of another m"),
        ({"exported": "four/tiny/lora/seed-0/choice"}, "exported: there is no benchmark 'four'"),
        ({"exported": "three/tiny/lora/seed-0/chess"}, "exported: there is no task 'chess'"),
        ({"exported": "three/tiny/eproj/seed-0/choice"}, "adapter 'projector' of config/methods"),
    ],
)
def test_what_no_model_can_be_made_of_is_refused_before_any_job(root, values, message):
    change(root, "models/own", **values)
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        plan("tiny")


def test_what_may_be_folded_is_what_the_adapters_say():
    from palimpsest.methods import lora, moelora, projector, refusers, subset
    from palimpsest.study.checks import FOLDED

    kinds = (lora.Lora, moelora.MoELora, projector.Projector, refusers.Refusers, subset.Subset)
    assert {kind.__name__.lower() for kind in kinds if kind.mergeable} == {*FOLDED}
