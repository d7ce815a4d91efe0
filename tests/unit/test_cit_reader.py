"""Nine datasets in their publishers' own files; records that are no examples are told, each why."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from miniatures import converted
from palimpsest.config import AS_PUBLISHED, Benchmark, Download, Task, load
from palimpsest.data import json_array
from palimpsest.data.example import Example, Rejected
from palimpsest.data.json_array import elements, members
from palimpsest.data.miniatures.cit import CAPTIONS, generate
from palimpsest.data.readers import official
from palimpsest.data.shards import Shards
from palimpsest.evaluation.score import score_all
from palimpsest.study import manner_of, scorer

TASKS = load(Benchmark, "cit-miniature-warm").tasks
NAMES = [name.removeprefix("mini-cit-") for name in TASKS]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """The miniature tree, as its download lays it, and every task converted."""
    root = tmp_path_factory.mktemp("results")
    generate(root / "downloads" / "cit-miniature")
    for name in TASKS:
        converted(name, root)
    return root


def examples(miniature, task, split="test"):
    return list(Shards(miniature / "data" / f"mini-cit-{task}", split))


REJECTED = {  # its number in the file, and why
    "okvqa": (25, "question '7' has no annotation"),
    "vqav2": (25, "question '7' has no annotation"),
    "aokvqa": (25, "'correct_choice_idx' is 4, no place among 4 choices"),
    "textcaps": (121, "there is no 'caption_str'"),
    "ocrvqa": (145, "there is no picture 'images/000099999X.jpg'"),
    "flickr30k": (73, "picture 'flickr30k-images/damaged.jpg' does not decode"),
    "vizwiz": (25, "there are 9 answers, not 10"),
    "textvqa": (25, "'set_name' is 'val', not 'train'"),
    "gqa": (25, "there is no 'answer'"),
}
SIZES = {"textcaps": (120, 24), "ocrvqa": (48, 48), "flickr30k": (120, 24)}


@pytest.mark.parametrize("name", NAMES)
def test_every_task_of_the_miniature_is_converted(miniature, name):
    train = Shards(miniature / "data" / f"mini-cit-{name}", "train")
    found = train.manifest["splits"]
    assert (len(train), found["test"]["examples"]) == SIZES.get(name, (24, 24))
    assert found["test"]["rejected"] == []
    [rejected] = found["train"]["rejected"]
    assert rejected["line"] == REJECTED[name][0]
    assert rejected["reason"].startswith(REJECTED[name][1])
    for example in [*train, *examples(miniature, name)]:
        assert Image.open(io.BytesIO(example.image)).size == example.image_size


@pytest.mark.parametrize("name", NAMES)
def test_true_answers_score_full_marks(miniature, name):
    task = load(Task, f"mini-cit-{name}")
    test = Shards(miniature / "data" / f"mini-cit-{name}", "test")
    answers = [example.turns[-1].answer for example in test]
    for metric in (task.metric, task.as_published):
        found = list(score_all(answers, test, (metric, {})))
        if metric == "cider":
            assert sum(found) / len(found) > 2
        else:
            assert set(found) == {1}


QUESTIONS = {
    "okvqa": "Question: Which shape is it? Short answer:",
    "vqav2": "Question: Which shape is it? Short answer:",
    "ocrvqa": "Question: What is the title of this book? Short answer:",
    "vizwiz": "Question: When is it? Short answer:",
    "gqa": "Question: Which shape is it? Short answer:",
    "textcaps": "A short image description:",
    "flickr30k": "A short image description:",
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_how_it_is_asked(miniature, name):
    assert examples(miniature, name)[0].turns[0].question == QUESTIONS[name]


def test_options_are_in_the_question(miniature):
    for number, example in enumerate(examples(miniature, "aokvqa")):
        named = " ".join(f"({a}) {b}" for a, b in zip("ABCD", example.choices, strict=True))
        assert example.turns[0].question == (
            f"Question: Which shape is it? Options: {named}. Short answer:"
        )
        assert example.references == ("ABCD"[number % 4],) == (example.turns[0].answer,)


def test_the_words_that_were_read_are_in_the_question(miniature):
    example = examples(miniature, "textvqa")[0]
    word = example.turns[0].answer.upper()
    assert example.turns[0].question == (
        f"OCR tokens: {word}, 5. Question: what does the sign say? Short answer:"
    )


@pytest.mark.parametrize("name", ["okvqa", "vqav2", "vizwiz", "textvqa"])
def test_ten_answers_and_the_most_frequent_is_learnt(miniature, name):
    for example in examples(miniature, name, "train"):
        assert len(example.references) == 10
        assert example.references.count(example.turns[0].answer) == 7


@pytest.mark.parametrize("name", ["textcaps", "flickr30k"])
def test_five_captions(miniature, name):
    train, test = examples(miniature, name, "train"), examples(miniature, name)
    assert len({example.id for example in train}) == 5 * 24
    assert len({example.image for example in train}) == 24
    for example in [*train, *test]:
        assert len(example.references) == len(CAPTIONS)
        assert example.turns[0].answer in example.references
    assert {e.references.index(e.turns[0].answer) for e in train} == set(range(5))


def test_pictures_of_aokvqa_lie_in_both_parts_of_coco(miniature):
    downloads = miniature / "downloads/cit-miniature"
    found = {path.read_bytes() for path in downloads.glob("coco-*/*/COCO_*.jpg")}
    for example in [*examples(miniature, "aokvqa", "train"), *examples(miniature, "aokvqa")]:
        assert example.image in found


def test_the_same_tree_each_time(tmp_path):
    generate(tmp_path / "a", 1, 2)
    generate(tmp_path / "b", 1, 2)
    generate(tmp_path / "c", 2, 2)
    contents = [
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")}
        for n in "abc"
    ]
    assert contents[0] == contents[1] != contents[2]


def test_the_full_tasks_are_asked_as_the_small_ones():
    small = load(Benchmark, "cit-miniature-warm")
    full = load(Benchmark, "cit-warm")
    assert set(full.tasks) == set(load(Benchmark, "cit-pretrained").tasks)
    assert small.initial == tuple(f"mini-{task}" for task in full.initial)
    for order, tasks in full.orders.items():
        assert small.orders[order] == tuple(f"mini-{task}" for task in tasks)
    for name in NAMES:
        task, mini = load(Task, f"cit-{name}"), load(Task, f"mini-cit-{name}")
        official.check(task.source)
        assert task.source["splits"] == mini.source["splits"]
        assert task.source.get("question") == mini.source.get("question")
        paths = [*official.files(task.source).values(), *task.source["pictures"].values()]
        assert {path.split("/")[0] for path in paths} == set(task.downloads)
        for download in task.downloads:
            assert load(Download, download).licence


def test_llava_answers_and_is_scored_as_its_released_scripts_do():
    manner = manner_of("llava-1.5-7b", "cit-vqav2", AS_PUBLISHED)
    assert manner.max_new_tokens == 128
    assert manner.of_model["pictures"] == "pad"  # CoIN's crop those of its own VQAv2
    assert manner_of("llava-1.5-7b", "coin-vqav2", AS_PUBLISHED).of_model["pictures"] == "crop"
    scorers = {
        model: scorer(model, "cit-aokvqa", AS_PUBLISHED)[0]
        for model in ("llava-1.5-7b", "instructblip-vicuna-7b")
    }
    assert scorers == {"llava-1.5-7b": "cit_exact", "instructblip-vicuna-7b": "cit_aokvqa"}


def test_what_is_there_is_told(miniature):
    root = miniature / "downloads"
    source = load(Task, "mini-cit-flickr30k").source
    found = {f.what: (f.state, f.note) for f in official.survey(source, root)}
    assert found["train"][0] == found["test"][0] == "there"
    assert found["train"][1].endswith(": 25 (expected: 25 records)")
    source = load(Task, "cit-okvqa").source
    found = [(f.what, f.state) for f in official.survey(source, root)]
    assert found == [
        ("train", "missing"), ("test", "missing"), ("pictures", "missing"),
        ("pictures", "missing"), ("train annotations", "missing"), ("test annotations", "missing"),
    ]  # fmt: skip


# Records that are none.

ANSWERED = [{"answer": "red"}] * 10
RECORDS = {  # of each kind, a good record and the files that hold it, in a folder of its own
    "vqa": {"question_id": 5, "image_id": 1, "question": "Which?"},
    "vizwiz": {"image": "VizWiz_train_1.jpg", "question": "Which?", "answers": ANSWERED},
    "textvqa": {
        "question_id": 5, "image_id": "1", "question": "Which?", "answers": ["red"] * 10,
        "set_name": "train",
    },
    "aokvqa": {
        "question_id": "q", "image_id": 1, "question": "Which?", "choices": ["red", "blue"],
        "correct_choice_idx": 1, "split": "train",
    },
    "gqa": {"imageId": "1", "question": "Which?", "answer": "red"},
    "ocrvqa": {"split": 1, "questions": ["Which?"], "answers": ["red"]},
    "textcaps": {
        "caption_id": 3, "image_id": "1", "caption_str": "A cup", "set_name": "train",
        "reference_strs": ["A cup", "Two"],
    },
    "flickr30k": {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "A cup"}]},
}  # fmt: skip
OFFICIAL = {"vqa": "train2014", "ocrvqa": "1"}
PICTURES = {
    "vqa": "train2014/COCO_train2014_000000000001.jpg", "vizwiz": "train/VizWiz_train_1.jpg",
    "aokvqa": "val2014/COCO_val2014_000000000001.jpg", "textvqa": "train_images/1.jpg",
    "gqa": "images/1.jpg", "flickr30k": "flickr30k-images/1.jpg",
}  # fmt: skip
TEMPLATES = {
    "textvqa": "{tokens}: {question}", "aokvqa": "{question} {options}",
    "textcaps": "Describe it.", "flickr30k": "Describe it.",
}  # fmt: skip
WRAPPED = {"vqa": "questions", "textvqa": "data", "textcaps": "data", "flickr30k": "images"}


def put(root, kind, *records):
    """Write records of a kind, with a picture; return the source."""
    for name in (
        "images/1.jpg",
        "train_images/1.jpg",
        "flickr30k-images/1.jpg",
        PICTURES.get(kind),
    ):
        if name:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 20)).save(root / name)
    content = list(records)
    if kind in WRAPPED:
        content = {"info": {"year": 2014}, WRAPPED[kind]: content, "license": []}
    elif kind in ("gqa", "ocrvqa"):
        content = {f"k{n}" if n else "1": record for n, record in enumerate(records)}
    (root / "records.json").write_text(json.dumps(content))
    roles = dict.fromkeys(official.KINDS[kind].ROLES, "records.json")
    if kind == "vqa":
        given_ = [{"question_id": 5, "answers": ANSWERED}, {"question_id": 6, "answers": []}, None]
        (root / "other.json").write_text(json.dumps({"annotations": given_}))
        roles["annotations"] = "other.json"
    if kind == "textvqa":
        read = [{"image_id": "1", "ocr_tokens": ["STOP", "5"]}, {"image_id": "2"}]
        (root / "other.json").write_text(json.dumps({"data": read}))
        roles["ocr"] = "other.json"
    return {
        "kind": kind,
        "splits": dict.fromkeys(("train", "test"), OFFICIAL.get(kind, "train")),
        "files": {"train": roles, "test": roles},
        "pictures": {"": "."},
        "question": TEMPLATES.get(kind, "{question}"),
        "expected": {"train": len(records)},
    }


def read(root, kind, *records, split="train"):
    return list(official.read(put(root, kind, *records), split, root))


@pytest.mark.parametrize("kind", RECORDS)
def test_a_good_record(tmp_path, kind):
    [example] = read(tmp_path, kind, RECORDS[kind])
    assert example.image_size == (40, 20)
    assert example.turns[0].answer in ("red", "B", "A cup")
    assert example.turns[0].answer in example.references
    asked = {"textvqa": "STOP, 5: Which?", "aokvqa": "Which? (A) red (B) blue"}
    assert example.turns[0].question == asked.get(kind, TEMPLATES.get(kind, "Which?"))


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("vqa", {"question_id": 6}, "annotation of question '6': there are 0 answers, not 10"),
        ("vqa", {"question_id": 7}, "question '7' has no annotation"),
        ("vqa", {"image_id": "1"}, "'image_id' is '1', no number"),
        ("vqa", {"image_id": 2}, "there is no picture 'train2014/COCO_train2014_000000000002.jpg'"),
        ("vqa", {"question": ""}, "there is no 'question'"),
        ("vizwiz", {"image": "VizWiz_val_1.jpg"}, "is not of the split 'train'"),
        ("vizwiz", {"answers": [*ANSWERED[1:], {}]}, "there is no 'answer'"),
        ("vizwiz", {"answers": None}, "'answers' is no list but NoneType"),
        ("textvqa", {"image_id": "2"}, "there is no picture"),
        ("textvqa", {"set_name": "test"}, "'set_name' is 'test', not 'train'"),
        ("aokvqa", {"split": "val"}, "'split' is 'val', not 'train'"),
        ("aokvqa", {"correct_choice_idx": True}, "'correct_choice_idx' is True"),
        ("aokvqa", {"choices": ["red", ""]}, "there is no 'choices'"),
        ("gqa", {"imageId": "../1"}, "is not below the data set"),
        ("ocrvqa", {"answers": []}, "the book has not one answer for each question"),
        ("ocrvqa", {"answers": [""]}, "there is no 'answer'"),
        ("ocrvqa", {"split": 4}, "'split' is '4', not '1'"),
        ("textcaps", {"reference_strs": []}, "there is no reference"),
        ("flickr30k", {"sentences": []}, "there is no caption"),
        ("flickr30k", {"sentences": ["A cup"]}, "the record is no object but str"),
        ("flickr30k", {"split": "restval"}, "'split' is 'restval', not 'train'"),
    ],
)
def test_why_a_record_is_none(tmp_path, kind, change, reason):
    [found] = read(tmp_path, kind, RECORDS[kind] | change)
    assert (found.file, found.line) == (str(tmp_path / "records.json"), 1)
    assert reason in found.reason


@pytest.mark.parametrize(("kind", "other"), [("ocrvqa", 2), ("flickr30k", "val")])
def test_records_of_other_splits_are_passed_over(tmp_path, kind, other):
    found = read(tmp_path, kind, RECORDS[kind] | {"split": other}, None, RECORDS[kind])
    assert [type(one) for one in found] == [Rejected] + (
        [Example] if kind != "ocrvqa" else [Rejected]
    )
    assert found[0].line == 2


def test_a_test_picture_with_several_captions_is_one_example(tmp_path):
    record = RECORDS["textcaps"]
    second = record | {"caption_id": 4, "caption_str": "Two"}
    [example] = read(tmp_path, "textcaps", record, second, split="test")
    assert example.id == "1"
    assert example.references == ("A cup", "Two")
    assert len(read(tmp_path, "textcaps", record, second)) == 2


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("vqa", {"kind": "speech"}, "source.kind is 'speech'; there are vqa, "),
        ("vqa", {"folder": "x"}, "source: folder: Extra inputs"),
        ("vqa", {"question": "{tokens}"}, r"kind 'vqa' has \{tokens\}, but knows question"),
        ("textcaps", {"question": "{question}"}, "but knows no field: write the instruction"),
        ("vqa", {"files": {"train": {"questions": "x"}}}, "names questions, annotations; found q"),
        ("textvqa", {"question": "{question}"}, "names questions; found questions, ocr"),
        ("gqa", {"splits": {"train": "train"}}, "source.splits has no 'test'"),
    ],
)
def test_a_wrong_source_is_refused(tmp_path, kind, change, message):
    with pytest.raises(ValueError, match=message):
        official.splits(put(tmp_path, kind) | change, tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["1", "train", "VizWiz_train_1.jpg", "1.jpg", "red", "A cup"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["answer", "raw", "split"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = sorted({key for record in RECORDS.values() for key in record} | {"number", "book"})


@st.composite
def mutated(draw, record):
    """A record with some keys gone and others changed, or something else altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(values)
    record = {k: v for k, v in record.items() if draw(st.integers(0, 7))}
    return record | draw(st.dictionaries(st.sampled_from(KEYS), values, max_size=2))


@given(st.data(), st.sampled_from(["train", "test"]), st.sampled_from(sorted(RECORDS)))
def test_every_record_is_an_example_or_has_a_reason(data, split, kind):
    records = data.draw(st.lists(mutated(RECORDS[kind]), max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = read(root, kind, *records, split=split)
        list(official.survey(put(root, kind, *records), root))
    for one in found:
        assert isinstance(one, Example) or (one.line >= 1 and one.reason)
    if kind not in ("ocrvqa", "flickr30k", "textcaps"):
        assert len(found) == len(records)


# Arrays and members within an object, read one by one.


@given(st.dictionaries(st.text(max_size=3), values, max_size=6), st.integers(1, 40))
def test_an_object_is_read_in_any_chunks(content, chunk):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "CHUNK", chunk)
        path = Path(folder, "a.json")
        path.write_text(text := json.dumps(content, indent=chunk % 3 or None))
        assert repr(list(members(path))) == repr(list(json.loads(text).items()))
        path.write_text(json.dumps({**content, "the array": [1, content]}))
        assert repr(list(elements(path, "the array"))) == repr([1, json.loads(text)])


@pytest.mark.parametrize("number", ["0.5", "-1e2", "12.5E-3", "7"])
def test_a_number_that_goes_on_in_the_next_chunk(tmp_path, monkeypatch, number):
    monkeypatch.setattr(json_array, "CHUNK", 1)
    (tmp_path / "a.json").write_text(f"[{number}, {number}]")
    assert list(elements(tmp_path / "a.json")) == [float(number)] * 2


@given(st.data())
def test_an_object_that_is_cut_is_refused(data):
    text = json.dumps({"a": 1, "found": [{"b": [2]}, 3], "c": "d"})
    cut = data.draw(st.integers(0, len(text) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.json")
        path.write_text(text[:cut])
        for found in (elements(path, "found"), members(path)):
            with pytest.raises(ValueError, match=r"a\.json: damaged or truncated at element \d: "):
                list(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"element 1: expected '\{': the file holds no JSON object"),
        ('{"a": []}', "element 1: the object has no 'found'"),
        ('{"found": {"a": 1}}', r"element 1: expected '\['"),
        ('{"found": [1, 2}', r"element 2: expected ',' or '\]'"),
        ('{"found": [1], 5: 2}', r"expected a name and ':'"),
        ('{"found": [1]} 3', "element 1: more text after the object's end"),
    ],
)
def test_where_an_object_breaks(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(elements(tmp_path / "a.json", "found"))
