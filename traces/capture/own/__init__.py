"""Routing captured from a small MoE model that is trained here from scratch, its router heard on held-out text.

`moecast capture train` goes the whole way; docs/own-model.md says what the shipped trace is. Import
from the modules: `run` (all of it), `corpus`, `tokens`, `model`, `train`, `score`, `record`,
`evidence`.
"""
