"""What is in a trace: counts and tables, and what they say of load, locality, dependence, drift and health.

One module per kind of statistic, each defined in its docstring with its source; `moecast.traces`
exports the functions.
"""
