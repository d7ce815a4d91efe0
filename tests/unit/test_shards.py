"""Shards give back what was written, and refuse what was not."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.data import shards
from palimpsest.data.example import Example, Rejected, Turn, characters
from palimpsest.data.shards import (
    Shards,
    read_examples,
    read_manifest,
    verify,
    write_dataset,
    write_examples,
)

texts = st.text(max_size=8)
pixels = st.floats(0, 4096, allow_nan=False)
examples = st.builds(
    Example,
    id=texts,
    image=st.none() | st.binary(max_size=64),
    turns=st.lists(st.builds(Turn, texts, texts), max_size=3).map(tuple),
    references=st.lists(texts, max_size=3).map(tuple),
    choices=st.lists(texts, max_size=3).map(tuple),
    box=st.none() | st.tuples(pixels, pixels, pixels, pixels),
    image_size=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
)
datasets = st.lists(examples, max_size=12, unique_by=lambda e: e.id)


def example(number, size=10):
    turns = (Turn(f"What is {number}?", str(number)),)
    return Example(f"{number:03}", bytes([number % 256]) * size, turns, (str(number),))


@pytest.fixture
def dataset(tmp_path):
    """Twenty examples, four of them for testing."""
    splits = {"train": map(example, range(16)), "test": map(example, range(16, 20))}
    write_dataset(tmp_path / "data", splits, {})
    return tmp_path / "data"


@pytest.fixture
def small_shards(monkeypatch):
    """Four examples a shard."""
    monkeypatch.setattr(shards, "BATCH_ROWS", 2)
    monkeypatch.setattr(shards, "SHARD_BYTES", 300)


@given(datasets, datasets)
def test_what_is_written_is_read_back(train, test):
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder)
        write_dataset(dataset, {"train": iter(train), "test": iter(test)}, {})
        verify(dataset)
        for split, written in (("train", train), ("test", test)):
            read = Shards(dataset, split)
            assert len(read) == len(written)
            assert list(read) == written
            assert [read[i] for i in range(len(read))] == written
            assert read.ids == [e.id for e in written]
            assert read.characters() == [characters(e) for e in written]


@given(datasets)
def test_a_single_file_is_read_back(written):
    with tempfile.TemporaryDirectory() as folder:
        write_examples(Path(folder, "buffer.arrow"), written)
        assert read_examples(Path(folder, "buffer.arrow")) == written


def test_several_shards_read_as_one(tmp_path, small_shards):
    written = [example(n, size=80) for n in range(13)]
    manifest = write_dataset(tmp_path, {"train": iter(written)}, {})
    entries = manifest["splits"]["train"]["shards"]
    assert [entry["examples"] for entry in entries] == [4, 4, 4, 1]
    assert [entry["file"] for entry in entries] == [f"train/0000{n}.arrow" for n in range(4)]
    read = Shards(tmp_path, "train")
    assert list(read) == written
    assert [read[i] for i in range(13)] == written
    assert [read[-1], read[-13]] == [written[12], written[0]]
    with pytest.raises(IndexError):
        read[13]


def test_a_sample_of_several_shards_is_read_alike_in_every_way(tmp_path, small_shards):
    turns = [tuple(Turn("¿Qué?" * k, "ä" * n) for k in range(n % 3)) for n in range(30)]
    written = [replace(example(n), turns=turns[n]) for n in range(30)]
    write_dataset(tmp_path, {"train": iter(written)}, {})
    for read in (whole := Shards(tmp_path, "train")), whole.sample(11):
        chosen = [e for e in written if e.id in set(read.ids)]
        assert list(read) == chosen
        assert read.ids == [e.id for e in chosen]
        assert read.characters() == [characters(e) for e in chosen]
        assert list(read.without_pictures()) == [replace(e, image=None) for e in chosen]
    assert len(chosen) == 11


def test_pictures_can_be_left_unread(dataset):
    for one, whole in zip(Shards(dataset, "train").without_pictures(), range(16), strict=True):
        assert one.image is None
        assert (one.id, one.turns) == (example(whole).id, example(whole).turns)


def test_the_manifest_says_what_was_rejected(tmp_path):
    rejected = [Rejected("train.json", 7, "no answer"), Rejected("train.json", 9, "no picture")]
    records = [example(0), rejected[0], example(1), rejected[1]]
    manifest = write_dataset(tmp_path, {"train": records}, {"licence": "CC0-1.0"})
    assert manifest == read_manifest(tmp_path)
    assert manifest["licence"] == "CC0-1.0"
    assert manifest["splits"]["train"]["examples"] == 2
    assert manifest["splits"]["train"]["rejected"] == [
        {"file": "train.json", "line": 7, "reason": "no answer"},
        {"file": "train.json", "line": 9, "reason": "no picture"},
    ]
    assert Shards(tmp_path, "train").ids == ["000", "001"]


def test_a_duplicate_id_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train: example id '001' occurs twice"):
        write_dataset(tmp_path, {"train": map(example, [0, 1, 2, 1])}, {})
    with pytest.raises(ValueError, match=r"manifest\.json: file is missing"):
        Shards(tmp_path, "train")


def test_a_conversion_that_fails_leaves_no_dataset(dataset):
    def failing():
        yield example(0)
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        write_dataset(dataset, {"train": failing()}, {})
    with pytest.raises(ValueError, match=r"manifest\.json: file is missing"):
        Shards(dataset, "test")


def test_a_second_conversion_replaces_the_first(dataset, small_shards):
    write_dataset(dataset, {"train": map(example, range(30))}, {})
    write_dataset(dataset, {"train": map(example, range(3))}, {})
    assert len(Shards(dataset, "train")) == 3
    assert [p.name for p in (dataset / "train").iterdir()] == ["00000.arrow"]


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_overwrite(path):
    path.write_bytes(b"x" * path.stat().st_size)


def damage_delete(path):
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, r"has \d+ bytes, the manifest says \d+; the file is truncated"),
        (damage_overwrite, "not a readable Arrow file"),
        (damage_delete, "shard is missing; remove .*data to convert it anew"),
    ],
)
def test_a_damaged_shard_is_refused_by_name(dataset, damage, message):
    damage(dataset / "train" / "00000.arrow")
    with pytest.raises(ValueError, match=r"data/train/00000\.arrow: " + message):
        Shards(dataset, "train")
    Shards(dataset, "test")


def test_a_changed_byte_is_found(dataset):
    path = dataset / "train" / "00000.arrow"
    path.write_bytes(path.read_bytes().replace(b"What is 3?", b"What is 8?"))
    with pytest.raises(ValueError, match=r"train/00000\.arrow: checksum differs"):
        verify(dataset)


def test_every_shard_is_compared(tmp_path, small_shards):
    write_dataset(tmp_path, {"train": map(example, range(12))}, {})
    verify(tmp_path)
    path = tmp_path / "train" / "00001.arrow"
    path.write_bytes(path.read_bytes().replace(b"What is 5?", b"What is 8?"))
    with pytest.raises(ValueError, match=r"train/00001\.arrow: checksum differs"):
        verify(tmp_path, "train")


def change_manifest(dataset, change):
    manifest = read_manifest(dataset)
    change(manifest)
    (dataset / "manifest.json").write_text(json.dumps(manifest))


def test_another_number_of_examples_is_refused(dataset):
    def change(manifest):
        manifest["splits"]["train"]["shards"][0]["examples"] = 15

    change_manifest(dataset, change)
    with pytest.raises(ValueError, match="holds 16 examples, the manifest says 15"):
        Shards(dataset, "train")


@pytest.mark.parametrize("version", [0, None])
def test_another_schema_version_is_refused(dataset, version):
    change_manifest(dataset, lambda manifest: manifest.update(schema_version=version))
    with pytest.raises(ValueError, match=rf"manifest\.json: schema_version is {version}, this"):
        Shards(dataset, "train")


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "a.arrow"
    table = pa.table({"id": ["a"]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"a\.arrow: columns differ from schema version"):
        read_examples(path)


def test_an_unknown_split_is_refused(dataset):
    with pytest.raises(ValueError, match="no split 'dev'; there is: train, test"):
        Shards(dataset, "dev")


def test_the_prompt_is_set_around_the_question():
    asked = Example("a", None, (Turn("Why {x}?", "{question}"),), ("b",))
    assert asked.with_prompt("{question} {braces} stay.").turns == (
        Turn("Why {x}? {braces} stay.", "{question}"),
    )
