"""The report: predictions side by side on one self-contained HTML page."""

from moecast.report.comparison import Comparison, Entry, read_comparison, write_comparison
from moecast.report.comparison_page import write_report

__all__ = ["Comparison", "Entry", "read_comparison", "write_comparison", "write_report"]
