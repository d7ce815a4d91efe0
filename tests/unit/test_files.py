"""Files are whole or absent, also when their writer is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.files import (
    canonical_json,
    fingerprint,
    read_json,
    sha256,
    whole_directory,
    whole_file,
    write_json,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from palimpsest.files import {function} as whole
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
with whole(Path(sys.argv[1])) as partial:
    target = partial / "part" if {function!r} == "whole_directory" else partial
    target.write_text("half")
    os.kill(os.getpid(), signal.{signal})
"""


@pytest.mark.parametrize("function", ["whole_file", "whole_directory"])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
@pytest.mark.parametrize("existed", [False, True])
def test_a_killed_writer_leaves_what_was_there(tmp_path, function, name, existed):
    path = tmp_path / "out"
    if existed:
        with {"whole_file": whole_file, "whole_directory": whole_directory}[function](path) as new:
            (new if function == "whole_file" else new / "old").write_text("old")
    code = KILLED.format(function=function, signal=name)
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True)
    assert run.returncode == -getattr(signal, name)
    assert path.exists() == existed
    if existed:
        assert (path if function == "whole_file" else path / "old").read_text() == "old"
    if name == "SIGINT":
        assert [p.name for p in tmp_path.iterdir()] == ["out"] * existed


@pytest.mark.parametrize("whole", [whole_file, whole_directory])
def test_a_writer_that_fails_leaves_nothing(tmp_path, whole):
    def write():
        with whole(tmp_path / "a" / "out") as partial:
            (partial if whole is whole_file else partial / "part").write_text("half")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    for name in ("first", "second"):
        with whole_directory(tmp_path / "out") as partial:
            (partial / "deep").mkdir()
            (partial / "deep" / name).write_text(name)
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["second"]
    assert os.listdir(tmp_path) == ["out"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=5))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(value):
    turned = dict(reversed(value.items()))
    assert fingerprint(turned) == fingerprint(value)
    assert json.loads(canonical_json(value)) == value


def test_a_fingerprint_depends_on_every_value():
    one = {"a": {"b": [1, 2]}}
    assert fingerprint(one) != fingerprint({"a": {"b": [2, 1]}})
    assert fingerprint(one) == "df54656ce9ea4120"  # as in earlier versions: stages are known by it


def test_json_is_read_back_and_broken_json_is_named(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match=r"a\.json: file is missing"):
        read_json(path)
    write_json(path, {"ü": [1, None]})
    assert read_json(path) == {"ü": [1, None]}
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON"):
        read_json(path)


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")
