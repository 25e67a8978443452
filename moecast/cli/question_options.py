"""The options of commands that take a question: declared once, laid together to one value."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from moecast.cli.asked import Asked
from moecast.cli.question_file import field_names, gather, write_question_file

QuestionFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="QUESTION", help="A question file: YAML with the fields that options name.", show_default=False
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field of the question: workload.tokens_per_rank=256. Any number of times."),
]
Save = Annotated[Path | None, typer.Option("--save-question", help="Write the question as a file that asks it again.")]


Command = Callable[..., None]


def takes_question(*, without: Collection[str] = (), **defaults: Any) -> Callable[[Command], Command]:
    """Give a command the options of a question, and it the question: its parameter `asked`.

    A command that has a parameter `varied` also gets the fields that the file lists several values of; the others
    refuse such a file.

    Parameters
    ----------
    without
        Fields that the command has no use for.
    defaults
        Values that stand where neither file nor option says another.
    """
    names = [name for name in field_names() if name not in without]

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters
        rest = [parameter for name, parameter in own.items() if name not in ("asked", "varied")]

        def run(context_: typer.Context, **values: Any) -> None:
            file, sets, save = values.pop("question"), values.pop("set_") or (), values.pop("save_question")
            held = {name: values.pop(name) for name in names}
            typed = {name: value for name, value in held.items() if _is_typed(context_, name)}
            asked, varied = gather(file, sets, typed, defaults, taken=names)
            if save is not None:
                write_question_file(asked, save)
            if "varied" in own:
                values["varied"] = varied
            elif varied:
                refuse_varied(file)
            command(asked=asked, **values)

        fields = [_keyword(name, annotation, default) for name, annotation, default in _fields(names, defaults)]
        context = _keyword("context_", typer.Context, inspect.Parameter.empty)
        whole = (("question", QuestionFile), ("set_", Set), ("save_question", Save))
        file, *more = [_keyword(name, annotation, None) for name, annotation in whole]
        parameters = [context, file, *fields, *more, *(p.replace(kind=p.KEYWORD_ONLY) for p in rest)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__, run.__name__, run.__module__ = command.__doc__, command.__name__, command.__module__
        return run

    return decorate


def refuse_varied(file: Path | None) -> None:
    """Refuse a sweep where one question is wanted.

    Raises
    ------
    MoecastError
        Always.
    """
    from moecast.errors import MoecastError

    raise MoecastError("lists values of fields: `moecast sweep` answers it", file=file, field="vary")


def _fields(names: Collection[str], defaults: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    hints, plain = typing.get_type_hints(Asked, include_extras=True), Asked(**defaults)
    return [(name, hints[name], getattr(plain, name)) for name in names]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
