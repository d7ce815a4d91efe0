"""What a stage learns from: its share of new and of rehearsed examples, and its buffer."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from palimpsest.config import Method
from palimpsest.data.example import Example, Turn
from palimpsest.methods.settings import Proportional
from palimpsest.training.examples import EMPTY, Buffer, Curriculum, first_buffer

BATCH = 8


class Joint(list):
    """Examples of some tasks, one after another, as `tasks.Examples` of them are."""

    def __init__(self, *parts):
        super().__init__(example for part in parts for example in part)
        self.parts = parts


def examples(name, number):
    return Joint(
        [Example(f"{name}-{n}", None, (Turn("?" * n, "a"),), ("a",)) for n in range(number)]
    )


def method(epochs=1.0, **rehearsal):
    return Method.model_validate(
        {
            "title": "A method",
            "source": "a test",
            "adapter": {"name": "lora", "rank": 1, "alpha": 1},
            "rehearsal": {"name": "reservoir", "capacity": 10, "share": 0.25, **rehearsal},
            "training": {
                "batch": BATCH, "epochs": epochs, "learning_rate": 1, "schedule": "constant",
            },
        }
    )  # fmt: skip


def proportional(ratio, epochs=1.0):
    rehearsal = Proportional(name="proportional", ratio=ratio)
    return method(epochs).model_copy(update={"rehearsal": rehearsal})


def by_task(examples):
    return Counter(e.id.split("-")[0] for e in examples)


PLAIN = method().model_copy(update={"rehearsal": None})
OLD = Buffer(examples("old", 10), 40)


def samples(curriculum):
    return [curriculum[position].id for position in range(len(curriculum))]


def test_a_stage_of_so_many_steps_is_as_long_whatever_its_examples():
    settings = PLAIN.model_copy(
        update={"training": PLAIN.training.model_copy(update={"epochs": None, "steps": 3})}
    )
    for num_examples in (5, 43):
        curriculum = Curriculum(examples("new", num_examples), EMPTY, settings, 0, "a")
        assert (curriculum.num_steps, len(curriculum)) == (3, 3 * BATCH)


@pytest.mark.parametrize("epochs", [0.5, 1, 2, 1.7])
def test_steps_and_samples(epochs):
    plain = method(epochs).model_copy(update={"rehearsal": None})
    curriculum = Curriculum(examples("new", 43), EMPTY, plain, 0, "a")
    assert curriculum.num_steps == round(epochs * 43 / BATCH)
    assert len(curriculum) == curriculum.num_steps * BATCH
    times = Counter(samples(curriculum))
    assert max(times.values()) - min(times.values()) <= 1 or len(times) < 43


def test_fewer_examples_than_a_batch_are_one_step():
    assert len(Curriculum(examples("new", 2), EMPTY, PLAIN, 0, "a")) == BATCH


def test_a_first_stage_rehearses_nothing():
    with_replay = Curriculum(examples("new", 64), EMPTY, method(), 0, "a")
    assert samples(with_replay) == samples(Curriculum(examples("new", 64), EMPTY, PLAIN, 0, "a"))


def test_rehearsed_examples_take_the_place_of_new_ones():
    curriculum = Curriculum(examples("new", 64), OLD, method(), 0, "a/b")
    found = samples(curriculum)
    assert len(found) == 64
    kinds = Counter(id.split("-")[0] for id in found)
    assert kinds == {"old": 16, "new": 48}
    assert len({id for id in found if id.startswith("new")}) == 48
    assert max(Counter(id for id in found if id.startswith("old")).values()) == 2  # 16 of 10
    without = samples(Curriculum(examples("new", 64), OLD, PLAIN, 0, "a/b"))
    assert {id.split("-")[0] for id in without} == {"new"}


def test_lengths_are_those_of_the_samples():
    new = examples("new", 64)
    curriculum = Curriculum(new, OLD, method(), 0, "a/b")
    of_new = [len(e.turns[0].question) + 1 for e in new]
    lengths = curriculum.characters(of_new)
    assert lengths == [len(curriculum[p].turns[0].question) + 1 for p in range(len(curriculum))]


def test_seed_and_lineage_decide():
    def drawn(seed, lineage):
        return samples(Curriculum(examples("new", 64), OLD, method(), seed, lineage))

    assert drawn(0, "a/b") == drawn(0, "a/b")
    assert drawn(0, "a/b") != drawn(1, "a/b")
    assert drawn(0, "a/b") != drawn(0, "b/a")


def test_a_method_without_rehearsal_keeps_nothing():
    assert Curriculum(examples("new", 64), OLD, PLAIN, 0, "a").next_buffer() == EMPTY


def test_the_buffer_holds_what_was_seen_and_no_more():
    # The stage has a quarter of rehearsed samples, so that it sees 24 of its 64 new examples.
    full = Buffer(examples("old", 30), 40)
    curriculum = Curriculum(examples("new", 64), full, method(0.5, capacity=30), 0, "a")
    buffer = curriculum.next_buffer()
    assert buffer.seen == 40 + 24
    assert len(buffer.examples) == 30
    ids = {e.id for e in buffer.examples}
    assert len(ids) == 30
    assert ids <= set(samples(curriculum)) | {e.id for e in full.examples}


def test_an_example_that_is_seen_in_two_epochs_counts_once():
    assert Curriculum(examples("new", 64), EMPTY, method(2), 0, "a").next_buffer().seen == 64


def test_the_buffer_is_a_uniform_sample_over_three_stages():
    """Of 16 + 32 + 16 examples each is kept as often, in 400 seeds: 10 of 64, so 62.5 times."""
    kept: Counter[str] = Counter()
    for seed in range(400):
        buffer = EMPTY
        for stage, number in enumerate([16, 32, 16]):
            # An epoch more than the share of new samples: every new example is seen.
            settings = method(2)
            new = examples(f"stage{stage}", number)
            buffer = Curriculum(new, buffer, settings, seed, f"s{stage}").next_buffer()
        assert buffer.seen == 64
        assert len({e.id for e in buffer.examples}) == 10
        kept.update(e.id for e in buffer.examples)
    times = np.array([kept[f"stage{s}-{n}"] for s, k in enumerate([16, 32, 16]) for n in range(k)])
    assert times.sum() == 4000
    expected = 4000 / 64
    chi_square = ((times - expected) ** 2 / expected).sum()
    assert chi_square < 104  # 63 degrees of freedom: one time in a thousand
    by_stage = [times[:16].sum(), times[16:48].sum(), times[48:].sum()]
    assert np.allclose(by_stage, [1000, 2000, 1000], rtol=0.1)


def test_the_base_gives_a_reservoir_the_initial_tasks_in_order():
    initial = Joint(examples("first", 6), examples("second", 30))
    few = first_buffer(initial, method(capacity=50), 0, "b")
    assert (few.examples, few.seen) == (initial, 36)
    full = first_buffer(initial, method(), 0, "b")
    assert (len({e.id for e in full.examples}), full.seen) == (10, 36)
    assert full == first_buffer(initial, method(), 0, "b")
    assert full != first_buffer(initial, method(), 1, "b")
    after = Curriculum(examples("new", 64), full, method(2), 0, "a").next_buffer()
    assert (len(after.examples), after.seen) == (10, 100)


def test_the_base_of_a_benchmark_without_initial_tasks_has_an_empty_buffer():
    for settings in (PLAIN, method(), proportional(0.5)):
        assert first_buffer(Joint(), settings, 0, "b") == EMPTY
    assert first_buffer(examples("first", 9), PLAIN, 0, "b") == EMPTY


def test_proportional_replay_holds_as_large_a_part_of_every_task():
    settings = proportional(0.1, epochs=2)
    initial = Joint(examples("first", 50), examples("second", 4))
    steps = [examples("a", 30), Joint(examples("b", 64), examples("c", 20)), examples("d", 16)]
    buffer = first_buffer(initial, settings, 0, "benchmark")
    held = {"first": 5, "second": 1}  # at least one of a task
    assert (by_task(buffer.examples), buffer.seen) == (held, 54)
    added = [{"a": 3}, {"b": 6, "c": 2}, {"d": 2}]
    for new, of_new in zip(steps, added, strict=True):
        before = buffer
        buffer = Curriculum(new, before, settings, 0, new[0].id).next_buffer()
        held |= of_new
        assert by_task(buffer.examples) == held
        assert buffer.seen == before.seen + len(new)
        assert buffer.examples[: len(before.examples)] == before.examples
        assert set(buffer.examples) <= {*before.examples, *new}
        assert len(set(buffer.examples)) == len(buffer.examples)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_proportional_replay_adds_the_old_examples_to_the_new_ones(epochs):
    new = examples("new", 46)  # with the buffer's 10, seven batches
    curriculum = Curriculum(new, OLD, proportional(0.1, epochs), 0, "a/b")
    assert curriculum.num_steps == 7 * epochs
    assert Counter(samples(curriculum)) == {e.id: epochs for e in [*new, *OLD.examples]}
    mixed = [id.split("-")[0] for id in samples(curriculum)]
    assert mixed != sorted(mixed)
    lengths = curriculum.characters([len(e.turns[0].question) + 1 for e in new])
    assert lengths == [len(e.turns[0].question) + 1 for e in curriculum]


def test_a_first_stage_with_proportional_replay_is_one_without_rehearsal():
    new = examples("new", 64)
    with_replay = Curriculum(new, EMPTY, proportional(0.1), 0, "a")
    assert samples(with_replay) == samples(Curriculum(new, EMPTY, PLAIN, 0, "a"))


def test_seed_and_lineage_decide_what_proportional_replay_keeps():
    def kept(seed, lineage):
        new = examples("new", 64)
        buffer = Curriculum(new, OLD, proportional(0.1), seed, lineage).next_buffer()
        return [e.id for e in buffer.examples]

    assert kept(0, "a/b") == kept(0, "a/b")
    assert kept(0, "a/b") != kept(1, "a/b")
    assert kept(0, "a/b") != kept(0, "b/a")
