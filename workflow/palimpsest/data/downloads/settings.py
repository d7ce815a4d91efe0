"""What a file of config/downloads/ says: one thing to fetch, from where, under what licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PACKAGE = Path(__file__).parents[2]

ALWAYS = {"title", "kind", "licence", "size"}
# The keys that a kind needs, and those that it takes besides.
KEYS: dict[str, tuple[set[str], set[str]]] = {
    "hub": ({"repo", "revision"}, {"repo_type", "files"}),
    "archive": ({"url", "unpack"}, {"sha256", "bytes", "files"}),
    "file": ({"url"}, {"sha256", "bytes"}),
    "manual": ({"instructions", "files"}, set()),
    "generated": ({"generator"}, {"seed"}),
}


class Download(BaseModel):
    """One thing to fetch into `results/downloads/<name>/`.

    hub        files of a repository of the Hugging Face hub that match the patterns `files`
    archive    a zip or tar file behind a URL, unpacked
    file       a file behind a URL
    manual     what a licence or a login keeps from being fetched: the user puts it there
    generated  what a module of this package writes: `generate(out, seed)`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    kind: Literal["hub", "archive", "file", "manual", "generated"]
    licence: str
    size: str  # for planning, as a person would say it
    repo: str | None = None
    repo_type: Literal["dataset", "model"] = "dataset"
    revision: str | None = None
    url: str | None = None
    unpack: Literal["zip", "tar"] | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # of the file behind the URL
    bytes: int | None = Field(None, gt=0)
    files: tuple[str, ...] = ()  # patterns; each is met in the end
    instructions: str | None = None
    generator: str | None = None  # palimpsest.<generator>
    seed: int = 0

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the files that are fetched."""
        told = {"title", "licence", "size", "instructions"}
        return self.model_dump(mode="json", exclude=told, exclude_unset=True)

    @field_validator("generator")
    @classmethod
    def _generator_exists(cls, name: str | None) -> str | None:
        if name and not PACKAGE.joinpath(*name.split(".")).with_suffix(".py").is_file():
            raise ValueError(f"there is no module palimpsest.{name}")
        return name

    @model_validator(mode="after")
    def _keys_are_of_the_kind(self) -> Download:
        needed, allowed = KEYS[self.kind]
        if lacking := needed - self.model_fields_set:
            raise ValueError(f"kind {self.kind!r} needs {', '.join(sorted(lacking))}")
        if alien := self.model_fields_set - needed - allowed - ALWAYS:
            raise ValueError(f"kind {self.kind!r} takes no {', '.join(sorted(alien))}")
        return self
