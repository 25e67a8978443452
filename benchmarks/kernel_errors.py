"""How far off the cost of kernels is on measured rows: today's roofline, the fitted model, and the nearest GPU's.

    python benchmarks/kernel_errors.py --family gemm --tables DIR

One line per GPU, engine, version and element type: rows, then median, 90th percentile and bias (the median with its
sign) of the roofline, of the model on the rows that did not fit it, and of the model with the parameters of the nearest
other GPU (leave one GPU out). A family that is timed by the host says so and counts the rows that hide the host's time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moecast.validate.fitting.lines import FAMILIES


def main() -> None:
    """Print the table of one family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--tables", type=Path, required=True)
    asked = parser.parse_args()
    print(f"{'':44} {'rows':>6}   {'roofline':^23}   {'model':^23}   {'nearest other GPU':^23}")
    print(f"{'':44} {'':>6} " + 3 * f"  {'median':>7} {'p90':>7} {'bias':>7}")
    for line in FAMILIES[asked.family](asked.tables):
        label = "{:9} {:8} {:12} {:12}".format(*line.label)
        print(
            f"{label} {line.model.rows:6}   {line.roofline}   {line.model}   {line.left_out}  {line.note}", flush=True
        )


if __name__ == "__main__":
    main()
