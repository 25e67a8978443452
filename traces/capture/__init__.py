"""Routing captured from a real run: a small MoE model trained here from scratch, its router heard on held-out text.

`python -m moecast.traces.capture --out trace.parquet` goes the whole way; docs/traces.md says what the shipped trace
is. Import from the modules: `run` (all of it), `corpus`, `tokens`, `model`, `train`, `score`, `record`, `evidence`.
"""
