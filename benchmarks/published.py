"""What the simulator says of published measurements, with the error: `python benchmarks/published.py [SOURCE ...]`.

Names of sources restrict the table (as in its first column). No parameter is fitted here: the hardware tables name the
rows that theirs were fitted on, and only rows marked "fit" may be among them.
"""

from __future__ import annotations

import sys

from moecast.validate.published import SOURCES, markdown, predict


def main(wanted: list[str]) -> None:
    """Print the table."""
    chosen = [source for source in SOURCES if not wanted or source.name in wanted]
    if not chosen:
        raise SystemExit(f"sources: {', '.join(source.name for source in SOURCES)}")
    print(markdown(predict(chosen)))
    print()
    for source in chosen:
        print(f"{source.name}: {source.where}. {source.conditions}.")


if __name__ == "__main__":
    main(sys.argv[1:])
