"""Downloads arrive whole, over connections that break and servers that cannot do everything."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from palimpsest.config import Download, load
from palimpsest.data.downloads import fetch as fetching
from palimpsest.data.downloads.download import download
from palimpsest.data.downloads.fetch import fetch
from palimpsest.data.downloads.unpack import unpack
from palimpsest.files import read_json
from palimpsest.refusal import ConfigError

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; `script` is what it does with each request, the last for ever."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.script, self.asked = CONTENT, '"one"', ["whole"], []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/a%20file.bin"


class Handler(BaseHTTPRequestHandler):
    """`whole`, `cut`, `no range`, `wrong range`, `no length`, or a status."""

    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers.get("Range"))
        act = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        if act.isdigit():
            self.send_response(int(act))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(act)

    def _send(self, act: str) -> None:
        content, start = self.server.content, 0
        asked = self.headers.get("Range")
        same = self.headers.get("If-Range") in (None, self.server.tag)
        if asked and same and act not in ("no range", "no length"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        said = start - 1 if act == "wrong range" else start
        self.send_response(206 if start else 200)
        if start:
            said = f"bytes {said}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", said)
        if act != "no length":
            self.send_header("Content-Length", str(len(content) - start))
        if self.server.tag:
            self.send_header("ETag", self.server.tag)
        self.end_headers()
        end = start + (len(content) - start) // 2 if act == "cut" else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    """A server that a test tells what to do."""
    monkeypatch.setattr(fetching, "PAUSE", 0.001)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(
    ("script", "requests"),
    [
        (["whole"], [None]),
        (["cut", "whole"], [None, "bytes=256000-"]),
        (["cut", "cut", "cut", "whole"], [None, "bytes=256000-", "bytes=384000-", "bytes=448000-"]),
        (["503", "429", "whole"], [None, None, None]),
        (["cut", "503", "whole"], [None, "bytes=256000-", "bytes=256000-"]),
        (["cut", "no range"], [None, "bytes=256000-"]),
        (["cut", "no length"], [None, "bytes=256000-"]),
        (["cut", "wrong range", "whole"], [None, "bytes=256000-", None]),
    ],
)
def test_a_file_arrives_whole(server, tmp_path, script, requests):
    server.script = script
    path = tmp_path / "new" / "file.bin"
    assert fetch(server.url, path, len(CONTENT), SHA256) == SHA256
    assert path.read_bytes() == CONTENT
    assert server.asked == requests
    assert leftovers(path.parent) == ["file.bin"]


@pytest.mark.parametrize("tag", ['"one"', None])
def test_the_next_process_goes_on(server, tmp_path, tag, monkeypatch):
    monkeypatch.setattr(fetching, "PATIENCE", 1)
    server.tag, server.script = tag, ["cut", "503"]
    path = tmp_path / "file.bin"
    with pytest.raises(ValueError, match=r"in 1 attempts \(503 .*256000 bytes are kept"):
        fetch(server.url, path)
    assert not path.exists()
    server.script = ["whole"]
    assert fetch(server.url, path) == SHA256
    assert server.asked[-1] == "bytes=256000-"


def test_two_files_are_never_joined(server, tmp_path):
    server.script = ["cut"]
    path = tmp_path / "file.bin"
    fetching._attempt(server.url, tmp_path / "file.bin.partial")
    server.script, server.tag, server.content = ["whole"], '"two"', CONTENT[::-1]
    fetch(server.url, path)
    assert path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("have", [CONTENT, CONTENT + b"more"])
def test_a_partial_file_that_is_whole_or_too_long(server, tmp_path, have):
    (tmp_path / "file.bin.partial").write_bytes(have)
    fetch(server.url, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("expected", [{"size": 511_999}, {"sha256": "0" * 64}])
def test_another_size_or_checksum_is_refused(server, tmp_path, expected):
    with pytest.raises(ValueError, match=f"brought 512000 bytes with SHA-256 {SHA256}; expected"):
        fetch(server.url, tmp_path / "file.bin", **expected)
    assert leftovers(tmp_path) == []


def test_what_is_not_there_is_told_at_once(server, tmp_path):
    server.script = ["404"]
    with pytest.raises(ValueError, match=r"a%20file\.bin: the server answers 404 Not Found"):
        fetch(server.url, tmp_path / "file.bin")
    assert len(server.asked) == 1


def test_a_server_that_is_away_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PAUSE", 0)
    with pytest.raises(ValueError, match=r"nothing came in 8 attempts .*refused"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file")


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


FILES = {f"train/{n}.jpg": os.urandom(500) for n in range(20)} | {"readme.txt": b"", "a/b": b"c"}
MAKE = {"zip": zipped, "tar": tarred}


@pytest.mark.parametrize("kind", MAKE)
def test_an_archive_is_unpacked_and_gone_on_with(tmp_path, kind):
    archive = tmp_path / "archive"
    archive.write_bytes(MAKE[kind](FILES))
    assert unpack(archive, kind, tmp_path / "out") == len(FILES)
    old = (tmp_path / "out/train/0.jpg").stat().st_mtime_ns
    (tmp_path / "out/train/1.jpg").write_bytes(b"broken off")
    (tmp_path / "out/a/b").unlink()
    unpack(archive, kind, tmp_path / "out")
    for name, content in FILES.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert (tmp_path / "out/train/0.jpg").stat().st_mtime_ns == old


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_noticed(tmp_path, kind, share):
    archive = tmp_path / "archive"
    content = MAKE[kind](FILES)
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="archive: truncated, damaged or no"):
        unpack(archive, kind, tmp_path / "out")
    assert not archive.exists()


@pytest.mark.parametrize("kind", MAKE)
def test_damage_inside_an_archive_is_noticed(tmp_path, kind):
    content = bytearray(MAKE[kind](FILES))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(ValueError, match="truncated, damaged or no"):
        unpack(tmp_path / "archive", kind, tmp_path / "out")


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_no_file_leads_out(tmp_path, kind, name):
    (tmp_path / "archive").write_bytes(MAKE[kind]({name: b"x"}))
    with pytest.raises(ValueError, match=r"leads out of .*the archive is not trusted"):
        unpack(tmp_path / "archive", kind, tmp_path / "out")
    assert leftovers(tmp_path) == ["archive"]


def test_no_link_is_followed(tmp_path):
    with tarfile.open(tmp_path / "tar", "w") as archive:
        info = tarfile.TarInfo("out")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(info)
    info = zipfile.ZipInfo("out")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr(info, "/etc")
    for kind in MAKE:
        with pytest.raises(ValueError, match="'out' is a link"):
            unpack(tmp_path / kind, kind, tmp_path / "out")


WHO = {"title": "T", "licence": "CC0", "size": "1 MB"}


def test_an_archive_becomes_a_download(server, tmp_path, capsys):
    server.content, server.script = zipped(FILES), ["cut", "whole"]
    config = Download(
        kind="archive", url=server.url, unpack="zip", files=("train/*.jpg",), **WHO
    )  # fmt: skip
    download("pictures", config, tmp_path / "pictures")
    record = read_json(tmp_path / "pictures" / "download.json")
    assert record["name"] == "pictures"
    assert record["sha256"] == hashlib.sha256(server.content).hexdigest()
    assert (record["bytes"], record["files"]) == (len(server.content), len(FILES))
    assert record["recipe"]["url"] == server.url
    assert leftovers(tmp_path / "pictures") == [
        ".recipe.json", "a", "download.json", "readme.txt", "train",
    ]  # fmt: skip
    requests = len(server.asked)
    download("pictures", config, tmp_path / "pictures")
    assert "is in" in capsys.readouterr().out
    assert len(server.asked) == requests


def test_an_archive_without_what_it_should_hold(server, tmp_path):
    server.content = zipped(FILES)
    config = Download(kind="archive", url=server.url, unpack="zip", files=("val/*.jpg",), **WHO)
    with pytest.raises(ValueError, match=r"missing below .*pictures: val/\*\.jpg"):
        download("pictures", config, tmp_path / "pictures")
    assert not (tmp_path / "pictures" / "download.json").exists()


def test_what_the_user_has_is_not_fetched(server, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/1.jpg").write_bytes(b"x")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/train").symlink_to(tmp_path / "mine")
    config = Download(kind="archive", url=server.url, unpack="zip", files=("train/*.jpg",), **WHO)
    download("pictures", config, tmp_path / "pictures")
    assert not server.asked
    assert "not compared" in read_json(tmp_path / "pictures/download.json")["found"]


def test_a_file_becomes_a_download(server, tmp_path):
    config = Download(kind="file", url=server.url, sha256=SHA256, bytes=len(CONTENT), **WHO)
    download("answers", config, tmp_path)
    assert (tmp_path / "a file.bin").read_bytes() == CONTENT
    assert read_json(tmp_path / "download.json")["file"] == "a file.bin"


def test_files_of_two_recipes_are_never_taken_for_one(server, tmp_path):
    config = Download(kind="file", url=server.url, **WHO)
    download("answers", config, tmp_path)
    download("answers", config.model_copy(update={"title": "Another"}), tmp_path)
    assert len(server.asked) == 1
    other = Download(kind="file", url=f"{server.url}?v=2", **WHO)
    for _ in range(2):  # a workflow removes the record before it runs the job
        with pytest.raises(ValueError, match="holds files by another config; remove it"):
            download("answers", other, tmp_path)
        assert not (tmp_path / "download.json").exists()


def test_what_is_put_by_hand(tmp_path):
    config = Download(
        kind="manual", files=("val/*.JPEG", "labels.txt"), instructions="Ask Alice.", **WHO
    )  # fmt: skip
    with pytest.raises(ValueError, match="birds: missing below") as refused:
        download("birds", config, tmp_path)
    for said in (
        "val/*.JPEG, labels.txt",
        "Ask Alice.",
        "CC0",
        "1 MB",
        "palimpsest download birds",
    ):
        assert said in str(refused.value)
    (tmp_path / "val").mkdir()
    (tmp_path / "val/1.JPEG").touch()
    with pytest.raises(ValueError, match=r"missing below .*: labels\.txt"):
        download("birds", config, tmp_path)
    (tmp_path / "labels.txt").touch()
    download("birds", config, tmp_path)
    assert read_json(tmp_path / "download.json")["found"] == {"val/*.JPEG": 1, "labels.txt": 1}


def test_what_is_generated(tmp_path):
    config = Download(kind="generated", generator="data.miniatures.coin", seed=3, **WHO)
    (tmp_path / "old").touch()
    download("mini", config, tmp_path)
    assert leftovers(tmp_path) == [
        "Instructions_10Type", "Instructions_Diverse", "Instructions_Original",
        "cl_dataset", "download.json",
    ]  # fmt: skip


def test_a_snapshot_of_the_hub_is_pinned_to_its_commit(tmp_path, monkeypatch):
    import huggingface_hub

    class Api:
        def repo_info(self, repo, revision, repo_type):
            assert (repo, revision, repo_type) == ("a/b", "main", "dataset")
            return type("Info", (), {"sha": "c" * 40})

    def snapshot_download(repo, revision, repo_type, allow_patterns, local_dir):
        assert (repo, revision, repo_type) == ("a/b", "c" * 40, "dataset")
        assert allow_patterns == ["x/*.json"]
        (local_dir / "x").mkdir()
        (local_dir / "x" / "a.json").touch()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    config = Download(kind="hub", repo="a/b", revision="main", files=("x/*.json",), **WHO)
    download("b", config, tmp_path)
    assert read_json(tmp_path / "download.json")["commit"] == "c" * 40


def test_a_hub_that_cannot_be_reached_is_told_in_a_line(tmp_path):
    config = Download(kind="hub", repo="a/b", revision="main", **WHO)
    with pytest.raises(ValueError, match=r"a/b at main: .*offline"):
        download("b", config, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": None}, "kind 'archive' needs url"),
        ({"repo": "a/b"}, "kind 'archive' takes no repo"),
        ({"sha256": "abc"}, "sha256: found 'abc'"),
        ({"kind": "torrent"}, "kind: found 'torrent'"),
        ({"kind": "generated", "generator": "data.nothing"}, "no module palimpsest.data.nothing"),
    ],
)
def test_a_wrong_config_is_refused(workplace, change, message):
    content = {"kind": "archive", "url": "http://x/y.zip", "unpack": "zip", **WHO} | change
    workplace.write("downloads/y", {k: v for k, v in content.items() if v is not None})
    with pytest.raises(ConfigError, match=message):
        load(Download, "y")
