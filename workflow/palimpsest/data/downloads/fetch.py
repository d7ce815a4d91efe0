"""A file behind a URL -> a file on disk, over connections that break."""

from __future__ import annotations

import errno
import os
import re
import time
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from palimpsest import files

CHUNK = 2**20  # bytes
TIMEOUT = 60  # seconds without a byte
PATIENCE = 8  # attempts in a row that bring nothing
PAUSE, LONGEST_PAUSE = 1.0, 120.0  # seconds; doubled with every attempt that brings nothing
PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that go by


def fetch(url: str, path: Path, size: int | None = None, sha256: str | None = None) -> str:
    """Bring what is behind a URL to `path` and return its SHA-256.

    What an earlier attempt brought stays in `<path>.partial` and is gone on from, if the server
    can and still has the same file (RFC 9110, sections 13.1.5 and 14). A cut connection and a
    server that is busy are tried again, with growing pauses.

    ValueError if the server refuses, nothing comes in the end, or size or checksum is another than
    the one given.
    """
    partial = path.with_name(f"{path.name}.partial")
    if not path.exists():
        _bring(url, partial)
    whole = path if path.exists() else partial
    found = files.sha256(whole)
    bytes_found = whole.stat().st_size
    if (size is not None and bytes_found != size) or (sha256 is not None and found != sha256):
        _forget(partial)
        path.unlink(missing_ok=True)
        raise ValueError(
            f"{url}: brought {bytes_found} bytes with SHA-256 {found}; expected are "
            f"{size or 'any number of'} bytes with SHA-256 {sha256 or 'of any value'}. "
            "The file was removed. If its publisher changed it, change the download's config"
        )
    if whole is partial:
        os.replace(partial, path)
        _forget(partial)
    return found


def _bring(url: str, partial: Path) -> None:
    """Attempt until the file is whole."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _size(partial)
        pause = None
        try:
            if _attempt(url, partial):
                return
            reason = "the connection was cut"
        except HTTPError as error:
            reason = f"{error.code} {error.reason}"
            if error.code not in PASSING:
                raise ValueError(f"{url}: the server answers {reason}") from None
            pause = error.headers.get("Retry-After")
        except (OSError, HTTPException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = str(error) or type(error).__name__
        failures = 0 if _size(partial) > before else failures + 1
        if failures == PATIENCE:
            raise ValueError(
                f"{url}: nothing came in {PATIENCE} attempts ({reason}); {before} bytes are kept "
                f"in {partial}, the next attempt goes on from there"
            )
        seconds = float(pause) if pause and pause.isdigit() else PAUSE * 2**failures
        print(f"{url}: {reason}; again from byte {_size(partial)}", flush=True)
        time.sleep(min(seconds, LONGEST_PAUSE))


def _attempt(url: str, partial: Path) -> bool:
    """Append what one connection brings; return whether the file is whole then."""
    start = _size(partial)
    headers = {"User-Agent": "palimpsest"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if _mark(partial).exists():
            headers["If-Range"] = _mark(partial).read_text()
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:
            raise
        if _range(error.headers) == (None, start):
            return True
        _forget(partial)  # longer than the server's file: of another one
        return False
    with response:
        first, total = _range(response.headers) if response.status == 206 else (0, None)
        if first not in (0, start):
            _forget(partial)
            return False
        if total is None and (length := response.headers.get("Content-Length")):
            total = first + int(length)
        if first == 0:
            _remember(partial, response.headers)
        with (
            partial.open("ab" if first else "wb") as file,
            tqdm(
                desc=partial.stem, initial=first, total=total, unit="B", unit_scale=True,
                unit_divisor=1024, disable=None,
            ) as bar,
        ):  # fmt: skip
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(partial) == total


def _range(headers: Message) -> tuple[int | None, int | None]:
    """Return the first byte and the whole file's size of a Content-Range, each if it is said."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", ""))
    first, total = found.groups() if found else (None, None)
    return first and int(first), None if total in (None, "*") else int(total)


def _remember(partial: Path, headers: Message) -> None:
    """Keep what the file is known by, so that two files are never joined into one."""
    tag = headers.get("ETag", "")
    strong = tag and not tag.startswith("W/")
    validator = tag if strong else headers.get("Last-Modified")
    if validator:
        _mark(partial).write_text(validator)
    else:
        _mark(partial).unlink(missing_ok=True)


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _mark(partial).unlink(missing_ok=True)


def _mark(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.tag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
