"""Published measurements as typed rows, one file a source, and what the simulator says of the same quantities.

To add one: a file with a `SOURCE`, and a place for it in `SOURCES`.
"""

from moecast.validate.published import (
    aiconfigurator,
    aws,
    collectives,
    deepep,
    nccl_ep,
    nvswitch,
    pplx,
    sglang,
    token_weave,
    unpredicted,
)
from moecast.validate.published.row import Question, Row, Source
from moecast.validate.published.table import Outcome, markdown, mean_error, outcome_of, predict, time_text

SOURCES: tuple[Source, ...] = (
    *deepep.SOURCES,
    nccl_ep.SOURCE,
    pplx.SOURCE,
    aiconfigurator.SOURCE,
    nvswitch.SOURCE,
    *collectives.SOURCES,
    aws.SOURCE,
    sglang.SOURCE,
    token_weave.SOURCE,
    *unpredicted.SOURCES,
)

__all__ = [
    "SOURCES",
    "Outcome",
    "Question",
    "Row",
    "Source",
    "markdown",
    "mean_error",
    "outcome_of",
    "predict",
    "time_text",
]
