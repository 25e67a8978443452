"""SGLang."""

from __future__ import annotations

from moecast.sim.engines.engine import Engine

SGLANG = Engine(name="sglang", version="0.5.14", kernels="sglang")
