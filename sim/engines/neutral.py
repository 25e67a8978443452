"""No engine in particular: kernels as the engines have them in the mean, and no time of a host."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

NEUTRAL = Engine(name="neutral", version="", kernels="neutral")
