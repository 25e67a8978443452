"""How long a user waits: the help, the imports, and the demo with a warm and with an empty cache of compiled loops.

Run: python benchmarks/commands.py [--cold]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time


def seconds(*command: str, **environment: str) -> float:
    """Wall time of one process, from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True, env=os.environ | environment)
    return time.perf_counter() - start


def best(*command: str, runs: int = 5) -> float:
    """The fastest of several runs: the others waited for something else."""
    return min(seconds(*command) for _ in range(runs))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cold", action="store_true", help="also run the demo with an empty cache (a minute or two)")
    arguments = parser.parse_args()
    bare = best("-c", "pass")
    rows = [
        ("python -c pass", bare, ""),
        ("moecast --help", best("-m", "moecast", "--help"), "asked: 0.5 s"),
        ("import moecast.sim", best("-c", "import moecast.sim"), ""),
        ("import moecast.placement", best("-c", "import moecast.placement"), ""),
    ]
    with tempfile.TemporaryDirectory() as out:
        demo = ("-m", "moecast", "demo", "--out", out)
        seconds(*demo)  # fills the cache
        rows.append(("moecast demo, warm", seconds(*demo), "asked: 60 s"))
        if arguments.cold:
            with tempfile.TemporaryDirectory() as cache:
                rows.append(("moecast demo, cold", seconds(*demo, NUMBA_CACHE_DIR=cache), "compiles every loop"))
    print("| what | seconds | |\n|---|---:|---|")
    for name, value, note in rows:
        print(f"| {name} | {value:.2f} | {note} |")


if __name__ == "__main__":
    main()
