"""Rows of the published sources as answers: dispatch, collectives and whole steps that others measured."""

from __future__ import annotations

from moecast.topology import load_cluster
from moecast.validate.published.answers import RowAnswer
from moecast.validate.published.questions import AllToAll, GroupCollective, SharedTokensStep, TokenExchange
from moecast.validate.published.row import Row, Source
from moecast.validate.published.table import outcome_of

WAITING = "rows that nothing predicts yet"


def answer_reference(source: Source, row: Row) -> RowAnswer:
    """Forecast a row of a source, or say why not."""
    about = {
        "id": f"{source.name}: {row.name}",
        "family": family_of(row),
        "source": source.name,
        "configuration": configuration_of(source, row),
        "use": row.use,
        "unit": row.unit,
        "published": row.value,
    }
    if row.question is None:
        return RowAnswer(why=row.why_not, note=row.note, **about)  # type: ignore[arg-type]
    found = outcome_of(source, row)
    return RowAnswer(
        predicted=found.predicted,
        predicted_s=found.predicted_s,
        published_s=found.published_s,
        note=row.note,
        **about,  # type: ignore[arg-type]
    )


def family_of(row: Row) -> str:
    """What a row is judged with: by what is asked, and whether it crosses nodes."""
    asked = row.question
    if asked is None:
        return WAITING
    if isinstance(asked, (TokenExchange, AllToAll, GroupCollective)):
        what = "dispatch and combine" if isinstance(asked, TokenExchange) else "collectives"
        alone = asked.ranks <= load_cluster(asked.cluster).n_gpus and not getattr(asked, "only_nics", False)
        return f"{what} inside a node" if alone else f"{what} between nodes"
    prefill = isinstance(asked, SharedTokensStep) or getattr(asked, "phase", "") == "prefill"
    return "prefill steps" if prefill else "decode steps of sources"


def configuration_of(source: Source, row: Row) -> str:
    """What rows share that were measured in one setup."""
    asked = row.question
    if asked is None:
        return source.name
    parts = (getattr(asked, name, None) for name in ("cluster", "nodes", "ranks", "mode", "operation", "only_nics"))
    return " ".join([source.name, *(str(part) for part in parts if part is not None)])
