"""A judge's server that is started when it is needed, and ends when it is not."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import chat_server
from palimpsest.config import Judge, load
from palimpsest.files import read_json, write_json
from palimpsest.judging import serving
from palimpsest.judging.endpoint import Endpoint, is_up
from palimpsest.lock import Held

PYTHON = shlex.quote(sys.executable)
JUDGE = {
    "title": "A judge",
    "kind": "endpoint",
    "model": "Judge-1B",
    "protocol": "corrected",
    "serving": {
        "command": f"{PYTHON} {chat_server.__file__} --port {{port}}",
        "start_minutes": 1,
        "idle_minutes": 10,
    },
    "resources": {"gpus": 2, "cores": 4, "memory_mb": 100, "minutes": 7},
}
RESULTS = Path("results")
PLACE = RESULTS / "judges" / "strict"
LOG = RESULTS / "logs" / "judges" / "strict.log"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Look often, outside Slurm."""
    monkeypatch.setattr(serving, "POLL", 0.05)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.fixture
def judge(workplace):
    """Return the judge `strict`, with values of `serving`; what it starts ends with the test."""

    def configured(**values) -> Judge:
        workplace.write("judges/strict", {**JUDGE, "serving": JUDGE["serving"] | values})
        return load(Judge, "strict")

    yield configured
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(workplace.root) and process.pid != os.getpid():
            process.kill()


def wait_until(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def serve(judge: Judge) -> psutil.Process:
    """Start `palimpsest serve` and wait until its server answers."""
    process = psutil.Popen([sys.executable, "-m", "palimpsest.cli", "serve", "strict"])
    wait_until(lambda: (PLACE / "endpoint.json").exists() or process.poll() is not None)
    assert process.poll() is None
    return process


def test_the_first_who_asks_starts_a_server(judge):
    found, strict = [], judge()
    askers = [
        threading.Thread(target=lambda: found.append(serving.find("strict", strict, RESULTS)))
        for _ in range(3)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(found) == 3
    assert found == [read_json(PLACE / "endpoint.json")["url"]] * 3
    assert LOG.read_text().count("chat_server.py --port") == 1
    endpoint = Endpoint(strict, found[0], PLACE / serving.USED)
    os.utime(PLACE / serving.USED, (0, 0))
    assert list(endpoint.replies(["a"])) == [("a", chat_server.rating("a"))]
    assert time.time() - (PLACE / serving.USED).stat().st_mtime < 60


def test_it_ends_when_nobody_asks(judge):
    process = serve(judge(idle_minutes=0.02))
    [server] = process.children()
    url = read_json(PLACE / "endpoint.json")["url"]
    assert process.wait(60) == 0
    assert not server.is_running()
    assert not (PLACE / "endpoint.json").exists()
    assert not is_up(url)
    assert serving.find("strict", judge(), RESULTS) != url  # and another is started


def test_it_stays_while_it_is_needed(judge):
    process = serve(judge(idle_minutes=0.05))
    for _ in range(20):
        (PLACE / serving.USED).touch()
        time.sleep(0.2)
    assert process.poll() is None


def test_one_at_a_time(judge, monkeypatch):
    monkeypatch.setattr("palimpsest.lock.PATIENCE", 0.0)
    serve(judge())
    with pytest.raises(Held):
        serving.serve("strict", judge(), RESULTS)


def test_a_signal_ends_the_server_too(judge):
    process = serve(judge())
    [server] = process.children()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not server.is_running()
    assert not (PLACE / "endpoint.json").exists()


def test_a_server_that_was_killed_is_replaced(judge):
    process = serve(judge())
    first = read_json(PLACE / "endpoint.json")
    for killed in [*process.children(), process]:
        killed.kill()
    process.wait()
    write_json(PLACE / "endpoint.json", first)  # of a killed job it stays
    second = serving.find("strict", judge(), RESULTS)
    assert second != first["url"]
    assert is_up(second)


def test_one_that_is_about_to_end_is_replaced(judge):
    configured, used, found = judge(), PLACE / serving.USED, []
    process = serve(configured)
    (PLACE / "endpoint.json").unlink()
    os.utime(used, (0, 0))
    asker = threading.Thread(
        target=lambda: found.append(serving.find("strict", configured, RESULTS))
    )
    asker.start()
    wait_until(lambda: used.stat().st_mtime > 0)  # it has begun to wait
    process.terminate()
    asker.join()
    assert is_up(found[0])


def test_a_server_that_cannot_start_is_shown(judge):
    command = f"{PYTHON} -c \"print('no such model, port {{port}}'); raise SystemExit(3)\""
    with pytest.raises(ValueError, match=r"ended before it answered") as failure:
        serving.find("strict", judge(command=command), RESULTS)
    assert "no such model" in str(failure.value)
    assert "the server has ended, with code 3" in str(failure.value)


def test_a_server_that_never_answers(judge):
    deaf = judge(command=f"{PYTHON} -c 'import time; time.sleep({{port}})'", start_minutes=0.02)
    with pytest.raises(ValueError, match=r"has not answered within 0.02 minutes"):
        serving.find("strict", deaf, RESULTS)


def test_a_judge_without_a_server(workplace):
    rest = {key: value for key, value in JUDGE.items() if key != "serving"}
    workplace.write("judges/strict", {**rest, "url": "http://127.0.0.1:8000/v1"})
    with pytest.raises(ValueError, match="judge strict has no `serving`"):
        serving.serve("strict", load(Judge, "strict"), RESULTS)


SBATCH = """#!/bin/sh
printf '%s\\n' "$@" > sbatch.txt
env | grep '^SLURM_' > environment.txt
echo "77;cluster"
"""
SQUEUE = """#!/bin/sh
case "$*" in *%a*) echo 'lab|cpu' ;; *) cat state.txt ;; esac
"""


@pytest.fixture
def slurm(workplace, monkeypatch):
    """Stand-ins for sbatch and squeue: job 77 is pending until state.txt says something else."""
    bin = workplace.root / "bin"
    bin.mkdir()
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": "#!/bin/sh\n"}.items():
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    Path("state.txt").write_text("PENDING\n")


def test_on_a_cluster_the_server_is_a_job(judge, slurm):
    waiting = judge(start_minutes=0.01)
    with pytest.raises(ValueError, match=r"\{'job': '77'\}\) has not answered within 0.01 min"):
        serving.find("strict", waiting, RESULTS, "--partition=gpu --constraint=a100")
    options = Path("sbatch.txt").read_text().splitlines()
    assert {
        "--parsable", "--cpus-per-task=4", "--mem=100", "--time=7", "--gpus=2", "--nodes=1",
        "--no-requeue",
        "--account=lab", "--constraint=a100", f"--output={LOG}",
    } <= set(options)  # fmt: skip
    partitions = [option for option in options if option.startswith("--partition")]
    assert partitions == ["--partition=cpu", "--partition=gpu"]  # the last one holds
    assert options[-1] == f"--wrap=exec {PYTHON} -m palimpsest.cli serve strict"
    assert Path("environment.txt").read_text() == "SLURM_CONF=/etc/slurm.conf\n"


def test_a_job_that_waits_in_the_queue_is_waited_for(judge, slurm):
    with pytest.raises(ValueError, match="has not answered"):
        serving.find("strict", judge(start_minutes=0.01), RESULTS)
    Path("sbatch.txt").unlink()
    with pytest.raises(ValueError, match="has not answered"):
        serving.find("strict", judge(start_minutes=0.01), RESULTS)
    assert not Path("sbatch.txt").exists()
    Path("state.txt").write_text("FAILED\n")
    with pytest.raises(ValueError, match="has not answered"):
        serving.find("strict", judge(start_minutes=1e-6), RESULTS)
    assert Path("sbatch.txt").exists()


def test_a_job_that_ended_at_once_is_an_error(judge, slurm):
    Path("state.txt").write_text("FAILED\n")
    with pytest.raises(ValueError, match=r"ended before it answered:\n.*there is no log"):
        serving.find("strict", judge(), RESULTS)


def test_what_sbatch_refuses_is_told(judge, slurm, workplace):
    (workplace.root / "bin" / "sbatch").write_text("#!/bin/sh\necho 'no such account' >&2\nexit 1")
    with pytest.raises(ValueError, match="strict cannot be submitted: no such account"):
        serving.find("strict", judge(), RESULTS)
