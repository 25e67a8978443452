"""The simulator's attention of a layer beside measured modules of multi-head latent attention.

    python benchmarks/attention_layers.py --tables DIR --config deepseek-ai--DeepSeek-V3_config.json

DIR holds `<gpu>/mla/<engine>/<version>/*module*.parquet`. No module's row set a number of the kernels and products that
the simulator adds up, so that this checks them and the sum. Printed: median and 90th percentile of the relative error,
by the roofline and by fitted kernels, with all 128 heads on a rank and with 16 (TP 8).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from moecast.sim.attention import attention_seconds
from moecast.sim.cost.gpus import GPUS
from moecast.sim.cost.tables.mla_module import MlaModuleTable, read_mla_modules
from moecast.sim.model import ModelShape


def errors(table: MlaModuleTable, model: ModelShape, *, kernels: str, heads: int) -> tuple[float, float]:
    """Median and 90th percentile (of the size) of the error on a table's rows of so many heads."""
    hardware = replace(GPUS[table.gpu], kernels=kernels, engine=table.engine)
    same = table.heads_R == heads
    batch, tokens, keys = table.batch_R[same], table.tokens_R[same], table.keys_R[same]
    seconds = attention_seconds(
        replace(model, kv_type=table.cache_type),
        hardware,
        phase=table.phase,
        tokens_G=batch * tokens,
        context_sum_G=batch * keys if table.phase == "decode" else batch * tokens * (tokens + 1) / 2,
        tp=128 // heads,
    )
    error = seconds / table.seconds_R[same] - 1
    return float(np.median(error)), float(np.quantile(np.abs(error), 0.9))


def main() -> None:
    """Print the table; modules with FP8 weights alone, as the model's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    asked = parser.parse_args()
    model = ModelShape.from_config(asked.config)
    for table in read_mla_modules(asked.tables):
        if table.gemm_type != "fp8_block" or table.engine == "sglang" or table.phase == "absorbed" or table.kernel:
            continue
        said = [
            errors(table, model, kernels=kernels, heads=heads)
            for kernels in ("roofline", "fitted")
            for heads in (128, 16)
        ]
        print(f"{table.gpu:9} {table.engine:7} {table.kind:24}", *(f"{a:+5.0%} {b:4.0%} " for a, b in said), flush=True)


if __name__ == "__main__":
    main()
