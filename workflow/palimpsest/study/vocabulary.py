"""The concepts by which a method knows what is to be refused: of a file here, or CORE's own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from palimpsest.config import CONFIG, Described, Method, Task, Vocabulary, load
from palimpsest.files import read_json
from palimpsest.refusal import ConfigError


class _Record(BaseModel):
    """A keyword in CORE's All_concepts_image.json or All_concepts_inst.json."""

    keyword: str
    descriptions: tuple[str, ...]


def fetched(method: Method) -> tuple[str, ...]:
    """Return the downloads that have the concepts of a method; none if they are of a file here."""
    name = getattr(method.router, "described", None)
    files = load(Vocabulary, name).files if name else None
    return files.downloads if files else ()


def described(method: Method) -> dict[str, Described]:
    """Return the concepts of every keyword that a method knows of; none if it names no file."""
    name = getattr(method.router, "described", None)
    return vocabulary(name) if name else {}


@cache
def vocabulary(name: str) -> dict[str, Described]:
    """Return the concepts of config/concepts/<name>.yaml by keyword.

    Errors: ConfigError if it names files that are not there, or not as CORE releases them.
    """
    found, where = load(Vocabulary, name), f"{CONFIG}/concepts/{name}.yaml: files"
    if found.files is None:
        return dict(found.model_extra)
    image, text = (_released(path, where) for path in (found.files.image, found.files.text))
    if odd := image.keys() ^ text.keys():
        raise ConfigError(f"{where}: only one of the two describes keyword {min(odd)!r}")
    return {keyword: Described(image=image[keyword], text=text[keyword]) for keyword in image}


def keywords_of(task: str) -> tuple[str, ...]:
    """Return what a task's pictures are about, as far as its config says so by `keywords`."""
    return tuple(load(Task, task).source.get("keywords", ()))


def _released(path: str, where: str) -> dict[str, tuple[str, ...]]:
    """Read a file of CORE: a list of keywords with twenty texts each."""
    if not Path(path).is_file():
        fetched = f"`palimpsest download {Path(path).parent.name}` fetches it"
        raise ConfigError(f"{where}: {path} is missing; {fetched}")
    try:
        records = TypeAdapter(list[_Record]).validate_python(read_json(Path(path)))
    except (ValidationError, ValueError) as error:
        raise ConfigError(f"{where}: {path} is not as CORE releases it: {error}") from None
    return {record.keyword: record.descriptions for record in records}
