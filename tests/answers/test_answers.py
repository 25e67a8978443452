"""No answer changes unless that is meant: then CHANGES.md says which and why, and the file is written anew."""

from __future__ import annotations

from collections import Counter

import pytest

from moecast.sim import RUNGS
from tests.answers.answer import answer, read_answers
from tests.answers.questions import CLUSTERS, CONFIGS, MODES, N_QUESTIONS, RULES, question

PARTS = 16


@pytest.mark.parametrize("part", range(PARTS))
def test_answers_are_what_they_were(part: int) -> None:
    held = read_answers()
    for number in range(part, N_QUESTIONS, PARTS):
        found = answer(question(number))
        assert found.keys() == held[number].keys(), f"question {number}"
        for name, value in held[number].items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-15), f"question {number}: {name}"


def test_the_questions_cover_what_can_be_asked() -> None:
    words = Counter(word for number in range(N_QUESTIONS) for word in question(number).words())
    presets = {preset for preset, _, _ in CLUSTERS}
    wanted = {"prefill", "decode", "as-recorded", "replicas", "no replicas", "some GPUs", "every GPU", "tp 2", "fp8"}
    wanted |= {*MODES, *RULES, *(rung.name for rung in RUNGS), *CONFIGS, *presets}
    assert len(read_answers()) == N_QUESTIONS >= 300
    assert min(words[word] for word in wanted) >= 20, words
