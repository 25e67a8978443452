"""Megatron-Core; its kernels are cuBLAS and grouped GEMMs, of which no tables are at hand."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

MEGATRON = Engine(name="megatron", version="0.17", kernels="neutral")
