"""Make a routing trace from nothing but text: `python -m moecast.traces.capture --out trace.parquet`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from moecast.errors import MoecastError

DEFAULT_CACHE = Path("~/.cache/moecast/capture")


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print the summary; bad input is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m moecast.traces.capture", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the trace to write, a .parquet file")
    parser.add_argument("--size", default="cpu", help="cpu (as shipped), gpu or tiny")
    parser.add_argument("--text", type=Path, help="a folder of <topic>/<file> instead of Debian packages")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="packages and checkpoints (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--minutes", type=float, help="end training early so that it takes about this long")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    from moecast.traces.capture.options import sized
    from moecast.traces.capture.run import run
    from moecast.traces.capture.summary import as_text

    try:
        outcome = run(
            given.out,
            size=sized(given.size, seed=given.seed, steps=given.steps, minutes=given.minutes),
            cache=given.cache.expanduser(),
            text=given.text,
            device=given.device,
            threads=given.threads,
        )
    except MoecastError as error:
        sys.stderr.write(f"moecast: {error}\n")
        return 2
    sys.stdout.write(as_text(outcome) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
