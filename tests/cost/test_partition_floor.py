"""The floor of experts that stand on one rank each: never above a partition's mean, nor above any one rank."""

from __future__ import annotations

import numpy as np
import pytest

from moecast.sim import load_model
from moecast.sim.cost import ExpertBlock, costs_of
from moecast.topology import load_cluster


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("preset", ["dgx-h100", "dgx-h200", "gb200-nvl72"])
@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v3"])
def test_no_partition_of_experts_takes_less(preset: str, name: str, phase: str) -> None:
    costs, block = costs_of(load_cluster(preset).hardware), ExpertBlock.of(load_model(name))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        load_E = (rng.pareto(1.2, 32) * rng.choice([0.2, 5, 200])).astype(np.int64)
        slots = int(rng.choice([2, 4, 8, 16]))
        mean_s, least_s = costs.partition_floor_seconds(block, load_E, ranks=32 // slots, slots=slots, phase=phase)
        load_NGP = np.array([rng.permutation(load_E).reshape(-1, slots) for _ in range(20)])
        load_NGP[0] = np.sort(load_E).reshape(-1, slots)
        seconds_NG = costs.expert_seconds(block, load_NGP, phase=phase)
        assert 0 < mean_s <= seconds_NG.mean(axis=1).min() * (1 + 1e-12)
        assert 0 < least_s <= seconds_NG.min() * (1 + 1e-12)
