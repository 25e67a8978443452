"""A user's own tables of measured kernels, of one GPU and engine: `DIR/<gpu>/<family>/<engine>/<version>/*.parquet`.

Of several versions of an engine the newest that has the kind of kernel counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from moecast.errors import MoecastError
from moecast.sim.cost.tables.attention import AttentionTable, read_attention, read_mla
from moecast.sim.cost.tables.folder import Owner
from moecast.sim.cost.tables.gemm import GemmTable, read_gemm
from moecast.sim.cost.tables.moe import MoeTable, read_moe

FAMILIES = ("gemm", "attention", "mla", "moe")
"""What is read: dense products, attention, latent attention, routed experts."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InstalledTables:
    """The tables of one GPU and engine.

    Parameters
    ----------
    directory, gpu, engine
        Whose they are, by the names of their folders.
    gemm
        Of dense products, one for each element type.
    attention
        Of attention, latent attention among them: one for each phase, pair of element types and
        kernel.
    moe
        Of routed experts, older versions before newer ones.
    """

    directory: str
    gpu: str
    engine: str
    gemm: tuple[GemmTable, ...]
    attention: tuple[AttentionTable, ...]
    moe: tuple[MoeTable, ...]

    def gemm_of(self, element_type: str) -> GemmTable | None:
        """The table of a type; None without, and where it shows the host's time and not the kernels'."""
        found = [table for table in self.gemm if table.element_type == element_type]
        return None if not found or found[0].host_timed else found[0]


@lru_cache(maxsize=16)
def open_tables(directory: str, gpu: str, engine: str) -> InstalledTables:
    """Read what a folder has of a GPU and an engine; `neutral`: of its only engine.

    Raises
    ------
    MoecastError
        No such folder, nothing in it of the GPU or the engine, several engines of which none is
        named, or a file that cannot be read.
    """
    root = Path(directory)
    if not root.is_dir():
        rule = "a folder of tables: GPU/family/engine/version/*.parquet"
        raise MoecastError(rule, field="kernels", value=directory)
    try:
        owner = Owner(gpu=gpu, engine=_engine_in(root, gpu, engine))
        gemm = {table.element_type: table for table in read_gemm(root, owner=owner)}
        attention = {
            (table.latent, table.kind): table
            for read in (read_attention, read_mla)
            for table in read(root, owner=owner)
        }
        moe = tuple(read_moe(root, owner=owner))
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        rule = f"tables that can be read: {error}"
        raise MoecastError(rule, field="kernels", value=directory) from None
    return InstalledTables(
        directory=directory,
        gpu=gpu,
        engine=owner.engine,
        gemm=tuple(gemm.values()),
        attention=tuple(attention.values()),
        moe=moe,
    )


def _engine_in(root: Path, gpu: str, engine: str) -> str:
    having = {path.name: _engines(path) for path in sorted(root.iterdir()) if path.is_dir()}
    gpus = [name for name, engines in having.items() if engines]
    if gpu not in gpus:
        told = f"has tables of {', '.join(gpus)}" if gpus else "has no tables: GPU/family/engine/version/*.parquet"
        rule = f"tables of {gpu}; {root} {told}"
        raise MoecastError(rule, field="kernels", value=f"tables:{root}")
    engines = having[gpu]
    if engine in engines:
        return engine
    if engine == "neutral" and len(engines) == 1:
        return engines[0]
    rule = f"tables of {gpu} by {', '.join(engines)}: name one by --engine"
    raise MoecastError(rule, field="engine", value=engine)


def _engines(folder: Path) -> list[str]:
    found = {path.parts[-3] for family in FAMILIES for path in folder.glob(f"{family}/*/*/*.parquet")}
    return sorted(found)
