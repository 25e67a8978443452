"""The pictures of docs/schedules.md are what the schedules draw, and well-formed."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from moecast.sim.network import Fluid
from moecast.sim.schedules import find_schedule
from moecast.sim.schedules.picture import draw_program
from tests.sim.toy_pass import ToyPass

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_pictures_of_the_docs_are_drawn_by_the_schedules() -> None:
    spec = importlib.util.spec_from_file_location("schedule_pictures", ROOT / "benchmarks" / "schedule_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    drawn = dict(drawing.pictures())
    text = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    for name, picture in drawn.items():
        kept = (ROOT / "docs" / "schedules" / name).read_text(encoding="utf-8")
        assert numbers_rounded(picture) == numbers_rounded(kept), f"{name}: draw the pictures again"
        assert name == "forward.svg" or f"schedules/{name}" in text
    assert {path.name for path in (ROOT / "docs" / "schedules").glob("*.svg")} == set(drawn)


def numbers_rounded(picture: str) -> list[tuple[str, list[float]]]:
    """Boxes to a pixel: another machine's floats may differ in the last digit."""
    return [
        (box.tag, [round(float(box.get(side, "0"))) for side in ("x", "y", "width") if box.get(side, "0")[-1] != "%"])
        for box in ET.fromstring(picture).iter()
    ]


def test_a_picture_has_a_box_for_each_task_that_takes_time() -> None:
    step = ToyPass(layers=2, attention_s=1.0, expert_s=2.0, dispatch_s=0.5, combine_s=0.5)
    program = step.program(find_schedule("two-batch").tasks(step))
    times = Fluid().run(program)
    picture = ET.fromstring(draw_program(program, times, title="a < b & c", ranks=(0, 1)))
    boxes = [e for e in picture.iter() if e.tag.endswith("rect") and len(e)]
    lasting = sum(
        int(np.count_nonzero(leave_R > enter_R)) for leave_R, enter_R in zip(times.leave_S, times.enter_S, strict=True)
    )
    assert len(boxes) == lasting
    assert picture[0].text == "a < b & c: 6.25 s"
    with pytest.raises(ValueError, match="ranks = 2"):
        draw_program(program, times, title="", ranks=(2,))
