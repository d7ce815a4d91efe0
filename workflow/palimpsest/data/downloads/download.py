"""One download, of any kind, up to its `download.json`.

That is written last, and says what was fetched, from where and when: without it there is no
download.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from palimpsest.data.downloads.fetch import fetch
from palimpsest.data.downloads.settings import Download
from palimpsest.data.downloads.unpack import unpack
from palimpsest.files import read_json, write_json


def download(name: str, config: Download, out: Path) -> None:
    """Fetch what a config describes into `out`, or say what the user has to put there.

    An attempt that was broken off is gone on from. What is whole already, by the same config, is
    left as it is.

    ValueError if a server refuses, a checksum differs, files are missing in the end, or `out` holds
    what another config had fetched.
    """
    record = out / "download.json"
    if record.exists() and read_json(record)["recipe"] == config.recipe:
        print(f"{name}: is in {out} already")
        return
    record.unlink(missing_ok=True)
    if config.kind in REMOTE:
        _claim(out, config.recipe)
    out.mkdir(parents=True, exist_ok=True)
    fetched = KINDS[config.kind](config, out)
    if missing := missing_files(config, out):
        raise ValueError(_missing(name, config, out, missing))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(record, {"name": name, "recipe": config.recipe, **fetched, "date": date})
    print(f"{name}: is in {out} ({config.licence})")


def missing_files(config: Download, out: Path) -> list[str]:
    """Return the patterns of a config that no file meets."""
    return [pattern for pattern in config.files if next(out.glob(pattern), None) is None]


def _claim(out: Path, recipe: dict[str, Any]) -> None:
    """Say by what recipe the files come, so that those of two are never taken for one."""
    claim = out / ".recipe.json"
    if claim.exists() and read_json(claim) != recipe:
        raise ValueError(f"{out}: holds files by another config; remove it to fetch them anew")
    write_json(claim, recipe)


def _hub(config: Download, out: Path) -> dict[str, Any]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    where = f"{config.repo} at {config.revision}"
    kind = {"repo_type": config.repo_type}
    try:
        commit = HfApi().repo_info(config.repo, revision=config.revision, **kind).sha
        snapshot_download(
            config.repo, revision=commit, allow_patterns=list(config.files) or None,
            local_dir=out, **kind,
        )  # fmt: skip
    except GatedRepoError as error:
        raise ValueError(f"{where}: accept its licence on the hub, then `hf auth login`: {error}")\
            from None  # fmt: skip
    except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        raise ValueError(f"{where}: {error}") from None
    return {"commit": commit}


def _archive(config: Download, out: Path) -> dict[str, Any]:
    archive = out / _base_name(config.url)
    # A copy that the user had and put or linked here need not be fetched a second time.
    begun = archive.exists() or archive.with_name(f"{archive.name}.partial").exists()
    if config.files and not begun and not missing_files(config, out):
        return {"found": "the files were there and were not compared with the publisher's"}
    found = fetch(config.url, archive, config.bytes, config.sha256)
    size = archive.stat().st_size
    count = unpack(archive, config.unpack, out)
    archive.unlink()
    return {"sha256": found, "bytes": size, "files": count}


def _file(config: Download, out: Path) -> dict[str, Any]:
    path = out / _base_name(config.url)
    found = fetch(config.url, path, config.bytes, config.sha256)
    return {"file": path.name, "sha256": found, "bytes": path.stat().st_size}


def _manual(config: Download, out: Path) -> dict[str, Any]:
    return {"found": {p: sum(1 for _ in out.glob(p)) for p in config.files}}


def _generated(config: Download, out: Path) -> dict[str, Any]:
    shutil.rmtree(out)
    out.mkdir()
    import_module(f"palimpsest.{config.generator}").generate(out, config.seed)
    return {"bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file())}


REMOTE = {"hub", "archive", "file"}
KINDS = {
    "hub": _hub,
    "archive": _archive,
    "file": _file,
    "manual": _manual,
    "generated": _generated,
}


def _missing(name: str, config: Download, out: Path, missing: list[str]) -> str:
    lines = [f"{name}: missing below {out}: {', '.join(missing)}"]
    if config.kind == "manual":
        lines += [
            f"{config.title} cannot be fetched for you; about {config.size}.",
            config.instructions.strip(),
            f"Licence: {config.licence}",
            f"Then run `palimpsest download {name}` again.",
        ]
    return "\n".join(lines)


def _base_name(url: str) -> str:
    return Path(unquote(urlsplit(url).path)).name
