"""Makes environment.yaml and palimpsest.def from constraints.txt and pyproject.toml.

python envs/render.py
"""

import tomllib
from pathlib import Path

ENVS = Path(__file__).resolve().parent
REPOSITORY = ENVS.parent

NOTE = "Made by envs/render.py from constraints.txt and pyproject.toml: change those, not this."

ENVIRONMENT = """\
# {note}
name: palimpsest
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python={python}
  - pip
  - cxx-compiler
  - git
  - make
  - pip:
{pins}
"""

APPTAINER = """\
# {note}
# From the top of the repository: apptainer build palimpsest.sif envs/palimpsest.def
Bootstrap: docker
From: python:{python}-slim-bookworm

%files
    LICENSE /opt/palimpsest/LICENSE
    envs/constraints.txt /opt/palimpsest/constraints.txt
    pyproject.toml /opt/palimpsest/pyproject.toml
    workflow /opt/palimpsest/workflow

%post
    apt-get update
    apt-get install -y --no-install-recommends g++ git make
    rm -rf /var/lib/apt/lists/*
    cd /opt/palimpsest
    DS_BUILD_OPS=0 pip install --no-cache-dir -c constraints.txt .

%environment
    export OMP_WAIT_POLICY=PASSIVE

%runscript
    exec palimpsest "$@"

%test
    palimpsest --help

%labels
    version {version}
"""


def read_pins(constraints: Path) -> list[str]:
    """The lines `name==version` of a constraints file, in its order.

    Raises ValueError for a line that pins nothing.
    """
    lines = (line.split("#")[0].strip() for line in constraints.read_text().splitlines())
    pins = [line for line in lines if line]
    for pin in pins:
        if "==" not in pin:
            raise ValueError(f"{constraints}: found {pin!r}, allowed is name==version; pin it")
    return pins


def render() -> dict[Path, str]:
    """The text of each file that is made from the constraints, by its path."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    python = project["requires-python"].removeprefix(">=")
    pins = read_pins(ENVS / "constraints.txt")
    environment = ENVIRONMENT.format(
        note=NOTE, python=python, pins="\n".join(f"    - {pin}" for pin in pins)
    )
    apptainer = APPTAINER.format(note=NOTE, python=python, version=project["version"])
    return {ENVS / "environment.yaml": environment, ENVS / "palimpsest.def": apptainer}


if __name__ == "__main__":
    for path, text in render().items():
        path.write_text(text)
        print(path.relative_to(REPOSITORY))
