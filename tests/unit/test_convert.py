"""Conversion looks at every record: what is good is written, what is not is listed."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import threading
from dataclasses import replace
from importlib import import_module
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from PIL import Image

from palimpsest.config import modules
from palimpsest.data import convert as converting
from palimpsest.data import shards
from palimpsest.data.convert import convert, fault
from palimpsest.data.example import Example, Rejected, Turn
from palimpsest.data.shards import Shards, read_manifest, verify


def png(colour="red", size=(4, 3)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def good(number):
    turns = (Turn(f"Which {number}?", "A"),)
    return Example(f"{number:03}", png(), turns, ("A", "a"), box=(0, 0, 1, 2), image_size=(4, 3))


@pytest.fixture
def publisher(monkeypatch):
    """A reader `publisher` whose splits a test fills."""
    splits = {"train": [good(n) for n in range(5)], "test": [good(n) for n in range(30)]}
    module = ModuleType("palimpsest.data.readers.publisher")
    module.splits = lambda source, root: tuple(splits)
    module.files = lambda source: {}
    module.read = lambda source, split, root: iter(splits[split])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return splits


def run(tmp_path, most_rejected=0.75, threads=1):
    return convert(
        "signs",
        reader="publisher",
        source={"file": "signs.json"},
        prompt="{question}\nOne letter.",
        about={"task_fingerprint": "f" * 16, "licence": "CC0-1.0"},
        most_rejected=most_rejected,
        out=tmp_path / "data" / "signs",
        root=tmp_path,
        threads=threads,
    )


def test_a_dataset_is_converted(tmp_path, publisher, capsys):
    manifest = run(tmp_path)
    dataset = tmp_path / "data" / "signs"
    assert manifest == read_manifest(dataset)
    verify(dataset)
    assert {key: manifest[key] for key in ("task", "task_fingerprint", "licence", "source")} == {
        "task": "signs",
        "task_fingerprint": "f" * 16,
        "licence": "CC0-1.0",
        "source": {"file": "signs.json"},
    }
    expected = [replace(e, turns=(Turn(f"Which {int(e.id)}?\nOne letter.", "A"),))
                for e in publisher["train"]]  # fmt: skip
    assert list(Shards(dataset, "train")) == expected
    rate = r", \d+ records/s, 0 s\n"
    assert re.fullmatch(
        f"signs train: 5 examples, 0 rejected{rate}signs test: 30 examples, 0 rejected{rate}",
        capsys.readouterr().out,
    )


def test_a_log_has_a_line_a_minute(tmp_path, publisher, capsys, monkeypatch):
    monkeypatch.setattr(converting, "LINE_EVERY", 0.0)
    publisher["train"].insert(2, Rejected("signs.json", 3, "no answer"))
    run(tmp_path)
    told = [line for line in capsys.readouterr().out.splitlines() if "train" in line]
    assert [line.split(", ")[:2] for line in told[:4]] == [
        ["signs train: 1 examples", "0 rejected"],
        ["signs train: 2 examples", "0 rejected"],
        ["signs train: 2 examples", "1 rejected"],
        ["signs train: 3 examples", "1 rejected"],
    ]


def test_what_is_written_does_not_depend_on_the_threads(tmp_path, publisher, monkeypatch):
    publisher["train"] = [good(n) for n in range(50)]
    publisher["train"][3] = replace(good(3), image=png()[:40])
    publisher["train"][33] = Rejected("signs.json", 33, "no answer")
    publisher["train"][44] = good(1)
    manifest = run(tmp_path / "one")

    overtaken = threading.Event()

    def fault_of(example):
        if example.id == "040":
            overtaken.set()
        if example.id == "000":
            assert overtaken.wait(timeout=60)  # the first are ready last
        return fault(example)

    monkeypatch.setattr(converting, "fault", fault_of)
    assert run(tmp_path / "three", threads=3) == manifest
    for path in (first := tmp_path / "one" / "data").rglob("*.arrow"):
        same = tmp_path / "three" / "data" / path.relative_to(first)
        assert same.read_bytes() == path.read_bytes()
    assert [r["line"] for r in manifest["splits"]["train"]["rejected"]] == [4, 33, 45]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_read_ahead_is_bounded(tmp_path, publisher, monkeypatch, threads):
    read, ahead, to_row = [], [], shards.to_row

    def reading(examples):
        for example in examples:
            read.append(example)
            yield example

    def written(example):
        ahead.append(len(read) - len(ahead))
        return to_row(example)

    publisher["train"] = reading(replace(good(n), image=None) for n in range(600))
    monkeypatch.setattr(shards, "to_row", written)
    run(tmp_path, threads=threads)
    assert max(ahead) == (converting.AHEAD * threads + 1) * converting.TOGETHER


def test_a_reader_that_fails_leaves_no_dataset(tmp_path, publisher):
    def failing():
        yield from map(good, range(40))
        raise ValueError("signs.json: damaged at element 41")

    publisher["train"] = failing()
    with pytest.raises(ValueError, match="damaged at element 41"):
        run(tmp_path, threads=2)
    assert not (tmp_path / "data" / "signs" / "manifest.json").exists()


def test_the_gallery_shows_twelve_test_examples(tmp_path, publisher):
    run(tmp_path)
    gallery = tmp_path / "data" / "signs" / "gallery.parquet"
    rows = pq.read_table(gallery).to_pylist()
    first = gallery.read_bytes()
    test = {e.id: e for e in Shards(gallery.parent, "test")}
    assert len({row["id"] for row in rows}) == 12
    assert max(int(row["id"]) for row in rows) > 12  # not only the first ones
    for row in rows:
        shown = test[row.pop("id")]
        assert row == {
            "image": shown.image,
            "question": shown.turns[-1].question,
            "references": list(shown.references),
        }
    run(tmp_path)
    assert gallery.read_bytes() == first


def test_the_gallery_is_written_before_the_manifest(tmp_path, publisher, monkeypatch):
    seen = []

    def write_json(path, value):
        seen.extend(p.name for p in path.parent.iterdir())

    monkeypatch.setattr("palimpsest.data.shards.write_json", write_json)
    run(tmp_path)
    assert sorted(seen) == ["gallery.parquet", "test", "train"]


def test_a_small_test_split_is_shown_whole(tmp_path, publisher):
    publisher["test"] = [replace(good(1), image=None, image_size=None)]
    run(tmp_path)
    rows = pq.read_table(tmp_path / "data" / "signs" / "gallery.parquet").to_pylist()
    assert [(row["id"], row["image"]) for row in rows] == [("001", None)]


def test_what_is_left_out_is_listed_and_counted(tmp_path, publisher, capsys):
    broken = replace(good(7), image=png()[:40])
    publisher["train"] = [good(0), Rejected("signs.json", 812, "no answer"), broken, good(1)]
    rejected = run(tmp_path)["splits"]["train"]["rejected"]
    assert rejected[0] == {"file": "signs.json", "line": 812, "reason": "no answer"}
    assert (rejected[1]["file"], rejected[1]["line"]) == ("publisher train", 3)
    assert rejected[1]["reason"].startswith("example '007': the picture does not decode (")
    assert Shards(tmp_path / "data" / "signs", "train").ids == ["000", "001"]
    assert "signs train: 2 examples, 2 rejected" in capsys.readouterr().out


PNG = png(size=(64, 64))
FAULTS = {
    "no turns": ({"turns": ()}, "there is no question"),
    "empty question": ({"turns": (Turn(" ", "A"),)}, "a question is empty"),
    "empty answer": ({"turns": (Turn("Q", "A"), Turn("Q", "\n"))}, "an answer is empty"),
    "no reference": ({"references": ()}, "there is no reference, or an empty one"),
    "empty reference": ({"references": ("A", "")}, "there is no reference, or an empty one"),
    "degenerate box": ({"box": (3, 0, 3, 2)}, r"the box \(3, 0, 3, 2\) has no area"),
    "swapped box": ({"box": (3, 2, 0, 0)}, r"the box \(3, 2, 0, 0\) has no area"),
    "no picture": ({"image": b""}, r"the picture does not decode \(UnidentifiedImageError"),
    "text": ({"image": b"<html>404</html>"}, "the picture does not decode"),
    "truncated": ({"image": PNG[: len(PNG) // 2]}, "the picture does not decode"),
    "damaged": ({"image": PNG[:50] + b"xxxx" + PNG[54:]}, "the picture does not decode"),
    "size": ({"image_size": (3, 4)}, r"image_size says \(3, 4\), the picture has \(4, 3\)"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_every_fault_is_found(case):
    change, reason = FAULTS[case]
    assert re.match(reason, fault(replace(good(1), **change)))


@pytest.mark.parametrize("change", [{}, {"image": None}, {"image_size": None}, {"box": None}])
def test_good_examples_have_no_fault(change):
    assert fault(replace(good(1), **change)) is None


def test_a_jpeg_is_as_good(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (4, 3)).save(buffer, "JPEG")
    assert fault(replace(good(1), image=buffer.getvalue())) is None
    assert "does not decode" in fault(replace(good(1), image=buffer.getvalue()[:-50]))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "publisher train: not one good example$"),
        (
            [replace(good(3), references=()), good(4).with_prompt("")],
            r"not one good example; the first: publisher train:1: example '003': there is no ref",
        ),
    ],
)
def test_a_split_that_cannot_be_used_is_refused(tmp_path, publisher, train, message):
    publisher["train"] = train
    with pytest.raises(ValueError, match=message):
        run(tmp_path)
    assert not (tmp_path / "data" / "signs" / "manifest.json").exists()


def test_an_id_that_occurs_before_is_left_out(tmp_path, publisher):
    publisher["train"] = [good(1), good(2), good(1), good(1)]
    manifest = run(tmp_path)
    assert manifest["splits"]["train"]["examples"] == 2
    assert manifest["splits"]["train"]["rejected"] == [
        {
            "file": "publisher train",
            "line": line,
            "reason": "example '001': an earlier record has this id",
        }
        for line in (3, 4)
    ]


@pytest.mark.parametrize(("most", "refused"), [(0.4, False), (0.39, True), (0.0, True)])
def test_too_many_that_are_left_out_are_refused(tmp_path, publisher, most, refused):
    rejected = [Rejected("a.json", n, f"there is no picture './{n}.jpg'") for n in (7, 8, 9)]
    empty = replace(good(6), references=())
    publisher["train"] = [*map(good, range(6)), *rejected, empty]
    if not refused:
        assert run(tmp_path, most)["splits"]["train"]["examples"] == 6
        return
    with pytest.raises(ValueError, match="4 of 10 records") as error:
        run(tmp_path, most)
    assert str(error.value) == (
        "publisher train: 4 of 10 records (40.0%) are no good examples; most_rejected of the task "
        f"allows {most:.1%}.\n"
        "  3 x there is no picture …\n"
        "  1 x example …: there is no reference, or an empty one\n"
        "The first:\n"
        "  a.json:7: there is no picture './7.jpg'\n"
        "  a.json:8: there is no picture './8.jpg'\n"
        "  a.json:9: there is no picture './9.jpg'\n"
        "  publisher train:10: example '006': there is no reference, or an empty one"
    )
    assert not (tmp_path / "data" / "signs" / "manifest.json").exists()


def test_the_publishers_files_are_known_by_their_checksums(tmp_path, publisher):
    module = sys.modules["palimpsest.data.readers.publisher"]
    module.files = lambda source: {"train": "signs/train.json", "test": "signs/test.json"}
    (tmp_path / "signs").mkdir()
    (tmp_path / "signs" / "train.json").write_text("[]")
    with pytest.raises(ValueError, match=r"missing: .*signs/test\.json; `palimpsest check` says"):
        run(tmp_path)
    (tmp_path / "signs" / "test.json").write_text("[1]")
    publisher["train"].append(good(0))
    manifest = run(tmp_path)
    assert manifest["files"]["test"] == {
        "file": "signs/test.json",
        "bytes": 3,
        "sha256": hashlib.sha256(b"[1]").hexdigest(),
    }
    rejected = manifest["splits"]["train"]["rejected"]
    assert rejected[0]["file"] == str(tmp_path / "signs" / "train.json")


def test_train_and_test_are_needed(tmp_path, publisher):
    del publisher["test"]
    publisher["dev"] = [good(1)]
    with pytest.raises(
        ValueError, match="task 'signs': its source has no split 'test'; there is: train, dev"
    ):
        run(tmp_path)


@pytest.mark.parametrize("reader", sorted(modules("data/readers")))
def test_every_reader_names_its_splits(reader):
    module = import_module(f"palimpsest.data.readers.{reader}")
    assert callable(module.splits)
    assert callable(module.files)
    assert callable(module.read)
