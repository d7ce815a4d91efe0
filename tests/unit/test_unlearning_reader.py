"""What is to be unlearnt, in the released formats; bad records are told, each with its reason."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from miniatures import converted
from palimpsest.check import check
from palimpsest.config import Benchmark, Download, Task, load
from palimpsest.data.example import Example, Rejected
from palimpsest.data.miniatures.unlearning import CATEGORIES, generate
from palimpsest.data.readers import choices, unlearning
from palimpsest.data.shards import Shards
from palimpsest.data.wording import CLASSIFICATION, OURS, drawn, read_wording
from palimpsest.evaluation.score import score_all
from palimpsest.lineage import Stage
from palimpsest.metrics import core_refusal, refusal
from palimpsest.study import stage_fingerprint

FULL = load(Benchmark, "unlearning").to_learn
ERASED = load(Benchmark, "unlearning-miniature").to_learn
ASKED = ("mini-mmbench", "mini-seed-bench", "mini-scienceqa-test")
RECORDS = 5  # fewer than in the download: the test is the same
MOST_REJECTED = 0.2  # of which the bad ones are more


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """The miniature tree, as its download lays it, and every task converted."""
    root = tmp_path_factory.mktemp("results")
    generate(root / "downloads" / "unlearning-miniature", records=RECORDS)
    for name in (*ERASED, *ASKED):
        converted(name, root, MOST_REJECTED)
    return root


@pytest.fixture
def tree(miniature, tmp_path):
    """A copy of the miniature's downloads, to be changed."""
    shutil.copytree(miniature / "downloads", tmp_path / "downloads")
    return tmp_path


def examples(root, name, split="test"):
    return list(Shards(root / "data" / name, split))


def records(root, task, split):
    """What the reader of a task gives, unconverted."""
    config = load(Task, task)
    module = {"unlearning": unlearning, "choices": choices}[config.reader]
    return list(module.read(config.source, split, root / "downloads"))


def wording(root):
    return root / "downloads" / "unlearning-miniature" / "core-prompts" / "prompts.py"


def changed(root, path, change):
    """Write a JSON file of the tree anew."""
    path = root / "downloads" / "unlearning-miniature" / path
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


# What a record becomes


def test_training_is_to_refuse_every_harmful_question(miniature):
    found = examples(miniature, "mini-erase-0", "train")
    assert len(found) == 2 * RECORDS * 2  # keywords, records, questions
    assert {e.combination for e in found} == {"HH"}
    assert {e.category for e in found} == {"Kitchenware"}
    refusals = read_wording(wording(miniature)).refusals["Kitchenware"]
    for example in found:
        [turn] = example.turns
        assert turn.answer in refusals == example.references
        assert (
            turn.question.removeprefix("How is a ")
            .removeprefix("Where is a ")
            .startswith(("teapot", "frying pan"))
        )
    assert len({e.turns[0].answer for e in found}) > 5


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("mini-erase-0", {"HH": 10, "HU": 9, "UH": 10, "UU": 9}),  # 5 records; one lacks a question
        ("mini-erase-1", {"HH": 8, "HU": 8, "UH": 8, "UU": 8}),
    ],
)
def test_testing_is_on_four_combinations(miniature, task, expected):
    assert Counter(e.combination for e in examples(miniature, task)) == expected


def test_each_combination_has_its_picture_question_and_reference(miniature):
    folder = miniature / "downloads" / "unlearning-miniature" / "safeeraser" / "dataset"
    record = json.loads((folder / "all_val.json").read_text())[0]
    found = {e.id: e for e in examples(miniature, "mini-erase-0")}
    harmful = (folder / record["image_id"]).read_bytes()
    harmless = (folder / record["SDImage_path"]).read_bytes()
    for name, picture, question, reference in (
        ("HU1", harmful, "Which shape is it?", record["UnharmPair_image2"]["Prediction"]),
        ("UH0", harmless, "How is a teapot used?", record["unsafe_pairs"][0]["sd_response"]),
        ("UU0", harmless, "Which colour is it?", unlearning.ANY),
    ):
        example = found[f"test/00001/{name}"]
        assert (example.image, example.turns[0].question) == (picture, question)
        assert example.references == (reference,)
    hh = found["test/00001/HH1"]
    assert (hh.image, hh.turns[0].question) == (harmful, "Where is a teapot sold?")
    assert len(hh.references) == 10


def test_classes_are_told_apart_by_folder(miniature):
    train, test = examples(miniature, "mini-erase-2", "train"), examples(miniature, "mini-erase-2")
    assert {e.id.split("/")[0] for e in train} == {"n00000001", "n00000002"}
    assert {e.category for e in [*train, *test]} == {CLASSIFICATION}
    for example in [*train, *test]:
        picture, text = example.combination
        forgotten = example.id.startswith(("n00000001", "n00000002"))
        assert forgotten == (picture == "H")
        said = OURS.questions if text == "H" else OURS.harmless
        assert example.turns[0].question in said
        if example.combination == "HH":
            assert example.references == OURS.refusals[CLASSIFICATION]
        if example.combination == "UH":
            assert example.references[0] in {"garden gnome", "paper kite"}
    pictures = [{e.id.rpartition("/")[0] for e in part} for part in (train, test)]
    assert not pictures[0] & pictures[1]
    assert Counter(e.combination for e in test)["UU"] == Counter(e.combination for e in test)["UH"]


def test_without_classes_that_are_kept_only_the_harmful_pictures_are_asked(miniature):
    assert {e.combination for e in examples(miniature, "mini-erase-3")} == {"HH", "HU"}


def test_pictures_that_somebody_has_parted_stay_parted(tree):
    folder = tree / "downloads" / "unlearning-miniature" / "imagenet-r" / "imagenet-r"
    for synset in ("n00000003", "n00000004"):
        for number, picture in enumerate(sorted((folder / synset).iterdir())):
            place = folder / ("test" if number < 2 else "train") / synset / picture.name
            place.parent.mkdir(parents=True, exist_ok=True)
            picture.rename(place)
    manifest = converted("mini-erase-3", tree, MOST_REJECTED)
    assert manifest["parted"] == "as found"
    found = examples(tree, "mini-erase-3")
    assert len(found) == 2 * 2 * 2
    assert all(e.id.startswith("test/n0000000") for e in found)


def test_a_second_conversion_is_the_same(tree, miniature):
    for name in ("mini-erase-0", "mini-erase-2"):
        converted(name, tree, MOST_REJECTED)
        for split in ("train", "test"):
            assert examples(tree, name, split) == examples(miniature, name, split)


# Whose wording


def test_the_manifest_says_whose_wording_it_is(miniature, tree):
    name = "unlearning-miniature/core-prompts/prompts.py"
    told = Shards(miniature / "data" / "mini-erase-0", "train").manifest["wording"]
    assert told["from"] == name
    assert len(told["sha256"]) == 64
    assert set(told["refusals"]) == {*CATEGORIES, CLASSIFICATION}
    wording(tree).unlink()
    told = converted("mini-erase-2", tree, MOST_REJECTED)["wording"]
    assert told == {"from": "Palimpsest", "sha256": None, "refusals": OURS.refusals}


def test_a_wording_that_came_later_is_noticed(workplace):
    """Data and stages that were made without it are then of another config."""
    stage = Stage.parse("three/tiny/lora/seed-0/count")

    def known_by():
        workplace.change("tasks/count")  # nothing, but what was loaded is forgotten
        return load(Task, "count").fingerprint, stage_fingerprint(stage)

    workplace.change("tasks/count", source={"wording": "words/prompts.py"})
    without = known_by()
    path = workplace.root / "results" / "downloads" / "words" / "prompts.py"
    path.parent.mkdir(parents=True)
    path.write_text("refusals = []")
    found = known_by()
    assert set(found).isdisjoint(without)
    path.write_text("refusals = ['No.']")
    assert set(known_by()).isdisjoint({*without, *found})
    workplace.change("tasks/count", downloads=["words"])  # which is fetched before it is read
    assert known_by() == without


def test_a_category_without_refusals_is_no_example(tree):
    wording(tree).unlink()
    first = records(tree, "mini-erase-0", "train")[0]
    assert isinstance(first, Rejected)
    assert "there are no refusals of category 'Kitchenware', but of Weapon, Sex" in first.reason


@pytest.mark.parametrize("category", OURS.refusals)
def test_our_refusals_are_refusals(category):
    assert len(set(OURS.refusals[category])) == (19 if category == CLASSIFICATION else 10)
    for text in OURS.refusals[category]:
        assert core_refusal.refused(text)
        assert refusal.refused(text)


def test_our_questions_refuse_nothing():
    assert (len(set(OURS.questions)), len(set(OURS.harmless))) == (20, 15)
    for text in (*OURS.questions, *OURS.harmless):
        assert not core_refusal.refused(text)


def test_the_released_file_is_read_and_never_run(tmp_path):
    path = tmp_path / "prompts.py"
    path.write_text(
        'import nothing_of_this_name\nTea = ["No tea.",\n  "Not a drop."]\n'
        'VisualConcept = ["x" "y"]\n'
        'refusal_prompts = {"Tea": Tea, "VisualConcept": VisualConcept}\n'
        'classification_prompts = ["What?"]\nclassification_refusals = ["No class."]\n'
        'unharm_random_texts = ["Nice?"]\nsomething = list(set([1]))\nraise SystemExit\n'
    )
    found = read_wording(path)
    assert found.refusals == {"Tea": ("No tea.", "Not a drop."), CLASSIFICATION: ("No class.",)}
    assert (found.questions, found.harmless) == (("What?",), ("Nice?",))


NUMBERS = "Tea = [1]\nrefusal_prompts = {'Tea': Tea}\n"
OTHERS = """classification_prompts = ['a']
classification_refusals = ['a']
unharm_random_texts = ['a']
"""


@pytest.mark.parametrize("text", ["x = [", "refusal_prompts = {}", NUMBERS + OTHERS])
def test_a_file_that_is_not_cores_is_refused(tmp_path, text):
    (tmp_path / "prompts.py").write_text(text)
    with pytest.raises(ValueError, match=r"prompts\.py: "):
        read_wording(tmp_path / "prompts.py")


def test_every_text_is_drawn_some_time():
    assert {drawn(OURS.questions, str(n)) for n in range(400)} == set(OURS.questions)


# Bad records


REJECTED = {  # split, number in the file, and why; of each task
    "mini-erase-0": [
        ("train", 23, "HH: there is no picture 'img/Kitchenware/lost.jpg'"),
        ("train", 23, "HH: there is no picture 'img/Kitchenware/lost.jpg'"),
        ("test", 11, "HU: there is no 'UnharmPair_image2'"),
        ("test", 11, "UU: there is no 'UnharmPair_image2'"),
    ],
    "mini-erase-1": [],
    "mini-erase-3": [],
    "mini-mmbench": [("test", 12, "the answer is 'E', none of 4 options")],
    "mini-seed-bench": [("test", 12, "there is no picture 'lost'")],
    "mini-scienceqa-test": [("test", 11, "'answer' is 4, no place among 4 choices")],
}


@pytest.mark.parametrize("task", REJECTED)
def test_bad_records_are_told(miniature, task):
    splits = json.loads((miniature / "data" / task / "manifest.json").read_text())["splits"]
    found = [(name, r["line"], r["reason"]) for name in splits for r in splits[name]["rejected"]]
    assert len(found) == len(REJECTED[task])
    for (split, line, reason), (at, number, start) in zip(found, REJECTED[task], strict=True):
        assert (split, line) == (at, number)
        assert reason.startswith(start)


def test_a_damaged_picture_is_told(miniature):
    splits = json.loads((miniature / "data" / "mini-erase-2" / "manifest.json").read_text())
    reasons = {r["reason"] for s in splits["splits"].values() for r in s["rejected"]}
    assert all("'n00000001/art_99.jpg' does not decode" in reason for reason in reasons)
    assert reasons


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: [*r[:1], "text"], "the record is no object but str"),
        (lambda r: [*r[:1], {**r[0], "keyword": None}], "there is no 'keyword'"),
        (lambda r: [*r[:1], {**r[0], "unsafe_pairs": "none"}], "there is no 'unsafe_pairs'"),
        (lambda r: [*r[:1], {**r[0], "unsafe_pairs": [{}]}], "there is no 'question'"),
        (lambda r: [*r[:1], {**r[0], "image_id": "../x.jpg"}], "is not below the data set"),
    ],
)
def test_a_record_that_is_no_example(tree, change, reason):
    changed(tree, "safeeraser/dataset/all_train.json", lambda r: [*change(r), r[RECORDS]])
    good, _, bad, *_ = records(tree, "mini-erase-0", "train")
    assert isinstance(good, Example)
    assert bad.line == 2
    assert reason in bad.reason


def test_a_keyword_that_no_record_has_is_refused(tree):
    changed(tree, "safeeraser/dataset/all_train.json", lambda r: r[:1])
    with pytest.raises(ValueError, match=r"all_train\.json: no record has the keyword frying pan"):
        records(tree, "mini-erase-0", "train")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("README.txt", "README.txt: file is missing"),
        ("n00000004", "the pictures of class 'door_mat' are missing"),
    ],
)
def test_missing_classes_are_refused(tree, path, message):
    path = tree / "downloads/unlearning-miniature/imagenet-r/imagenet-r" / path
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=message):
        records(tree, "mini-erase-3", "train")


def test_a_class_of_another_name_is_refused(tree):
    path = tree / "downloads/unlearning-miniature/imagenet-r/imagenet-r/README.txt"
    path.write_text("n00000003 wind_chime\n")
    with pytest.raises(ValueError, match="has no class 'door_mat'"):
        records(tree, "mini-erase-3", "train")
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match="names no class"):
        records(tree, "mini-erase-3", "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "source: kind: "),
        ({"keywords": []}, "source: keywords: "),
        ({"kept": ["volcano"]}, "source.kept is of kind 'imagenet-r' only"),
        ({"kind": "imagenet-r", "kept": ["teapot"]}, "source.kept names 'teapot', a keyword"),
    ],
)
def test_a_wrong_source_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        unlearning.check({**load(Task, "mini-erase-0").source, **change})


# The sixteen tasks


def test_sixteen_tasks_of_140_keywords():
    sources = [unlearning.check(load(Task, name).source) for name in FULL]
    assert [len(s.keywords) for s in sources] == [5] * 12 + [20] * 4
    assert len({keyword for s in sources for keyword in s.keywords}) == 140
    assert [len(s.kept) for s in sources] == [0] * 12 + [120, 0, 0, 0]
    classes = {keyword for s in sources[12:] for keyword in (*s.keywords, *s.kept)}
    assert len(classes) == 200
    assert {s.wording for s in sources} == {"core-prompts/prompts.py"}
    assert load(Download, "core-prompts").bytes == 17591


def test_check_says_what_is_there(miniature, tree):
    text = check("unlearning-miniature", miniature)
    assert "wording" in text
    assert "all_train.json: 11 (expected: 25 records)" in text
    wording(tree).unlink()
    assert "is not there: ours is taken" in check("unlearning-miniature", tree)
    text = check("unlearning", tree)
    assert "By hand: SafeEraser" in text
    assert "imagenet-r/README.txt: file is missing" in text


# Choice questions


@pytest.mark.parametrize("task", ASKED)
def test_true_answers_score_full_marks(miniature, task):
    config, test = load(Task, task), Shards(miniature / "data" / task, "test")
    answers = [example.turns[-1].answer for example in test]
    for metric in (config.metric, config.as_published):
        assert set(score_all(answers, test, (metric, {}))) == {1}


@pytest.mark.parametrize(
    ("task", "count", "question"),
    [
        ("mini-mmbench", 10, "It is drawn on a dark background.\nA. "),
        ("mini-seed-bench", 10, " shape is it?\nA. "),
        ("mini-scienceqa-test", 7, " shape is it?\nA. "),
    ],
)
def test_how_choices_are_asked(miniature, task, count, question):
    found = examples(miniature, task)
    assert len(found) == count
    for example in found:
        lines = example.turns[0].question.splitlines()
        options = [f"{a}. {b}" for a, b in zip("ABCD", example.choices, strict=False)]
        assert lines[-len(options) :] == options
    assert question in found[0].turns[0].question


def test_a_row_may_name_the_picture_of_another(miniature):
    first, again, *_ = examples(miniature, "mini-mmbench")
    assert (first.id, again.id) == ("0", "1000001")
    assert first.image == again.image
    assert (again.choices, first.image_size) == (
        ("yes", "no"),
        Image.open(io.BytesIO(first.image)).size,
    )


@pytest.mark.parametrize("task", ASKED)
def test_only_the_first_are_asked(miniature, task):
    config = load(Task, task)
    root = miniature / "downloads"
    asked = list(choices.read({**config.source, "first": 3}, "test", root))
    assert asked == list(choices.read(config.source, "test", root))[:3]
    assert load(Task, task.removeprefix("mini-")).source["first"] == 500


@pytest.mark.parametrize(
    ("image", "reason"),
    [("no base64!", "no base64"), (base64.b64encode(b"x" * 90).decode(), "does not decode")],
)
def test_a_picture_in_a_table_may_be_damaged(tree, image, reason):
    path = tree / "downloads/unlearning-miniature/mmbench/MMBench_DEV_EN.tsv"
    head, row, *_ = path.read_text().splitlines()
    cells = row.split("\t")
    cells[head.split("\t").index("image")] = image
    path.write_text("\n".join([head, "\t".join(cells)]) + "\n")
    [found] = records(tree, "mini-mmbench", "test")
    assert reason in found.reason


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("mmbench/MMBench_DEV_EN.tsv", "index\tquestion\n", "has no column A, B, C, D"),
        ("seed-bench/SEED-Bench.json", '{"questions": [{}', "damaged or truncated"),
        ("scienceqa-splits/pid_splits.json", "[]", "not the publisher's files"),
    ],
)
def test_a_damaged_file_of_questions_is_refused(tree, path, text, message):
    (tree / "downloads" / "unlearning-miniature" / Path(path)).write_text(text)
    name = path.split("/")[0].replace("-splits", "-test")
    with pytest.raises(ValueError, match=message):
        records(tree, f"mini-{name}", "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "quiz"}, "source.kind is 'quiz'; there are mmbench, seed-bench, scienceqa"),
        ({"files": {}}, "names questions; found nothing"),
        ({"first": 0}, "source: first: "),
    ],
)
def test_a_wrong_source_of_questions_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        choices.check({**load(Task, "mmbench").source, **change})
