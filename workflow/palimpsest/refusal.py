"""How a configuration is refused: the file, the key, what was found, what is allowed, the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

LONGEST_FOUND = 80  # characters of a wrong value that are shown


class ConfigError(ValueError):
    """A configuration that cannot be run; its message names file, key and fix."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; ConfigError if it cannot be parsed or names a key twice."""
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def one_of(name: str, known: Iterable[str], what: str) -> str:
    """Return the name if it is known; ValueError proposes the nearest one."""
    known = sorted(known)
    if name not in known:
        raise ValueError(
            f"there is no {what} {name!r}{nearest(name, known)} Known: {', '.join(known) or 'none'}"
        )
    return name


def check_known(name: str, known: Iterable[str], where: str, what: str) -> None:
    """ConfigError, naming where the name was found, if it is not one of those that are known."""
    try:
        one_of(name, known, what)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean …?" with the nearest known name, or a full stop."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {match[0]!r}?" if match else "."


def explain(path: Path, kind: type[BaseModel], error: dict[str, Any]) -> str:
    """Write one pydantic error as file, key, what was found, what is allowed, nearest name."""
    key = _key(kind, error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    found = repr(error["input"])
    match error["type"]:
        case "extra_forbidden":
            known = _fields_at(kind, error["loc"][:-1])
            message = f"unknown key{nearest(str(error['loc'][-1]), known)}"
            message += f" Allowed: {', '.join(known)}"
        case "missing":
            message = "this key is required"
        case "literal_error":
            known = [one.strip("'") for one in re.split(", | or ", error["ctx"]["expected"])]
            message = f"found {found}{nearest(found, known)} Allowed: {', '.join(known)}"
        case "union_tag_not_found":
            message = "a name is required, which says what part it is"
        case "union_tag_invalid":
            tag, known = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "")
            key = f"{key}.name"
            message = f"found {tag!r}{nearest(tag, known.split(', '))} Allowed: {known}"
        case "tuple_type":
            message = f"found {found}: should be a list"
        case "model_type" | "model_attributes_type":
            message = f"found {found}: should be keys and values"
        case "value_error" if found in message:
            pass
        case _ if len(found) <= LONGEST_FOUND:
            message = f"found {found}: {message}"
    return f"{path}: {key}: {message}"


def _fields_at(kind: Any, location: tuple[Any, ...]) -> list[str]:
    """Return the allowed keys at a location inside a model, through unions and mappings."""
    models = _models_in(kind)
    for part in location:
        inner = [m for m in models if part in _names_of(m)]
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = inner or [m for f in fields for m in _models_in(f)] or models
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]


def _key(kind: type[BaseModel], location: tuple[Any, ...]) -> str:
    """Write a location as a person finds it in the file: without the tags that choose a part."""
    parts = [part for f in kind.model_fields.values() for part in _models_in(f.annotation)]
    tags = {tag for part in parts for tag in _names_of(part)}
    return ".".join(str(name) for name in location if name not in tags) or "(whole file)"


def _names_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of the tag by which a part is chosen, such as `lora`."""
    field = model.model_fields.get("name")
    return getattr(field.annotation, "__args__", ()) if field else ()


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may stand once only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Return the mapping of a node; YAMLError names the line of a key that stands twice."""
        seen = []
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"key {key!r} stands twice, again in line {line}")
            seen.append(key)
        return super().construct_mapping(node, deep)
