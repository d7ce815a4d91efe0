"""An archive -> its files, none outside the directory, going on where it was broken off."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

from tqdm import tqdm

Member = tuple[str, int, Callable[[], IO[bytes]]]  # name, bytes, and how it is opened
BROKEN = (zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError)
BROKEN += (EOFError, zlib.error, lzma.LZMAError)
CHUNK = 2**20  # bytes


def unpack(archive: Path, kind: str, out: Path) -> int:
    """Unpack a zip or tar file (compressed or not) below `out`; return its number of files.

    A file that is there with its whole size is taken as unpacked: each is renamed into its place
    when it is written.

    ValueError if the archive is truncated or damaged (it is removed then), or holds a link or a
    path that leads out of `out`.
    """
    members = {"zip": _zipped, "tar": _tarred}[kind]
    count = 0
    try:
        with closing(members(archive)) as found:
            for name, size, opened in tqdm(found, desc="unpack", unit=" files", disable=None):
                _write(_inside(out, name, archive), size, opened)
                count += 1
    except BROKEN as error:
        archive.unlink()
        raise ValueError(
            f"{archive}: truncated, damaged or no {kind} file ({error}); it was removed: "
            "fetch it again"
        ) from None
    os.sync()
    return count


def _zipped(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(f"{archive}: {info.filename!r} is a link; nothing follows it")
            if not info.is_dir():
                yield info.filename, info.file_size, lambda info=info: file.open(info)


def _tarred(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as file:
        while file.fileobj.read(CHUNK):  # the checksum of a compressed archive stands at its end
            pass
    with tarfile.open(archive) as file:
        for info in file:
            if not (info.isfile() or info.isdir()):
                raise ValueError(f"{archive}: {info.name!r} is a link; nothing follows it")
            if info.isfile():
                yield info.name, info.size, lambda info=info: file.extractfile(info)


def _inside(out: Path, name: str, archive: Path) -> Path:
    if name.startswith(("/", "\\")) or ".." in Path(name).parts or "\0" in name:
        raise ValueError(f"{archive}: {name!r} leads out of {out}; the archive is not trusted")
    return out / name


def _write(path: Path, size: int, opened: Callable[[], IO[bytes]]) -> None:
    if path.exists() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with opened() as source, partial.open("wb") as sink:
        shutil.copyfileobj(source, sink, CHUNK)
    os.replace(partial, path)
