"""The pinned environment: complete, and the same in each of its forms."""

import runpy
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
ENVS = REPOSITORY / "envs"
RENDER = runpy.run_path(str(ENVS / "render.py"))

# torch's CUDA wheels bring these, each at a version that torch itself pins.
BROUGHT_BY_CUDA_TORCH = ("nvidia-", "cuda-", "triton")


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Version of each pinned package, by its canonical name."""
    pairs = (pin.split("==") for pin in RENDER["read_pins"](ENVS / "constraints.txt"))
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def direct() -> list[Requirement]:
    """The requirements that pyproject.toml names, those of the groups too."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


def requirements_of(name: str, extras: set[str]) -> list[Requirement]:
    """What an installed package needs on this machine with the given extras."""
    found = [Requirement(line) for line in metadata.requires(name) or []]
    environments = [{"extra": extra} for extra in extras | {""}]
    return [r for r in found if not r.marker or any(map(r.marker.evaluate, environments))]


def test_rendered_files_are_up_to_date():
    for path, text in RENDER["render"]().items():
        assert path.read_text() == text, f"{path.name} is out of date: make envs"


def test_direct_requirements_are_pinned(pins, direct):
    assert not [r.name for r in direct if canonicalize_name(r.name) not in pins]


def test_versions_are_pinned_in_constraints_alone(direct):
    assert not [str(r) for r in direct if r.specifier]


def test_every_package_that_is_reached_is_pinned_as_installed(pins, direct):
    waiting = list(direct)
    seen = set()
    wrong = []
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name.startswith(BROUGHT_BY_CUDA_TORCH):
            continue
        seen.add(key)
        installed = metadata.version(name).split("+")[0]
        if pins.get(name) != installed:
            wrong.append(f"{name}: pinned {pins.get(name)}, installed {installed}")
        waiting += requirements_of(name, requirement.extras)
    assert not wrong


def test_conda_environment_holds_exactly_the_pins():
    environment = yaml.safe_load((ENVS / "environment.yaml").read_text())
    (from_pip,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert from_pip == RENDER["read_pins"](ENVS / "constraints.txt")


def test_a_line_without_a_version_is_refused(tmp_path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==2.0  # a note\npandas>=2\n")
    with pytest.raises(ValueError, match=r"constraints\.txt: found 'pandas>=2'"):
        RENDER["read_pins"](constraints)
