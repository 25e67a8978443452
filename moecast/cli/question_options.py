"""The options of commands that take a question: declared once, laid together to one value."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from moecast.cli.asked import Asked, option
from moecast.cli.own_sections import OWN_SECTIONS, option_of, section_of
from moecast.cli.question_file import (
    dotted,
    field_names,
    find_field,
    last_part,
    parse_text,
    read_question_file,
    write_question_file,
)
from moecast.errors import MoecastError

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

Vary = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        "--over",
        help="A field and its values: workload.tokens_per_rank=64,128, or a row of them: 16:512:x2 "
        "(or 16:64:+16). Any number of times.",
    ),
]

MOST_OF_A_ROW = 10_000

Command = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What is asked: the question, the values of a command's own sections by its parameters, and fields that vary."""

    asked: Asked
    own: Mapping[str, Any]
    varied: Mapping[str, list[Any]]


def gather(
    file: Path | None,
    sets: Sequence[str],
    by_option: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    taken: Collection[str],
) -> Gathered:
    """Lay what the options and `--set` say over the question file, and that over a command's defaults.

    The question's `overrides` say what was changed of the file.
    """
    held, varied = ({}, {}) if file is None else read_question_file(file)
    changed: dict[str, Any] = {}
    for text in sets:
        field, equals, value = text.partition("=")
        if not equals:
            rule = "takes field=value, as in workload.steps=4"
            raise MoecastError(rule, field="--set", value=text)
        name = find_field(field.strip(), value=value, taken=taken)
        refuse_unused(name, taken, field=f"--set {field}", value=value)
        changed[name] = parse_text(name, value.strip(), field=f"--set {dotted(name)}")
    changed |= by_option
    told = [
        f"{dotted(name)} = {value}, in {file.name} {held.get(name, 'not given')}"
        for name, value in changed.items()
        if file is not None and held.get(name, defaults.get(name)) != value
    ]
    values = {**defaults, **held, **changed}
    asked = {name: value for name, value in values.items() if section_of(name) is None}
    own = {
        section.parameter: section.kind(**{last_part(name): values[name] for name in section.fields if name in values})
        for section in OWN_SECTIONS
        if set(section.fields) <= set(taken)
    }
    unused = tuple(dotted(name) for name in held if name not in taken)
    question = Asked(**asked, overrides=tuple(told), given=frozenset(changed), file=file, unused=unused)
    return Gathered(asked=question, own=own, varied=varied)


def refuse_unused(name: str, taken: Collection[str], *, field: str, value: object) -> None:
    """Refuse a field that the command has no use for.

    Raises
    ------
    MoecastError
        It has none.
    """
    if name not in taken:
        raise MoecastError("this command does not use it", field=field, value=value)


def takes_question(*, without: Collection[str] = (), **defaults: Any) -> Callable[[Command], Command]:
    """Give a command the options of a question, and it the question: its parameter `asked`.

    A command that has a parameter `varied` takes `--vary` and gets the fields that vary; the others
    refuse a file that lists several values. One that has the parameter of a section of its own
    (`OWN_SECTIONS`) takes its options, too.

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
        sections = [section for section in OWN_SECTIONS if section.parameter in own]
        taken = (*names, *(name for section in sections for name in section.fields))
        held_back = {"asked", "varied", *(section.parameter for section in sections)}
        rest = [parameter for name, parameter in own.items() if name not in held_back]

        def run(context_: typer.Context, **values: Any) -> None:
            file, sets, save = values.pop("question"), values.pop("set_") or (), values.pop("save_question")
            held = {name: values.pop(option_of(name)) for name in taken}
            typed = {name: value for name, value in held.items() if _is_typed(context_, option_of(name))}
            found = gather(file, sets, typed, defaults, taken=taken)
            if "varied" in own:
                found = with_varied(found, values.pop("vary") or (), taken=taken)
                values["varied"] = found.varied
            elif found.varied:
                refuse_varied(file)
            values |= found.own
            if save is not None:
                _check_save(save, found.asked, values)
            command(asked=found.asked, **values)
            if save is not None:  # what has no answer is no question to keep
                kept = {section.name: found.own[section.parameter] for section in sections}
                write_question_file(found.asked, save, own=kept, varied=found.varied, names=names if kept else None)

        fields = [_keyword(name, annotation, default) for name, annotation, default in _fields(names, defaults)]
        for section in sections:
            plain = section.kind()
            fields += [
                _keyword(section.option(name), section.annotation(name), getattr(plain, last_part(name)))
                for name in section.fields
            ]
        context = _keyword("context_", typer.Context, inspect.Parameter.empty)
        whole = (("question", QuestionFile), ("set_", Set), ("save_question", Save))
        file, *more = [_keyword(name, annotation, None) for name, annotation in whole]
        if "varied" in own:
            more.append(_keyword("vary", Vary, None))
        parameters = [context, file, *fields, *more, *(p.replace(kind=p.KEYWORD_ONLY) for p in rest)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__, run.__name__, run.__module__ = command.__doc__, command.__name__, command.__module__
        return run

    return decorate


def _check_save(save: Path, asked: Asked, values: Mapping[str, Any]) -> None:
    """Fail before any work where the question cannot be written, or would replace another file of the command."""
    from moecast.files import check_apart, check_writable

    others = {option(name): value for name, value in values.items() if isinstance(value, Path)}
    check_apart({"--save-question": save}, {**asked.files, **others})
    check_writable(save)


def with_varied(found: Gathered, texts: Sequence[str], *, taken: Collection[str]) -> Gathered:
    """Lay `--vary` over what the file varies.

    Raises
    ------
    MoecastError
        A field that the command does not use, that varies twice, or that an option or `--set` gives
        one value.
    """
    typed: dict[str, list[Any]] = {}
    for text in texts:
        name, values = parse_vary(text)
        if name in typed:
            raise MoecastError("stands twice: list its values once", field=f"--vary {dotted(name)}")
        typed[name] = values
    varied = {**found.varied, **typed}
    for name, values in varied.items():
        field = f"--vary {dotted(name)}" if name in typed else f"vary.{dotted(name)}"
        refuse_unused(name, taken, field=field, value=values)
        if name in found.asked.given:
            raise MoecastError("varies, and an option or --set gives it one value", field=field)
    return replace(found, varied=varied)


def parse_vary(text: str) -> tuple[str, list[Any]]:
    """Read ``workload.tokens_per_rank=64,128``.

    Values that hold a comma themselves stand apart by semicolons.

    Raises
    ------
    MoecastError
        No such field, or no values that it can have.
    """
    field, equals, listed = text.partition("=")
    if not equals or not listed.strip():
        raise MoecastError("takes field=value,value, as in plan.tp=1,2", field="--vary", value=text)
    name = find_field(field.strip())
    parts = [
        value
        for part in listed.split(";" if ";" in listed else ",")
        for value in row_of_values(part.strip(), field=f"--vary {dotted(name)}")
    ]
    return name, [parse_text(name, part.strip(), field=f"--vary {dotted(name)}") for part in parts]


def row_of_values(text: str, *, field: str) -> list[str]:
    """``16:512:x2`` is 16, 32 … 512, ``16:64:+16`` is 16, 32, 48, 64; any other text is itself.

    Raises
    ------
    MoecastError
        A row that does not rise, or has no end.
    """
    match = re.fullmatch(r"(\d{1,12}):(\d{1,12}):([x+])(\d{1,12})", text)
    if match is None:
        return [text]
    value, last, step = int(match[1]), int(match[2]), int(match[4])
    if value > last or step < (2 if match[3] == "x" else 1) or (match[3] == "x" and value < 1):
        raise MoecastError(
            "a row rises from its first value to its last: 16:512:x2, 16:64:+16", field=field, value=text
        )
    values: list[str] = []
    while value <= last and len(values) < MOST_OF_A_ROW:
        values.append(str(value))
        value = value * step if match[3] == "x" else value + step
    return values


def refuse_varied(file: Path | None) -> None:
    """Refuse a sweep where one question is wanted.

    Raises
    ------
    MoecastError
        Always.
    """
    rule = "lists values of fields: `moecast sweep` answers it"
    raise MoecastError(rule, file=file, field="vary")


def _fields(names: Collection[str], defaults: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return _of(Asked, Asked(**defaults), names)


def _of(kind: type, plain: object, names: Iterable[str]) -> list[tuple[str, Any, Any]]:
    """Fields of a value that holds options: name, option and default."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [(name, hints[name], getattr(plain, name)) for name in names]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
