"""What ``moecast place`` leaves behind: the plan, an engine's file beside it, and what it shows of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moecast.sim import ModelShape, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where a plan goes: to `out`, and beside it in the form of an engine (`export`), if one is named."""

    out: Path
    export: str | None

    @property
    def exported(self) -> Path | None:
        """The engine's file."""
        from moecast.placement.engines import engine_path

        return None if self.export is None else engine_path(self.out, self.export)

    def check(self, inputs: Mapping[str, str | Path | None]) -> None:
        """Fail where an output would replace an input, or cannot be written.

        Raises
        ------
        MoecastError
            Names the option.
        """
        from moecast.files import check_outputs

        check_outputs({"--out": self.out, "--export": self.exported}, inputs)

    def write(self, plan: Plan, model: ModelShape | None) -> str:
        """Write the plan; how to start the engine with it, empty where there is none."""
        from moecast.placement.engines import find_engine, write_engine_file
        from moecast.sim import write_plan

        write_plan(plan, self.out)
        if self.export is None or self.exported is None:
            return ""
        if model is not None:
            write_engine_file(plan, self.exported, engine=self.export, model=model)
        return find_engine(self.export).launch(str(self.exported), plan)

    def said(self, notes: Sequence[str], launch: str) -> dict[str, Any]:
        """What the JSON says of them."""
        exported = self.exported
        return {
            "notes": list(notes),
            "launch": launch,
            "plan": str(self.out),
            "export": None if exported is None else str(exported),
        }

    def show(
        self,
        title: str,
        rows: Sequence[tuple[str, str]],
        notes: Sequence[str],
        *,
        launch: str,
        warned: Sequence[str],
    ) -> None:
        """Print what was found, what to know of it first, and where it was written."""
        from rich.markup import escape

        from moecast.cli import render

        for note in warned:
            render.console().print(f"[yellow]{escape(note)}[/yellow]")
        render.show_rows(title, rows, notes)
        engine = f", for the engine: [bold]{escape(str(self.exported))}[/bold]" if self.exported else ""
        render.console().print(f"plan: [bold]{escape(str(self.out))}[/bold]{engine}")
        if launch:
            render.console().print(f"with it: {escape(launch)}", soft_wrap=True)
