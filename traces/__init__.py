"""Routing traces and load tables: the file format, importers, statistics, and capture from real runs.

Names are imported on first use, so that `import moecast.traces` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moecast.traces.importers import ImportOptions, import_trace
    from moecast.traces.importers.npz import import_npz
    from moecast.traces.load_table import LoadTable
    from moecast.traces.reader import iter_trace, read_meta, read_trace
    from moecast.traces.shipped import shipped_trace_path
    from moecast.traces.statistics import (
        TraceCounter,
        TraceStats,
        balance_pooled,
        coactivation_LEE,
        contiguous_ranks_LE,
        crossings,
        fan_out,
        load_LE,
        trace_stats,
        transition_LEE,
    )
    from moecast.traces.trace import (
        NO_CHOICE,
        PHASES,
        RoutingTrace,
        TraceMeta,
        concatenate,
    )
    from moecast.traces.writer import TraceWriter, write_trace

_MODULE_OF = {
    "NO_CHOICE": "trace",
    "PHASES": "trace",
    "ImportOptions": "importers",
    "LoadTable": "load_table",
    "RoutingTrace": "trace",
    "TraceMeta": "trace",
    "TraceWriter": "writer",
    "concatenate": "trace",
    "import_npz": "importers.npz",
    "import_trace": "importers",
    "iter_trace": "reader",
    "read_meta": "reader",
    "read_trace": "reader",
    "shipped_trace_path": "shipped",
    "write_trace": "writer",
    "balance_pooled": "statistics",
    "coactivation_LEE": "statistics",
    "contiguous_ranks_LE": "statistics",
    "crossings": "statistics",
    "fan_out": "statistics",
    "load_LE": "statistics",
    "trace_stats": "statistics",
    "transition_LEE": "statistics",
    "TraceCounter": "statistics",
    "TraceStats": "statistics",
}
__all__ = [
    "NO_CHOICE",
    "PHASES",
    "ImportOptions",
    "LoadTable",
    "RoutingTrace",
    "TraceCounter",
    "TraceMeta",
    "TraceStats",
    "TraceWriter",
    "balance_pooled",
    "coactivation_LEE",
    "concatenate",
    "contiguous_ranks_LE",
    "crossings",
    "fan_out",
    "import_npz",
    "import_trace",
    "iter_trace",
    "load_LE",
    "read_meta",
    "read_trace",
    "shipped_trace_path",
    "trace_stats",
    "transition_LEE",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
