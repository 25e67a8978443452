"""Routing that commands make is never too small for what is asked, and is used again only where it must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecast.cli import made
from moecast.cli.asked import Source
from moecast.errors import MoecastError
from moecast.sim import ModelShape, Workload, draw_steps
from tests.cli.conftest import CONFIG, Run

SMALL = ModelShape.from_config(CONFIG, name="small")
ASKED = ("--cluster", "dgx-h200", "--network", "bound", "--no-gains", "--routing", "uniform")


@st.composite
def asked(draw: Callable[..., int]) -> tuple[Source, Workload, int]:
    """Any sizes, phase and part."""
    part = draw(st.sampled_from(("all", "planning", "measuring")))
    plan_on = draw(st.sampled_from((0.1, 0.5, 0.75)))
    phase = draw(st.sampled_from(("prefill", "decode")))
    isl = draw(st.sampled_from((None, 1, 17, 300, 5000)))
    source = Source(trace=None, routing="uniform", part=part, plan_on=plan_on, isl=isl)
    tokens, steps = draw(st.integers(1, 400)), draw(st.integers(1, 6))
    return source, Workload(phase=phase, tokens_per_rank=tokens, steps=steps), draw(st.integers(1, 12))


@settings(max_examples=40, deadline=None)
@given(asked())
def test_what_is_made_fills_the_steps_without_a_second_use(case: tuple[Source, Workload, int]) -> None:
    source, workload, ranks = case
    trace, fitted, _ = made.routing_for(source, SMALL, workload, ranks=ranks, seed=0, quiet=True)
    assert [len(step.token_T) for step in draw_steps(trace, fitted, ranks=ranks)] == (
        [ranks * workload.tokens_per_rank] * workload.steps
    )
    length = workload.steps if workload.phase == "decode" else source.isl or made.DEFAULT_ISL
    enough = made.sequences_needed(workload, ranks=ranks, length=length)
    if (enough + 2) / source.share * length <= made.MOST_TOKENS:
        assert not fitted.reuse


def test_more_than_is_made_is_drawn_again_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "MOST_TOKENS", 64)
    source = Source(trace=None, routing="uniform", isl=32)
    workload = Workload(phase="prefill", tokens_per_rank=40, steps=3)
    trace, fitted, notes = made.routing_for(source, SMALL, workload, ranks=4, seed=0, quiet=True)
    assert fitted.reuse
    assert trace.n_tokens == 64
    assert notes[-1].startswith("64 different tokens are made, fewer than the steps hold")
    assert len(draw_steps(trace, fitted, ranks=4)) == 3


def test_routing_like_a_trace_is_long_enough(small: Path) -> None:
    source = Source(trace=small / "t.parquet", routing="trace")
    for phase, tokens, steps in (("prefill", 7, 1), ("prefill", 300, 2), ("decode", 3, 1), ("decode", 9, 70)):
        workload = Workload(phase=phase, tokens_per_rank=tokens, steps=steps)
        trace, fitted, notes = made.routing_for(source, SMALL, workload, ranks=8, seed=0, quiet=True)
        assert (fitted.reuse, notes) == (False, ())
        assert len(draw_steps(trace, fitted, ranks=8)) == steps


def test_recorded_prompts_have_their_own_length() -> None:
    with pytest.raises(MoecastError, match="--isl = 64: recorded prompts have their own lengths"):
        Source(trace=Path("t.parquet"), isl=64)


def test_small_and_large_workloads_on_the_command_line(run: Run, tmp_path: Path) -> None:
    """Prompts of 8,192 attend to more keys than those of 256."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = ("--model", "config.json", "--json")
    spent = {}
    for isl in (256, 8192):
        done = run("simulate", *ASKED, *model, "--tokens-per-rank", 300, "--steps", 2, "--isl", isl, check=True)
        value = json.loads(done.stdout)
        assert value["workload"]["reuse"] is False
        assert f"prompts of {isl} tokens each (--isl)" in value["warnings"]
        spent[isl] = value["breakdown_s"]["attention"]
    assert spent[8192] > spent[256]


def test_decode_like_the_shipped_trace_has_a_context_as_models_have(small: Path) -> None:
    """The shipped texts are short; a trace of one's own has the contexts that it recorded."""
    workload = Workload(phase="decode", tokens_per_rank=2, steps=1)
    contexts = {}
    for name, path in (("shipped", None), ("own", small / "t.parquet")):
        source = Source(trace=path, routing="trace")
        _, contexts[name], _ = made.routing_for(source, SMALL, workload, ranks=2, seed=0, quiet=True)
    assert contexts["shipped"].context == made.DEFAULT_CONTEXT
    assert contexts["own"].context is None


def test_ranks_without_an_expert_are_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    asked_of = ("--model", "config.json", "--nodes", 4, "--tokens-per-rank", 4, "--steps", 1)
    text = " ".join(run("simulate", *ASKED, *asked_of, check=True).stdout.split())
    assert "16 of 32 ranks hold no expert" in text
    assert "model: prefill on 4 x dgx-h200" in text
