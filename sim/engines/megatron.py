"""Megatron-Core: its dense products are cuBLAS, which the mean of serving engines stands for.

Its experts are grouped GEMMs between permutations of their own, and its dispatchers (HybridEP,
DeepEP, all-to-all) move rows of 4,096 tokens and more; of neither a table is at hand. What serving
engines launch is something else, so that experts are priced by the roofline and exchanges by links.
"""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

MEGATRON = Engine(name="megatron", version="0.17", kernels="neutral", measured_moe=False)
