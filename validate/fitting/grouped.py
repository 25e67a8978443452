"""The fit of `moecast.sim.cost.grouped`: least squares of the logarithms on at most 2 % of a table's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.entries import NEUTRAL, Entry
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.grouped import GroupedWork, seconds_of_work
from moecast.sim.cost.grouped_parameters import LOW_LATENCY, WHOLE, GroupedParameters
from moecast.sim.cost.shapes import ExpertBlock
from moecast.sim.cost.tables.moe import MoeTable
from moecast.validate.fitting.descent import Range, descend
from moecast.validate.fitting.draw import draw_rows
from moecast.validate.fitting.entry import entry_of
from moecast.validate.fitting.errors import Errors
from moecast.validate.fitting.moe_loads import loads_of_rank

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

_START: dict[str, Range] = {
    "launch_s": (1e-5, 1e-7, 3e-4),
    "peak_part": (0.7, 0.05, 1.2),
    "memory_part": (0.8, 0.3, 1.1),
    "operand_Bps": (120e9, 5e9, 2e12),
    "wave_s": (1e-7, 1e-9, 2e-5),
    "softness": (3.0, 1.0, 20.0),
    "row_traffic": (1.0, 1e-3, 30.0),
    "seen_traffic": (0.1, 1e-4, 30.0),
    "slot_s": (1e-8, 1e-11, 1e-5),
}
_LARGE: dict[str, Range] = {"large_part": (0.7, 0.2, 1.1)}
LEAST_ROWS = 900  # a kernel with fewer rows was timed for one model only
# kernels that an engine takes for some models or sizes only
SPECIAL = ("nongated", "min_latency", "situ")
MOST_JUDGED = 6000


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeRows:
    """Rows of tables of one GPU and type, their loads counted."""

    gpu: str
    element_type: str
    work: GroupedWork
    seconds_R: Float

    @classmethod
    def of(cls, tables: Sequence[MoeTable], *, seed: int) -> MoeRows:
        """Draw and count the loads of all rows of some tables."""
        random = np.random.default_rng(seed)
        counted = [work for table in tables for work in _counted(table, random)]
        work = GroupedWork(
            **{
                item.name: np.concatenate([np.atleast_1d(getattr(one, item.name)) for one in counted])
                for item in fields(GroupedWork)
            }
        )
        seconds_R = np.concatenate([table.seconds_R for table in tables])
        return cls(gpu=tables[0].gpu, element_type=tables[0].element_type, work=work, seconds_R=seconds_R)

    def forecast(self, parameters: GroupedParameters) -> Float:
        """Seconds of every row."""
        return seconds_of_work(parameters, GPUS[self.gpu], self.work, element_type=self.element_type)


def _counted(table: MoeTable, random: np.random.Generator) -> Iterator[GroupedWork]:
    """Each row's loads, drawn by their law."""
    numbers = (table.tokens_R, table.width_R, table.inner_R, table.choices_R, table.experts_R, table.ep_R)
    whats = (table.law_R, table.gated_R, table.grouped_R)
    rows = zip(*(values.tolist() for values in numbers), *(values.tolist() for values in whats), strict=True)
    for tokens, width, inner, choices, experts, ep, law, gated, grouped in rows:
        load_P = loads_of_rank(
            tokens=tokens, choices=choices, experts=experts, parts=ep, law=law, random=random, grouped=grouped
        )
        block = ExpertBlock(
            width=width, inner=inner, ups=1 + gated, weight_type="bf16", choices=choices, experts=experts
        )
        yield GroupedWork.of(block, load_P[None], np.array([tokens * choices]))


def usual_kernels(tables: Sequence[MoeTable]) -> list[MoeTable]:
    """Of each GPU, engine and type the newest version, and of its kernels the one that was timed on most shapes."""
    newest: dict[tuple[str, str, str], list[MoeTable]] = {}
    for table in tables:
        if table.seconds_R.size < LEAST_ROWS or any(word in table.kernel for word in SPECIAL):
            continue
        held = newest.setdefault((table.gpu, table.engine, table.element_type), [])
        if held and held[0].version != table.version:
            held.clear()
        held.append(table)
    return [max(held, key=lambda table: table.seconds_R.size) for held in newest.values()]


def fit_grouped(tables: Sequence[MoeTable], *, seed: int = 0) -> Iterator[Entry[GroupedParameters]]:
    """One entry for each usual kernel, and one for each GPU and type over all engines (`neutral`)."""
    tables = [table.where(table.known_R) for table in tables]
    usual = usual_kernels(tables)
    for table in usual:
        yield _fitted([table], seed=seed, note=f"kernel: {table.kernel}")
    for table in tables:
        if (table.ep_R == 1).all() and table.seconds_R.size >= LEAST_ROWS and table.engine == "vllm":
            newest = [one for one in usual if (one.gpu, one.engine) == (table.gpu, table.engine)]
            if any(one.element_type == table.element_type and one.version == table.version for one in newest):
                yield replace(_whole(table, seed), kind=table.element_type + WHOLE)
        if "min_latency" in table.kernel and table.seconds_R.size >= LEAST_ROWS:
            entry = _fitted([table], seed=seed, note=f"kernel: {table.kernel}")
            yield replace(entry, kind=entry.kind + LOW_LATENCY)
    for gpu, element_type in dict.fromkeys((table.gpu, table.element_type) for table in usual):
        pool = [table for table in usual if (table.gpu, table.element_type) == (gpu, element_type)]
        note = "pooled: " + ", ".join(f"{table.engine} {table.version}" for table in pool)
        yield _fitted(pool, seed=seed, note=note, engine=NEUTRAL)


def _whole(table: MoeTable, seed: int) -> Entry[GroupedParameters]:
    """A kernel that was timed with all experts on a rank only."""
    return _fitted([table], seed=seed, note=f"kernel: {table.kernel}")


def _fitted(pool: Sequence[MoeTable], *, seed: int, note: str, engine: str | None = None) -> Entry[GroupedParameters]:
    drawn = [draw_rows(table.seconds_R.size, seed=seed, most=700 // len(pool)) for table in pool]
    parameters = _fit(MoeRows.of([t.where(d) for t, d in zip(pool, drawn, strict=True)], seed=seed))
    unseen = [table.where(judged_rows(~which, seed)) for table, which in zip(pool, drawn, strict=True)]
    judged = MoeRows.of(unseen, seed=seed + 1)
    errors = Errors.of(judged.forecast(parameters), judged.seconds_R)
    return entry_of(
        pool[0],
        parameters,
        errors,
        kind=pool[0].element_type,
        fitted=sum(int(which.sum()) for which in drawn),
        rows=sum(table.seconds_R.size for table in pool),
        seed=seed,
        note=note,
        engine=engine,
    )


def judged_rows(unseen: npt.NDArray[np.bool_], seed: int, *, most: int = MOST_JUDGED) -> npt.NDArray[np.bool_]:
    """Of the unseen rows at most so many, drawn: loads of all of them take long to draw."""
    numbers = np.flatnonzero(unseen)
    if numbers.size > most:
        numbers = np.random.default_rng(seed + 2).choice(numbers, most, replace=False)
    which = np.zeros(unseen.size, bool)
    which[numbers] = True
    return which


def _fit(rows: MoeRows) -> GroupedParameters:
    """The better of both ways to choose tiles; the best height unless Triton's defaults are clearly nearer."""
    best_cost, best = _descend(rows, "best", _START)
    default_cost, default = _descend(rows, "default", _START | _LARGE)
    return default if default_cost < 0.93 * best_cost else best


def _descend(rows: MoeRows, tiles: str, ranges: dict[str, Range]) -> tuple[float, GroupedParameters]:
    def made(values: dict[str, float]) -> GroupedParameters:
        return GroupedParameters(**{"tiles": tiles, "large_part": values["memory_part"]} | values)  # type: ignore[arg-type]

    cost, values = descend(lambda values: rows.forecast(made(values)), rows.seconds_R, ranges)
    return cost, made(values)
