"""Routing traces and load tables: the file format, importers, statistics, and capture from real runs.

Names are imported on first use, so that `import moecast.traces` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moecast.traces.describe import TraceInfo, describe_trace
    from moecast.traces.importers import ImportOptions, import_trace
    from moecast.traces.importers.npz import import_npz
    from moecast.traces.lists import export_lists
    from moecast.traces.load_table import LoadTable, read_load_table, write_load_table
    from moecast.traces.meta import NO_CHOICE, PHASES, TraceMeta
    from moecast.traces.reader import count_tokens, hash_trace, iter_trace, read_meta, read_trace
    from moecast.traces.shipped import shipped_trace_path
    from moecast.traces.statistics.counter import TraceCounter
    from moecast.traces.statistics.summary import TraceStats
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
    from moecast.traces.trace import RoutingTrace, concatenate
    from moecast.traces.writer import TraceWriter, check_target, write_trace

_MODULE_OF = {
    "ImportOptions": "importers",
    "LoadTable": "load_table",
    "NO_CHOICE": "meta",
    "PHASES": "meta",
    "RoutingTrace": "trace",
    "TraceCounter": "statistics.counter",
    "TraceInfo": "describe",
    "TraceMeta": "meta",
    "TraceStats": "statistics.summary",
    "TraceWriter": "writer",
    "balance_pooled": "statistics.tables",
    "check_target": "writer",
    "coactivation_LEE": "statistics.tables",
    "concatenate": "trace",
    "contiguous_ranks_LE": "statistics.tables",
    "count_tokens": "reader",
    "crossings": "statistics.tables",
    "describe_trace": "describe",
    "export_lists": "lists",
    "fan_out": "statistics.tables",
    "hash_trace": "reader",
    "import_npz": "importers.npz",
    "import_trace": "importers",
    "iter_trace": "reader",
    "load_LE": "statistics.tables",
    "read_load_table": "load_table",
    "read_meta": "reader",
    "read_trace": "reader",
    "shipped_trace_path": "shipped",
    "trace_stats": "statistics.tables",
    "transition_LEE": "statistics.tables",
    "write_load_table": "load_table",
    "write_trace": "writer",
}
__all__ = [
    "NO_CHOICE",
    "PHASES",
    "ImportOptions",
    "LoadTable",
    "RoutingTrace",
    "TraceCounter",
    "TraceInfo",
    "TraceMeta",
    "TraceStats",
    "TraceWriter",
    "balance_pooled",
    "check_target",
    "coactivation_LEE",
    "concatenate",
    "contiguous_ranks_LE",
    "count_tokens",
    "crossings",
    "describe_trace",
    "export_lists",
    "fan_out",
    "hash_trace",
    "import_npz",
    "import_trace",
    "iter_trace",
    "load_LE",
    "read_load_table",
    "read_meta",
    "read_trace",
    "shipped_trace_path",
    "trace_stats",
    "transition_LEE",
    "write_load_table",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
