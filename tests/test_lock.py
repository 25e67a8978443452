"""What is installed is locked: requirements/ names exact versions with hashes, and they fit pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PROJECT["dependency-groups"]
ASKED = {
    "base": [*PROJECT["project"]["dependencies"], *GROUPS["build"]],
    "dev": [*PROJECT["project"]["dependencies"], *GROUPS["build"], *GROUPS["lint"], *GROUPS["test"]],
    "oldest": GROUPS["oldest"],
}
APART = {"torch"}  # installed by exact version: see the Makefile


def locked(name: str) -> dict[str, tuple[str, str]]:
    """Version and hashes by package; environments that differ have several entries, of which the last stands."""
    entries = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").split("\n")
    text = re.sub(r" \\\s+", " ", "\n".join(line for line in entries if not line.startswith("#")))
    found = {}
    for line in filter(None, text.split("\n")):
        requirement, _, hashes = line.partition(" --hash=")
        pinned = Requirement(requirement)
        (specifier,) = pinned.specifier
        assert specifier.operator == "==", line
        found[canonicalize_name(pinned.name)] = (specifier.version, hashes)
    return found


@pytest.mark.parametrize("name", ["base", "dev", "oldest", "pip"])
def test_every_version_is_exact_and_hashed(name: str) -> None:
    for package, (_, hashes) in locked(name).items():
        assert hashes.startswith("sha256:"), package
        assert not package.startswith(("nvidia-", "cuda-"))
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--find-links" not in text


@pytest.mark.parametrize("name", ASKED)
def test_the_lock_fits_what_pyproject_asks(name: str) -> None:
    pins = locked(name)
    for line in ASKED[name]:
        asked = Requirement(line)
        if asked.name not in APART:
            version, _ = pins[canonicalize_name(asked.name)]
            assert asked.specifier.contains(version), f"{line}: the lock has {version}; run make lock"


def test_what_users_install_is_what_is_tested() -> None:
    tested = locked("dev")
    assert all(tested[package] == pin for package, pin in locked("base").items())


def test_the_makefile_takes_the_torch_that_pyproject_asks() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "TORCH := " + next(line for line in GROUPS["test"] if line.startswith("torch==")) in makefile


def test_the_oldest_transformers_is_the_one_that_is_claimed() -> None:
    claimed = next(
        line for line in PROJECT["project"]["optional-dependencies"]["hf"] if line.startswith("transformers")
    )
    assert Requirement(claimed).specifier.contains(locked("oldest")["transformers"][0])
    assert claimed.removeprefix("transformers>=") in locked("oldest")["transformers"][0]
