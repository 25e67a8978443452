"""Fit the parameters of a kernel family on a seeded 2 % of measured rows.

    python benchmarks/kernel_fit.py --family gemm --tables DIR [--gpu h200_sxm] [--write]

DIR holds `<gpu>/<family>/<engine>/<version>/*.parquet`. Errors are printed for the rows that were not fitted.
`--write` puts the parameters into `sim/cost/fitted/<family>.json`; with `--gpu` alone nothing is written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FITTED = Path(__file__).resolve().parent.parent / "sim" / "cost" / "fitted"


def fit_gemm(tables: Path, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Dense matrix products."""
    from moecast.sim.cost.tables.gemm import read_gemm
    from moecast.validate.fitting.gemm import fit_gemm

    for entry in fit_gemm([table for table in read_gemm(tables) if gpu in (None, table.gpu)]):
        yield entry.as_json()


def fit_quantise(tables: Path, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Quantisation of activations."""
    from moecast.sim.cost.tables.quantise import read_quantise
    from moecast.validate.fitting.quantise import fit_quantise

    for entry in fit_quantise([table for table in read_quantise(tables) if gpu in (None, table.gpu)]):
        yield entry.as_json()


def fit_mla_bmm(tables: Path, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Batched products of absorbed MLA."""
    from moecast.sim.cost.tables.mla_bmm import read_mla_bmm
    from moecast.validate.fitting.mla_bmm import fit_mla_bmm

    for entry in fit_mla_bmm([table for table in read_mla_bmm(tables) if gpu in (None, table.gpu)]):
        yield entry.as_json()


def fit_attention(tables: Path, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Multi-head and grouped-query attention."""
    from moecast.sim.cost.tables.attention import read_attention
    from moecast.validate.fitting.attention import fit_attention

    for entry in fit_attention([table for table in read_attention(tables) if gpu in (None, table.gpu)]):
        yield entry.as_json()


def fit_mla(tables: Path, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Kernels of multi-head latent attention."""
    from moecast.sim.cost.tables.attention import read_mla
    from moecast.validate.fitting.attention import fit_attention

    for entry in fit_attention([table for table in read_mla(tables) if gpu in (None, table.gpu)]):
        yield entry.as_json()


def fit_mla_module(tables: Path, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Whole modules of multi-head latent attention, on top of the fitted parts."""
    from moecast.sim.cost.tables.mla_module import read_mla_modules
    from moecast.validate.fitting.mla_module import fit_modules

    for entry in fit_modules([table for table in read_mla_modules(tables) if gpu in (None, table.gpu)]):
        yield entry.as_json()


def fit_linear_attention(tables: Path, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Convolution and recurrence of linear attention."""
    from moecast.sim.cost.tables.linear_attention import read_linear
    from moecast.validate.fitting.linear_attention import fit_linear

    for entry in fit_linear([table for table in read_linear(tables) if gpu in (None, table.gpu)]):
        yield entry.as_json()


def fit_collectives(tables: Path, gpu: str | None) -> Iterator[dict[str, Any]]:
    """NCCL and engines' all-reduces inside a domain; GPUs of a generation are fitted together."""
    from moecast.validate.fitting.collectives import fit, read_cuts, with_own_errors
    from moecast.validate.fitting.pool import entry_json

    cuts = read_cuts(tables)
    yield from (entry_json(entry) for entry in with_own_errors(fit(cuts), cuts) if gpu in (None, entry.gpu))


def fit_dispatch(tables: Path, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Dispatch and combine inside a domain and between nodes; GPUs of a generation are fitted together."""
    from moecast.validate.fitting.between import fit_between, read_far_cuts, with_far_errors
    from moecast.validate.fitting.dispatch import fit, read_cuts, with_own_errors
    from moecast.validate.fitting.pool import entry_json

    cuts, far_cuts = read_cuts(tables), read_far_cuts(tables)
    near = fit(cuts)
    far = with_far_errors(fit_between(near, far_cuts), near, far_cuts)
    yield from (entry_json(entry) for entry in [*with_own_errors(near, cuts), *far] if gpu in (None, entry.gpu))


def fit_grouped(tables: Path, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Routed experts of a layer."""
    from moecast.sim.cost.tables.moe import read_moe
    from moecast.validate.fitting.grouped import fit_grouped

    for entry in fit_grouped([table for table in read_moe(tables) if gpu in (None, table.gpu)]):
        yield entry.as_json()


# To add a family: a function that yields its entries as JSON values, and a line here.
FAMILIES: dict[str, Callable[[Path, str | None], Iterator[dict[str, Any]]]] = {
    "gemm": fit_gemm,
    "grouped": fit_grouped,
    "mla_bmm": fit_mla_bmm,
    "attention": fit_attention,
    "mla": fit_mla,
    "mla_module": fit_mla_module,
    "linear_attention": fit_linear_attention,
    "quantise": fit_quantise,
    "collectives": fit_collectives,
    "dispatch": fit_dispatch,
}


def main() -> None:
    """Fit one family, print its errors and write its parameters where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--gpu")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    entries = []
    for item in FAMILIES[asked.family](asked.tables, asked.gpu):
        entries.append(item)
        named = f"{item['gpu']:9} {item['engine']:8} {item['version']:12} {item['kind']:10}"
        errors = [float("nan") if item[name] is None else item[name] for name in ("median", "p90", "bias")]
        print("{} {:7.1%} {:7.1%} {:+7.1%}".format(named, *errors), flush=True)
    if asked.write and not asked.gpu:
        FITTED.mkdir(exist_ok=True)
        lines = ",\n".join(json.dumps(item) for item in entries)
        (FITTED / f"{asked.family}.json").write_text(f'{{"entries": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
