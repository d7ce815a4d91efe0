"""Cells judged over HTTP: scores, the cache that outlives a kill, and a server that misbehaves."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chat_server import chat_server
from palimpsest.config import Judge, Task, load
from palimpsest.data.example import Example, Turn
from palimpsest.data.shards import Shards, write_dataset
from palimpsest.files import read_json
from palimpsest.judging.cache import Judgements
from palimpsest.judging.endpoint import Endpoint
from palimpsest.judging.judge import judge_cells

ANSWERS = {"d": "ABC", "b": "XYZ", "a": "KLMN", "c": "PQR"}  # in the split's order
OURS = "0123456789abcdef"
JUDGE = {
    "title": "A judge",
    "kind": "endpoint",
    "model": "Judge-1B",
    "protocol": "corrected",
    "asking": {"concurrency": 4, "attempts": 3, "backoff": 0.01, "longest_wait": 2, "timeout": 20},
    "resources": {"memory_mb": 100, "minutes": 1},
}


@pytest.fixture
def server():
    """A server that replies 8."""
    with chat_server() as server:
        yield server


@pytest.fixture
def judge(workplace, server):
    """Return the judge `strict`, that is behind the server, with some settings of its own."""

    def configured(**settings) -> Judge:
        workplace.write("judges/strict", {**JUDGE, "url": server.url, **settings})
        return load(Judge, "strict")

    return configured


@pytest.fixture
def examples(tmp_path):
    """Four questions."""
    asked = [
        Example(id, None, (Turn(f"What is {id}?\nUse letters.", answer),), (answer,))
        for id, answer in ANSWERS.items()
    ]
    write_dataset(tmp_path / "data" / "signs", {"test": asked}, {})
    return Shards(tmp_path / "data" / "signs", "test")


def predict(cell: Path, predictions: dict[str, str]) -> Path:
    """Write predictions as generation does."""
    cell.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": id, "prediction": text, "references": [ANSWERS[id]]}
        for id, text in predictions.items()
    ]
    about = {b"palimpsest": json.dumps({"stage_fingerprint": OURS})}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(about)
    pq.write_table(table, cell / "predictions.parquet")
    return cell


@pytest.fixture
def cell(tmp_path):
    """A cell with four predictions, of which two are of the right kind."""
    predictions = {"a": "KLMN", "b": "no", "c": "PQR", "d": "A B C"}
    return predict(tmp_path / "stage" / "cells" / "test" / "signs", predictions)


@pytest.fixture
def run(workplace, examples, cell):
    """Judge cells, by default the one that there is."""

    def judged(judge: Judge, *cells: Path) -> None:
        task = load(Task, "signs")
        chosen = [(c, task, examples) for c in cells or [cell]]
        judge_cells(chosen, "strict", judge, OURS, Path("results"))

    return judged


def prediction_in(prompt: str) -> str:
    """Return the answer that a prompt asks to be rated."""
    return prompt.partition("[Assistant]\n")[2].partition("\n\n[End of Assistant]")[0]


REPLIES = {"KLMN": "Score: 10", "no": "I do not know.", "PQR": "5", "A B C": "-2"}


def test_scores_of_a_cell(server, judge, run, cell):
    server.reply = lambda prompt: REPLIES[prediction_in(prompt)]
    configured = judge()
    run(configured)
    rows = pq.read_table(cell / "strict" / "outcomes.parquet").to_pylist()
    assert [row["id"] for row in rows] == list(ANSWERS)
    assert [row["reply"] for row in rows] == ["-2", "I do not know.", "Score: 10", "5"]
    assert [row["right_kind"] for row in rows] == [False, False, True, True]
    assert [row["score"] for row in rows][2:] == [1.0, 0.5]
    assert all(math.isnan(row["score"]) for row in rows[:2])  # counted, and no part of the mean
    assert read_json(cell / "strict" / "scores.json") == {
        "task": "signs",
        "metric": "strict",
        "version": f"1-{configured.fingerprint[:8]}/corrected",
        "value": 75.0,
        "n": 4,
        "right_kind": 50.0,
        "stage_fingerprint": OURS,
        "unparsable": 2,
        "judge_fingerprint": configured.fingerprint,
    }


def test_scores_as_published(server, judge, run, cell):
    server.reply = lambda prompt: REPLIES[prediction_in(prompt)]
    run(judge(protocol="as-published"))
    rows = pq.read_table(cell / "strict" / "outcomes.parquet").to_pylist()
    assert [row["score"] for row in rows] == [-0.2, 0.0, 0.1, 0.5]
    scores = read_json(cell / "strict" / "scores.json")
    assert scores["version"].endswith("/as-published")
    assert (scores["value"], scores["unparsable"]) == (pytest.approx(10.0), 0)
    assert scores["published_value"] == 10


def test_nonsense_alone_has_no_value(server, judge, run, cell):
    server.reply = lambda prompt: "Who knows?"
    run(judge())
    scores = read_json(cell / "strict" / "scores.json")
    assert (scores["value"], scores["unparsable"], scores["n"]) == (None, 4, 4)


def test_what_is_sent(server, judge, run, monkeypatch):
    monkeypatch.setenv("OUR_KEY", "sk-secret")
    sampling = {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05, "max_tokens": 20}
    run(judge(sampling=sampling, api_key="OUR_KEY"))
    body = server.bodies[0]
    assert [message["role"] for message in body.pop("messages")] == ["system", "user"]
    assert body == {"model": "Judge-1B", "seed": 0, **sampling}
    assert set(server.keys) == {"Bearer sk-secret"}
    assert not [p for p in Path().rglob("*") if p.is_file() and b"sk-secret" in p.read_bytes()]


def test_by_default_a_judge_is_greedy(server, judge, run):
    run(judge())
    sent = {k: v for k, v in server.bodies[0].items() if k not in ("model", "messages")}
    assert sent == {"temperature": 0.0, "top_p": 1.0, "max_tokens": 20, "seed": 0}
    assert server.keys == [None] * 4


def test_questions_are_asked_at_once(server, judge, run):
    server.gate = threading.Barrier(4)  # no reply before all four have asked
    run(judge())
    assert len(server.asked) == 4


def test_nothing_is_asked_twice(server, judge, run, cell, tmp_path):
    run(judge())
    files = [(cell / "strict" / f).read_bytes() for f in ("outcomes.parquet", "scores.json")]
    run(judge(url="http://127.0.0.1:9/v1"))  # where it is asked changes no reply
    again = [(cell / "strict" / f).read_bytes() for f in ("outcomes.parquet", "scores.json")]
    assert files == again
    other = predict(tmp_path / "other" / "test" / "signs", {**ANSWERS, "b": "no"})
    run(judge(), other)  # another stage, of whose answers two are known
    assert Counter(map(prediction_in, server.asked)) == Counter(
        ["KLMN", "no", "PQR", "A B C", "ABC"]
    )
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize("changed", [{"sampling": {"seed": 1}}, {"protocol": "as-published"}])
def test_another_judge_is_asked_anew(server, judge, run, changed):
    run(judge())
    run(judge(**changed))
    assert server.asked.total() == 8


def test_a_torn_line_is_passed_over(server, judge, run, capsys):
    run(judge())
    path = Path("results/judgements/strict/signs.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    run(judge())
    assert server.asked.total() == 5
    assert "signs.jsonl: 1 broken lines" in capsys.readouterr().out
    lines = path.read_bytes().splitlines()
    assert len(lines) == 5
    assert sorted(lines[:3] + lines[4:]) == sorted(whole.splitlines())


def test_the_first_reply_counts(tmp_path):
    judgements = Judgements(tmp_path / "t.jsonl", OURS)
    judgements.append("a", "1")
    judgements.append("a", "2")
    judgements.append("b", "ünï\n")
    assert judgements.read(["a", "b", "c"]) == {"a": "1", "b": "ünï\n"}
    assert Judgements(tmp_path / "t.jsonl", "f" * 16).read(["a"]) == {}


def test_many_append_at_once(tmp_path):
    def append(name):
        for number in range(50):
            Judgements(tmp_path / "t.jsonl", OURS).append(f"{name}{number}", "x" * 5000)

    threads = [threading.Thread(target=append, args=name) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    judgements = Judgements(tmp_path / "t.jsonl", OURS)
    assert len(judgements.read([f"{name}{n}" for name in "abcd" for n in range(50)])) == 200
    assert judgements.broken == 0


JUDGING = """
import sys
from pathlib import Path
from palimpsest.config import Judge, Task, load
from palimpsest.data.shards import Shards
from palimpsest.judging.judge import judge_cells
cells = [(Path(sys.argv[1]), load(Task, "signs"), Shards(Path("data/signs"), "test"))]
judge_cells(cells, "strict", load(Judge, "strict"), sys.argv[2], Path("results"))
"""


def test_a_killed_job_goes_on_where_it_was(server, judge, run, cell):
    answered = threading.Semaphore(2)  # replies that the first job gets
    server.reply = lambda prompt: "8" if answered.acquire(timeout=30) else "late"
    configured = judge(asking=JUDGE["asking"] | {"concurrency": 1})
    job = subprocess.Popen([sys.executable, "-c", JUDGING, cell, OURS])
    path = Path("results/judgements/strict/signs.jsonl")
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert not (cell / "strict").exists()
    kept = path.read_bytes()
    server.reply = lambda prompt: "8"
    before = Counter(server.asked)
    answered.release(4)  # for the question that was under way
    run(configured)
    assert path.read_bytes().startswith(kept)
    assert (server.asked - before).total() == 2
    assert read_json(cell / "strict" / "scores.json")["value"] == 80.0


def busy(status, headers=None):
    return status, headers or {}, {"error": {"message": "one moment"}}


def test_a_busy_server_is_asked_again(server, judge, run, cell):
    server.first = [busy(429, {"Retry-After": "0.5"}), busy(503), busy(500)]
    run(judge(asking=JUDGE["asking"] | {"concurrency": 1, "attempts": 4}))
    assert server.asked.total() == 4
    assert server.times[1] - server.times[0] >= 0.5  # as long as it was told to wait
    assert read_json(cell / "strict" / "scores.json")["value"] == 80.0


def failing(run, judge, message):
    with pytest.raises(ValueError, match=message) as failure:
        run(judge)
    return str(failure.value)


def test_a_server_that_stays_broken_is_named(server, judge, run, cell):
    server.first = [busy(500)] * 100
    message = rf"{server.url}/chat/completions: no reply at attempt \d: HTTP 500 .*one moment"
    failing(run, judge(asking=JUDGE["asking"] | {"concurrency": 1}), message)
    assert server.bodies[:3] == [server.bodies[0]] * 3
    assert server.bodies[0] not in server.bodies[3:]
    assert not (cell / "strict").exists()


def test_what_was_replied_before_a_failure_is_kept(server, judge, run):
    refusals = iter(["8", "8"])
    server.reply = lambda prompt: next(refusals, None) or server.first.extend([busy(400)] * 9)
    configured = judge(asking=JUDGE["asking"] | {"concurrency": 1})
    failing(run, configured, "HTTP 400")
    server.first, server.reply = [], lambda prompt: "8"
    known = server.asked.total()
    run(configured)
    assert (known, server.asked.total()) == (3, 4)


def test_a_request_that_cannot_heal_stops_at_once(server, judge, run):
    server.first = [(404, {}, {"message": "The model `Judge-1B` does not exist."})] * 100
    failing(run, judge(), r"HTTP 404 Not Found: .*The model `Judge-1B` does not exist")
    assert len(server.bodies) <= 4  # those that were under way


def test_no_key_is_shown(server, judge, run, monkeypatch):
    failing(run, judge(api_key="OUR_KEY"), "set the environment variable OUR_KEY")
    monkeypatch.setenv("OUR_KEY", "sk-secret")
    server.first = [(401, {}, "Incorrect key: sk-secret")] * 4
    assert "sk-secret" not in failing(run, judge(api_key="OUR_KEY"), "HTTP 401 .*Incorrect key: …")


def test_a_wait_that_is_too_long_is_an_error(server, judge, run):
    server.first = [busy(429, {"Retry-After": "3600"})] * 4
    failing(run, judge(), r"asks to wait 3600 s \(HTTP 429 .*more than asking.longest_wait, 2 s")


def test_a_date_to_wait_for(server, judge, run):
    server.first = [busy(429, {"Retry-After": "Fri, 31 Dec 2199 23:59:59 GMT"})] * 4
    failing(run, judge(), r"asks to wait \d{10} s")


def test_what_is_no_completion_is_shown(server, judge, run):
    server.first = [(200, {}, "<html>Welcome to the hospital's network</html>")] * 4
    failing(run, judge(), "is no chat completion: <html>Welcome")


def test_a_server_that_is_not_there_is_named(judge, run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        failing(run, judge(url=url), rf"{url}/chat/completions: .*Connection refused")


def test_waits_grow_and_end_with_a_failure(server, judge, monkeypatch):
    """Back-off doubles up to the longest wait; threads that wait give up when one has failed."""
    waits = []

    class Stop:
        def wait(self, seconds):
            waits.append(seconds)
            return len(waits) == 6

    server.first = [busy(503)] * 100
    endpoint = Endpoint(judge(asking=JUDGE["asking"] | {"attempts": 99}), server.url)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    with pytest.raises(ValueError, match="no reply at attempt 6"):
        endpoint._ask("a", Stop())
    assert waits == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": None}, "an endpoint needs either `url` or `serving`"),
        ({"serving": {"command": "vllm --port {port}"}}, "an endpoint needs either `url`"),
        ({"kind": "local"}, "a local judge has neither `url`, `serving` nor"),
        (
            {"kind": "local", "url": None, "sampling": {"temperature": 0.7}},
            "a local judge is greedy: sampling.temperature must be 0",
        ),
        ({"serving": {"command": "vllm serve"}}, r"strict.yaml: serving.command: .*\{port\}"),
        (
            {"serving": {"command": "vllm {port} {modle}"}},
            r"there is no placeholder 'modle', did you mean 'model'\?",
        ),
        ({"url": "127.0.0.1:8000"}, r"strict.yaml: url: "),
        ({"sampling": {"temprature": 0}}, "sampling.temprature: unknown key, did you mean"),
    ],
)
def test_a_wrong_judge_is_refused(judge, settings, message):
    with pytest.raises(ValueError, match=message):
        judge(**settings)


def test_the_shipped_judges_are_valid():
    root = Path(__file__).parents[2] / "config"
    judges = {p.stem: load(Judge, p.stem, root) for p in (root / "judges").glob("*.yaml")}
    assert {j.protocol for j in judges.values()} == {"as-published", "corrected"}
    assert len({j.fingerprint for j in judges.values()}) == len(judges)
