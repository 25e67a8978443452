"""Everything that others measured, asked at once: shipped rows, rows of files, and folders of kernel tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.accuracy.known_errors import SERVED
from moecast.sim.cost.fitted_errors import fitted_errors
from moecast.sim.cost.tables.folder import unknown_gpus
from moecast.validate.published import SOURCES
from moecast.validate.published.answers import FamilyErrors, RowAnswer, families, sources
from moecast.validate.published.decode import answer_serving
from moecast.validate.published.known import with_intervals
from moecast.validate.published.references import answer_reference
from moecast.validate.published.request_runs import answer_requests
from moecast.validate.published.row_files import SHIPPED, RowFile, read_rows
from moecast.validate.published.shipped import KERNELS, Kernels, shipped_families, shipped_kernels
from moecast.validate.published.training import answer_training

Progress = Callable[[int, int], None]
Float = npt.NDArray[np.float64]
Ask = Callable[[], RowAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Rows with their forecasts, and the errors of families and of the sources in them.

    Parameters
    ----------
    rows
        Of files; the rows of kernel tables are too many to list.
    kernels
        Families of kernel tables, each with its lines: one of a GPU, engine, version and element
        type.
    unknown_gpus
        GPUs of the folder that nothing is known of: their tables are not judged.
    shipped
        Families that were not asked now: their errors are those that ship. Kernels are, too, where
        `kernels_shipped`.
    """

    rows: tuple[RowAnswer, ...]
    kernels: tuple[tuple[FamilyErrors, tuple[FamilyErrors, ...]], ...] = ()
    unknown_gpus: tuple[str, ...] = ()
    shipped: tuple[FamilyErrors, ...] = ()
    kernels_shipped: bool = False

    @property
    def families(self) -> list[FamilyErrors]:
        """Errors of each family."""
        return [*families(self.rows), *self.shipped, *(family for family, _ in self.kernels)]

    @property
    def not_asked(self) -> list[str]:
        """Names of the families whose errors are those that ship."""
        kernels = self.kernels if self.kernels_shipped else ()
        return [family.name for family in (*self.shipped, *(family for family, _ in kernels))]

    @property
    def parts(self) -> list[tuple[str, FamilyErrors]]:
        """Errors of each source in a family, and of each line of kernel tables: (family, errors)."""
        return [*sources(self.rows), *((family.name, line) for family, lines in self.kernels for line in lines)]

    def to_json(self) -> dict[str, Any]:
        """Give families, their parts and all rows as plain JSON values."""
        return {
            "families": {family.name: family.to_json() for family in self.families},
            "parts": [{"family": family, "name": part.name, **part.to_json()} for family, part in self.parts],
            "rows": [row.to_json() for row in self.rows],
            "not_asked": self.not_asked,
        }


def ask_published(
    files: Sequence[Path] | None = None,
    *,
    tables: Path | None = None,
    only: str = "",
    network: str = "bound",
    requests: bool = False,
    progress: Progress | None = None,
) -> Published:
    """Forecast every row.

    Parameters
    ----------
    files
        In the columns of those that ship; None: the shipped ones, and the published sources.
    tables
        A folder of measured kernels, `<gpu>/<family>/<engine>/<version>/*.parquet`.
    only
        Part of the id of the rows to ask.
    requests
        Run serving rows request by request, too: TTFT, TPOT and throughput; takes seconds a row.

    Raises
    ------
    MoecastError
        A file that holds no such rows, or no row of such an id.
    """
    asks = [ask for name, ask in _asks(files, network, requests) if only in name]
    if not asks:
        raise MoecastError("no row has this in its id", field="only", value=only)
    rows = []
    for done, ask in enumerate(asks, 1):
        rows.append(ask())
        if progress is not None:
            progress(done, len(asks))
    everything = files is None and not only
    return Published(
        rows=tuple(with_intervals(rows)),
        kernels=_kernels(tables) if tables is not None else shipped_kernels() if everything else (),
        unknown_gpus=() if tables is None else unknown_gpus(tables),
        shipped=shipped_families({row.family for row in rows}) if everything else (),
        kernels_shipped=tables is None,
    )


def _kernels(tables: Path) -> Kernels:
    return tuple((family, tuple(line for line, _ in lines)) for family, lines in kernel_families(tables))


def _asks(files: Sequence[Path] | None, network: str, requests: bool) -> Iterator[tuple[str, Ask]]:
    """Every row's id, and how to ask it."""
    read = [read_rows(file) for file in (files or (SHIPPED / "serving.csv", SHIPPED / "training.csv"))]
    for file in read:
        yield from _of_file(file, network, requests)
    if files is None:
        for source in SOURCES:
            for row in source.rows:
                yield f"{source.name}: {row.name}", partial(answer_reference, source, row)


def _of_file(file: RowFile, network: str, requests: bool) -> Iterator[tuple[str, Ask]]:
    for row in file.rows:
        if file.kind == "serving":
            yield row["id"], partial(answer_serving, row, network=network)
            for measure in SERVED if requests else ():
                yield f"{row['id']}: {measure}", partial(answer_requests, row, measure, network=network)
        else:
            yield row["id"], partial(answer_training, row, network=network)


def kernel_families(tables: Path) -> Iterator[tuple[FamilyErrors, tuple[tuple[FamilyErrors, Float], ...]]]:
    """Errors of each family of kernels of which the folder holds rows, on rows that nothing was fitted on.

    Each family comes with its lines, and these with the errors of their rows.
    """
    from moecast.validate.fitting.lines import FAMILIES as KERNEL_FAMILIES

    for name, lines_of in KERNEL_FAMILIES.items():
        lines = list(lines_of(tables))
        if lines:
            parts = tuple(
                (FamilyErrors.of_errors(line.name, error_R, asked=rows, answered=rows, fitted=0), error_R)
                for line in lines
                for error_R, rows in [(line.judged.error_R, line.judged.rows)]
            )
            pooled_R = np.concatenate([error_R for _, error_R in parts])
            fitted = sum(line.fitted for line in fitted_errors(name))
            rows = int(pooled_R.size) + fitted
            whole = FamilyErrors.of_errors(f"{KERNELS}{name}", pooled_R, asked=rows, answered=rows, fitted=fitted)
            yield whole, parts
