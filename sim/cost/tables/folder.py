"""Where the measured tables of a family lie under a root: `<gpu>/<family>/<engine>/<version>/*.parquet`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moecast.sim.cost.gpus import GPUS


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFile:
    """One Parquet file, and whose it is."""

    path: Path
    gpu: str
    engine: str
    version: str


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Order versions by their numbers: 0.5.10 comes after 0.5.6.post2; what has no number sorts first."""
    return tuple((int(digits or 0), word) for digits, word in re.findall(r"(\d+)|([a-z]+)", version))


def table_files(root: Path, family: str, pattern: str = "*.parquet") -> Iterator[TableFile]:
    """The files of a family, by GPU, engine and version, oldest version first; none where the folder has none.

    Folders of GPUs whose peaks nobody knows are passed by; `unknown_gpus` names them.
    """
    found = []
    for path in root.glob(f"*/{family}/*/*/{pattern}"):
        gpu, _, engine, version = path.relative_to(root).parts[:4]
        if gpu in GPUS:
            found.append(TableFile(path=path, gpu=gpu, engine=engine, version=version))
    yield from sorted(found, key=lambda file: (file.gpu, file.engine, version_key(file.version), file.path.name))


def unknown_gpus(root: Path) -> tuple[str, ...]:
    """The GPUs that have tables under a root and of which no peaks are known."""
    return tuple(sorted({path.relative_to(root).parts[0] for path in root.glob("*/*/*/*/*.parquet")} - set(GPUS)))
