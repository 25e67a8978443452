"""Where the measured tables of a family lie under a root: `<gpu>/<family>/<engine>/<version>/*.parquet`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moecast.errors import MoecastError
from moecast.sim.cost.gpus import GPUS

MOST_ROWS = 5_000_000
"""Of a file: the largest known one has 200,000."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Whose tables are wanted: a GPU's and an engine's, by the names of their folders; `*`: all."""

    gpu: str = "*"
    engine: str = "*"


ANY = Owner()


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


def table_files(root: Path, family: str, pattern: str = "*.parquet", *, owner: Owner = ANY) -> Iterator[TableFile]:
    """The files of a family, by GPU, engine and version, oldest version first.

    None where the folder has none.

    Folders of GPUs whose peaks nobody knows are passed by; `unknown_gpus` names them.
    """
    found = []
    for path in root.glob(f"{owner.gpu}/{family}/{owner.engine}/*/{pattern}"):
        gpu, _, engine, version = path.relative_to(root).parts[:4]
        if gpu in GPUS:
            found.append(TableFile(path=path, gpu=gpu, engine=engine, version=version))
    yield from sorted(found, key=lambda file: (file.gpu, file.engine, version_key(file.version), file.path.name))


def read_rows(path: Path, columns: list[str] | None = None) -> pa.Table:
    """The rows of a Parquet file; `columns`: those that it must have; None: all.

    Raises
    ------
    MoecastError
        No such file, no Parquet file, one without a column, or one of too many rows.
    """
    try:
        found = pq.ParquetFile(path)
        if found.metadata.num_rows > MOST_ROWS:
            rule = f"at most {MOST_ROWS:,} rows"
            raise MoecastError(rule, file=path, value=found.metadata.num_rows)
        if missing := [name for name in columns or () if name not in found.schema_arrow.names]:
            raise MoecastError(f"{path}: no column {', '.join(missing)}")
        return found.read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        rule = "a Parquet file of measured times"
        raise MoecastError(rule, file=path, value=str(error).splitlines()[0]) from None


def unknown_gpus(root: Path) -> tuple[str, ...]:
    """The GPUs that have tables under a root and of which no peaks are known."""
    return tuple(sorted({path.relative_to(root).parts[0] for path in root.glob("*/*/*/*/*.parquet")} - set(GPUS)))
