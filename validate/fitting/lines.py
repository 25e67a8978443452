"""Errors of each family of kernels on measured rows: a line per GPU, engine, version and element type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moecast.validate.fitting.errors import Errors

if TYPE_CHECKING:
    from moecast.sim.cost.tables.attention import AttentionTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Errors of one GPU, engine, version and type: of the roofline, of the model, and with the nearest GPU's."""

    label: tuple[str, str, str, str]  # GPU, engine, version, element type
    roofline: Errors
    model: Errors
    left_out: Errors
    note: str = ""

    @property
    def judged(self) -> Errors:
        """The model's errors; by the nearest GPU's parameters where its own has none."""
        return self.model if self.model.rows else self.left_out

    @property
    def name(self) -> str:
        """GPU, engine, version and type, and whose parameters judged them where they are another GPU's."""
        moved = self.note == ANOTHERS or (not self.model.rows and self.left_out.rows)
        return " ".join(self.label) + (f" ({ANOTHERS})" if moved else "")


ANOTHERS = "another GPU's parameters"


def gemm_lines(tables: Path) -> Iterator[Line]:
    """Dense matrix products."""
    from moecast.sim.cost.tables.gemm import read_gemm
    from moecast.validate.fitting.gemm_errors import compare

    for table in read_gemm(tables):
        roofline, model, left_out, note = compare(table)
        yield Line(
            label=(table.gpu, table.engine, table.version, table.element_type),
            roofline=roofline,
            model=model,
            left_out=left_out,
            note=note,
        )


def grouped_lines(tables: Path) -> Iterator[Line]:
    """Routed experts of a layer: the usual kernel of each engine and type."""
    from moecast.sim.cost.tables.moe import read_moe
    from moecast.validate.fitting.grouped import usual_kernels
    from moecast.validate.fitting.grouped_errors import compare

    for table in usual_kernels(list(read_moe(tables))):
        roofline, model, left_out = compare(table)
        label = (table.gpu, table.engine, table.version, table.element_type)
        yield Line(label=label, roofline=roofline, model=model, left_out=left_out)


def mla_bmm_lines(tables: Path) -> Iterator[Line]:
    """Batched products of absorbed MLA."""
    from moecast.sim.cost.tables.mla_bmm import read_mla_bmm
    from moecast.validate.fitting.small_errors import compare_mla_bmm

    for table in read_mla_bmm(tables):
        roofline, model, left_out = compare_mla_bmm(table)
        label = (table.gpu, table.engine, table.version, table.element_type)
        yield Line(label=label, roofline=roofline, model=model, left_out=left_out)


def quantise_lines(tables: Path) -> Iterator[Line]:
    """Quantisation of activations."""
    from moecast.sim.cost.tables.quantise import read_quantise
    from moecast.validate.fitting.small_errors import compare_quantise

    for table in read_quantise(tables):
        roofline, model, left_out = compare_quantise(table)
        note = f"{table.left_out} rows without a time" if table.left_out else ""
        label = (table.gpu, table.engine, table.version, table.kind)
        yield Line(label=label, roofline=roofline, model=model, left_out=left_out, note=note)


def attention_lines(tables: Path) -> Iterator[Line]:
    """Multi-head and grouped-query attention."""
    from moecast.sim.cost.tables.attention import read_attention

    yield from _kernel_lines(read_attention(tables))


def mla_lines(tables: Path) -> Iterator[Line]:
    """Kernels of multi-head latent attention."""
    from moecast.sim.cost.tables.attention import read_mla

    yield from _kernel_lines(read_mla(tables))


def _kernel_lines(found: Iterator[AttentionTable]) -> Iterator[Line]:
    from moecast.validate.fitting.attention_errors import compare_attention

    tables = list(found)
    for table in tables:
        roofline, model, left_out = compare_attention(table, tables)
        label = (table.gpu, table.engine, table.version, table.kind)
        yield Line(label=label, roofline=roofline, model=model, left_out=left_out)


def mla_module_lines(tables: Path) -> Iterator[Line]:
    """Whole modules of multi-head latent attention."""
    from moecast.sim.cost.tables.mla_module import read_mla_modules
    from moecast.validate.fitting.attention_errors import compare_module

    for table in read_mla_modules(tables):
        roofline, model, left_out, note = compare_module(table)
        label = (table.gpu, table.engine, table.version, table.kind)
        yield Line(label=label, roofline=roofline, model=model, left_out=left_out, note=note)


def linear_attention_lines(tables: Path) -> Iterator[Line]:
    """Convolution and recurrence of linear attention."""
    from moecast.sim.cost.tables.linear_attention import read_linear
    from moecast.validate.fitting.attention_errors import compare_linear

    for table in read_linear(tables):
        roofline, model, left_out = compare_linear(table)
        label = (table.gpu, table.engine, table.version, table.kind)
        yield Line(label=label, roofline=roofline, model=model, left_out=left_out)


def collective_lines(tables: Path) -> Iterator[Line]:
    """NCCL by operation, engines' all-reduces by how they are launched; first what the simulator says."""
    from moecast.sim.cost.collectives import all_parameters
    from moecast.validate.fitting.collective_errors import compare

    owners = {entry.gpu for entry in all_parameters()}
    for label, simulated, model, left_out in compare(tables):
        note = "" if label[0] in owners else ANOTHERS
        yield Line(label=label, roofline=simulated, model=model, left_out=left_out, note=note)


def dispatch_lines(tables: Path) -> Iterator[Line]:
    """Dispatch and combine; first what links alone and the hardware table's fixed costs say."""
    from moecast.sim.cost.dispatch import all_parameters
    from moecast.validate.fitting.dispatch_errors import compare

    owners = {entry.gpu for entry in all_parameters()}
    for label, simulated, model, left_out in compare(tables):
        note = "" if label[0] in owners else ANOTHERS
        yield Line(label=label, roofline=simulated, model=model, left_out=left_out, note=note)


# To add a family: a function that yields its lines, and a line here.
FAMILIES: dict[str, Callable[[Path], Iterator[Line]]] = {
    "gemm": gemm_lines,
    "grouped": grouped_lines,
    "mla_bmm": mla_bmm_lines,
    "quantise": quantise_lines,
    "attention": attention_lines,
    "mla": mla_lines,
    "mla_module": mla_module_lines,
    "linear_attention": linear_attention_lines,
    "collectives": collective_lines,
    "dispatch": dispatch_lines,
}
