"""Which examples a benchmark shows: all of a split, a fraction of the training, or a sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest.data.example import characters
from palimpsest.tasks import Examples, open_task
from workspace import entered, forget, write

RESULTS = Path("results")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three tasks of 96 training and 20 test examples; `some` shows a quarter of the training."""
    with entered(tmp_path_factory.mktemp("tasks"), train=96, test=20) as path:
        write(path, "benchmarks/some", {"extends": "three", "title": "Some", "fraction": 0.25})
        write(path, "benchmarks/more", {"extends": "three", "title": "More", "fraction": 0.5})
        forget()
        yield path


def ids(*arguments):
    return [example.id for example in Examples(RESULTS, *arguments)]


def test_a_fraction_of_the_training_examples(root):
    whole = ids("three", ["choice", "reading"], "train")
    more, some = (ids(name, ["choice", "reading"], "train") for name in ("more", "some"))
    assert (len(whole), len(more), len(some)) == (192, 96, 48)
    assert set(some) < set(more) < set(whole)
    assert some == [id for id in whole if id in set(some)]  # in the order of the split
    assert some != whole[:48]
    assert ids("some", ["choice"], "test") == ids("three", ["choice"], "test")


def test_a_sample_of_a_split(root):
    sampled = open_task(RESULTS, "reading", "test", sample=7)
    assert len(sampled) == len(sampled.ids) == 7
    assert [example.id for example in sampled] == sampled.ids
    assert [example.id for example in sampled.without_pictures()] == sampled.ids
    assert ids("three", ["reading"], "test", 7) == sampled.ids
    whole = {example.id: example for example in open_task(RESULTS, "reading", "test")}
    assert [whole[id] for id in sampled.ids] == list(sampled)
    assert len(open_task(RESULTS, "reading", "test", sample=21)) == 20  # there are no more


def test_the_length_of_every_conversation(root):
    for benchmark in ("three", "some"):
        examples = Examples(RESULTS, benchmark, ["choice", "reading"], "train")
        assert examples.characters() == [characters(example) for example in examples]
