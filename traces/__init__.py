"""Routing traces and load tables: the file format, importers, statistics, and capture from real runs.

Names are imported on first use, so that `import moecast.traces` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moecast.traces.describe import TraceInfo, describe_trace
    from moecast.traces.importers import ImportedTrace, ImportOptions, import_trace, open_import
    from moecast.traces.importers.npz import import_npz
    from moecast.traces.lists import export_lists
    from moecast.traces.load_table import LoadTable, read_load_table, write_load_table
    from moecast.traces.meta import NO_CHOICE, PHASES, TraceMeta
    from moecast.traces.part import iter_part
    from moecast.traces.reader import hash_trace, iter_trace, read_trace
    from moecast.traces.shards import count_tokens, read_meta
    from moecast.traces.shipped import shipped_policies, shipped_trace_path
    from moecast.traces.statistics.affinity import Affinity, affinity
    from moecast.traces.statistics.coactivation import Coactivation, coactivation
    from moecast.traces.statistics.counter import TraceCounter
    from moecast.traces.statistics.dependence import Dependence, dependence
    from moecast.traces.statistics.drift import Drift, LoadDistances
    from moecast.traces.statistics.findings import Finding
    from moecast.traces.statistics.locality import Locality, locality
    from moecast.traces.statistics.packing import load_balance, packed_ranks_LE
    from moecast.traces.statistics.parts import Positions
    from moecast.traces.statistics.profile import TraceProfile, profile_trace
    from moecast.traces.statistics.sample import TokenSample, sample_of
    from moecast.traces.statistics.stability import Stability, stability
    from moecast.traces.statistics.summary import TraceStats, load_gini_L
    from moecast.traces.statistics.tables import (
        balance_pooled,
        coactivation_LEE,
        contiguous_ranks_LE,
        crossings,
        fan_out,
        load_LE,
        trace_stats,
        transition_LEE,
    )
    from moecast.traces.synthesis.model import TraceModel, fit_trace
    from moecast.traces.synthesis.shape import Shape, parse_shape
    from moecast.traces.synthesis.synthesise import synthesise, synthetic_meta
    from moecast.traces.trace import RoutingTrace, concatenate
    from moecast.traces.writer import TraceWriter, check_target, write_trace

_MODULE_OF = {
    "Affinity": "statistics.affinity",
    "Coactivation": "statistics.coactivation",
    "Dependence": "statistics.dependence",
    "Drift": "statistics.drift",
    "Finding": "statistics.findings",
    "ImportOptions": "importers",
    "ImportedTrace": "importers",
    "LoadDistances": "statistics.drift",
    "LoadTable": "load_table",
    "Locality": "statistics.locality",
    "NO_CHOICE": "meta",
    "PHASES": "meta",
    "Positions": "statistics.parts",
    "RoutingTrace": "trace",
    "Shape": "synthesis.shape",
    "Stability": "statistics.stability",
    "TokenSample": "statistics.sample",
    "TraceCounter": "statistics.counter",
    "TraceInfo": "describe",
    "TraceMeta": "meta",
    "TraceModel": "synthesis.model",
    "TraceProfile": "statistics.profile",
    "TraceStats": "statistics.summary",
    "TraceWriter": "writer",
    "affinity": "statistics.affinity",
    "balance_pooled": "statistics.tables",
    "check_target": "writer",
    "coactivation": "statistics.coactivation",
    "coactivation_LEE": "statistics.tables",
    "concatenate": "trace",
    "contiguous_ranks_LE": "statistics.tables",
    "count_tokens": "shards",
    "crossings": "statistics.tables",
    "dependence": "statistics.dependence",
    "describe_trace": "describe",
    "export_lists": "lists",
    "fan_out": "statistics.tables",
    "fit_trace": "synthesis.model",
    "hash_trace": "reader",
    "import_npz": "importers.npz",
    "import_trace": "importers",
    "iter_part": "part",
    "iter_trace": "reader",
    "load_LE": "statistics.tables",
    "load_balance": "statistics.packing",
    "load_gini_L": "statistics.summary",
    "locality": "statistics.locality",
    "open_import": "importers",
    "packed_ranks_LE": "statistics.packing",
    "parse_shape": "synthesis.shape",
    "profile_trace": "statistics.profile",
    "read_load_table": "load_table",
    "read_meta": "shards",
    "read_trace": "reader",
    "sample_of": "statistics.sample",
    "shipped_policies": "shipped",
    "shipped_trace_path": "shipped",
    "stability": "statistics.stability",
    "synthesise": "synthesis.synthesise",
    "synthetic_meta": "synthesis.synthesise",
    "trace_stats": "statistics.tables",
    "transition_LEE": "statistics.tables",
    "write_load_table": "load_table",
    "write_trace": "writer",
}
__all__ = [
    "NO_CHOICE",
    "PHASES",
    "Affinity",
    "Coactivation",
    "Dependence",
    "Drift",
    "Finding",
    "ImportOptions",
    "ImportedTrace",
    "LoadDistances",
    "LoadTable",
    "Locality",
    "Positions",
    "RoutingTrace",
    "Shape",
    "Stability",
    "TokenSample",
    "TraceCounter",
    "TraceInfo",
    "TraceMeta",
    "TraceModel",
    "TraceProfile",
    "TraceStats",
    "TraceWriter",
    "affinity",
    "balance_pooled",
    "check_target",
    "coactivation",
    "coactivation_LEE",
    "concatenate",
    "contiguous_ranks_LE",
    "count_tokens",
    "crossings",
    "dependence",
    "describe_trace",
    "export_lists",
    "fan_out",
    "fit_trace",
    "hash_trace",
    "import_npz",
    "import_trace",
    "iter_part",
    "iter_trace",
    "load_LE",
    "load_balance",
    "load_gini_L",
    "locality",
    "open_import",
    "packed_ranks_LE",
    "parse_shape",
    "profile_trace",
    "read_load_table",
    "read_meta",
    "read_trace",
    "sample_of",
    "shipped_policies",
    "shipped_trace_path",
    "stability",
    "synthesise",
    "synthetic_meta",
    "trace_stats",
    "transition_LEE",
    "write_load_table",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
