"""How far off dispatch and combine inside a domain are on rows that nobody fitted.

Axes: R row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.sim.cost.dispatch import all_parameters, distinct_ranks
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.nvlink import NOMINAL_Bps
from moecast.validate.fitting.dispatch import BELOW, LOW_LATENCY, Cut, fit, predict, read_cuts
from moecast.validate.fitting.errors import Errors

Float = npt.NDArray[np.float64]

USABLE = 0.81
"""What presets take NVLink to give of its nominal rate: 370 of 450 GB/s, 720 of 900."""
LATENCY_S = 1e-6


def compare(root: Path) -> Iterator[tuple[tuple[str, str, str, str], Errors, Errors, Errors]]:
    """Give GPU, library, version and phase, and the errors of links alone, of the model, and with a relative's.

    The model is judged with the parameters that ship; a relative's are fitted on the other GPUs'
    drawn rows.
    """
    cuts = read_cuts(root)
    entries = all_parameters()
    for gpu in sorted({cut.table.gpu for cut in cuts}):
        others = fit(cuts, without=gpu)
        for cut in (cut for cut in cuts if cut.table.gpu == gpu):
            rows = cut.unseen_R
            measured_R = cut.table.seconds_R[rows]
            try:
                left_out = Errors.of(predict(others, cut)[rows], measured_R)
            except (MoecastError, ValueError):  # nobody else has it
                left_out = Errors.of(np.empty(0), np.empty(0))
            yield (
                (gpu, cut.engine, cut.table.version, cut.phase),
                Errors.of(links_alone(cut)[rows], measured_R),
                Errors.of(predict(entries, cut)[rows], measured_R),
                left_out,
            )


def links_alone(cut: Cut) -> Float:
    """Launch, latency, copies and bytes over NVLink by the hardware table, which says nothing of kernels [R]."""
    table, hardware = cut.table, GPUS[cut.table.gpu]
    rate_Bps, away = USABLE * NOMINAL_Bps[table.gpu], (table.ranks_R - 1) / table.ranks_R
    fixed_s = hardware.collective_launch_s + LATENCY_S
    if BELOW.get(cut.library, cut.library) == LOW_LATENCY:
        each_s = hardware.message_s + table.copy_bytes_R / rate_Bps
        return np.asarray(fixed_s + table.tokens_R * table.choices_R * away * each_s, np.float64)
    copies_R = distinct_ranks(table.ranks_R, table.choices_R) * away
    return np.asarray(fixed_s + table.tokens_R * copies_R * table.copy_bytes_R / rate_Bps, np.float64)
