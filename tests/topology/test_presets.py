"""The presets: every number has a source, and the fitted ones come out of the fit again."""

import numpy as np
import pytest

from moecast.topology import Preset, find_preset, list_presets, load_cluster

PRESETS = pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)


@PRESETS
def test_every_number_has_a_source(preset: Preset) -> None:
    assert set(preset.hardware.sources) == set(preset.hardware.numbers())
    rates = {name for name in preset.domain.__slots__ if name.endswith(("_Bps", "_s"))}
    assert set(preset.domain.sources) == rates
    assert all(len(source) > 5 for source in (*preset.hardware.sources.values(), *preset.domain.sources.values()))


@PRESETS
@pytest.mark.parametrize("fabric", [None, "leaf-spine:2", "rail:1", "single-switch"])
def test_every_preset_builds_with_every_fabric(preset: Preset, fabric: str | None) -> None:
    cluster = load_cluster(preset.name, nodes=2, fabric=fabric)
    assert cluster.n_gpus == 2 * preset.domain.n_gpus
    assert cluster.hardware == preset.hardware
    assert cluster.routing == ("ecmp" if "roce" in preset.name else "spray")
    assert cluster == load_cluster(preset.name, nodes=2, fabric=fabric)


@PRESETS
def test_one_of_a_preset_is_one_domain(preset: Preset) -> None:
    cluster = load_cluster(preset.name)
    assert (cluster.name, cluster.n_domains, cluster.n_gpus) == (preset.name, 1, preset.domain.n_gpus)


def test_the_numbers_that_matter_most() -> None:
    nvlink = {preset.name: preset.domain.nvlink_Bps for preset in list_presets()}
    assert nvlink["h800-node"] == 160e9  # of 200 nominal
    assert nvlink["dgx-h100"] == nvlink["dgx-h200"] == 370e9  # of 450
    assert nvlink["gb200-nvl72"] == 720e9  # of 900
    assert find_preset("gb200-nvl72").domain.hosts == 18
    h200 = find_preset("dgx-h200").hardware
    assert h200.peak_flop_per_s["bf16"] * h200.efficiency["gemm"] == pytest.approx(790e12, rel=0.002)
    assert h200.memory_Bps * h200.efficiency["memory"] == pytest.approx(4.3e12, rel=0.002)
    assert set(find_preset("gb200-nvl72").hardware.peak_flop_per_s) == {"bf16", "fp8", "fp4"}


def low_latency_rows() -> list[tuple[float, float, float]]:
    """Copies that leave a rank, seconds of path and bytes, measured seconds: DeepEP's low-latency kernels on H800.

    128 tokens a rank, top-8 of 256, hidden 7168: 1024 copies a rank, its own share of them stays.
    """
    node = find_preset("h800-node").domain
    pcie_and_nic = 2 * (node.pcie_latency_s + node.nic_latency_s)
    rows = []
    for ranks, rate, latency, measured in (
        (8, node.nic_Bps, pcie_and_nic, (163e-6, 318e-6)),
        (256, node.nic_Bps, pcie_and_nic + 2 * node.switch_latency_s, (194e-6, 360e-6)),
        (8, node.nvlink_Bps, 2 * node.nvlink_latency_s, (77e-6, 114e-6)),
    ):
        copies = 1024 * (ranks - 1) / ranks
        for copy_bytes, seconds in zip((7168 + 7168 // 128 * 4 + 16, 7168 * 2), measured, strict=True):
            rows.append((copies, copies * copy_bytes / rate + latency, seconds))
    return rows


def test_the_costs_of_a_collective_come_out_of_their_fit() -> None:
    hardware = find_preset("h800-node").hardware
    h200 = find_preset("dgx-h200").domain
    small_all_to_all_s = 65536 * 7 / 8 / h200.nvlink_Bps + 2 * h200.nvlink_latency_s
    assert hardware.collective_launch_s + hardware.barrier_s == pytest.approx(12.07e-6 - small_all_to_all_s, rel=0.01)
    copies, known_s, measured_s = np.array(low_latency_rows()).T
    weight = copies / measured_s
    rest = (measured_s - known_s - hardware.collective_launch_s) / measured_s
    assert hardware.message_s == pytest.approx(weight @ rest / (weight @ weight), rel=0.01)
    error = (known_s + hardware.collective_launch_s + copies * hardware.message_s) / measured_s - 1
    assert np.abs(error).max() < 0.06
