"""Reports, each one self-contained HTML page: predictions side by side, a run of requests, and what is in a trace."""

from moecast.report.comparison import Comparison, Entry, read_comparison, write_comparison
from moecast.report.comparison_page import write_report
from moecast.report.serve_page import write_serve_page
from moecast.report.trace_page import write_trace_page

__all__ = [
    "Comparison",
    "Entry",
    "read_comparison",
    "write_comparison",
    "write_report",
    "write_serve_page",
    "write_trace_page",
]
