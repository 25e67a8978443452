"""The real routing traces that come with moecast."""

from __future__ import annotations

from pathlib import Path

from moecast.errors import MoecastError

_FOLDER = Path(__file__).parent / "shipped"


def shipped_trace_path(policy: str | None = None) -> Path:
    """Find the trace in the installed package, or the small one whose router followed `policy`.

    Raises
    ------
    MoecastError
        None comes with this installation, or none of that policy.
    """
    if policy is None:
        for path in sorted(_FOLDER.glob("*.parquet")):
            return path
        raise MoecastError("no trace comes with this installation", file=_FOLDER)
    known = shipped_policies()
    if policy not in known:
        rule = f"one of {', '.join(known)}" if known else "no policy's trace comes with this installation"
        raise MoecastError(rule, field="shipped trace of policy", value=policy)
    return _FOLDER / "policies" / f"{policy}.parquet"


def shipped_policies() -> tuple[str, ...]:
    """List the router policies of which a trace comes with this installation."""
    return tuple(sorted(path.stem for path in (_FOLDER / "policies").glob("*.parquet")))
