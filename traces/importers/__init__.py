"""Importers of routing recorded elsewhere. To add one: a file here, an entry in `IMPORTERS`, a row in the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moecast.errors import MoecastError
from moecast.files import check_regular
from moecast.traces.importers.importer import ImportedTrace, Importer
from moecast.traces.importers.leave_out import leave_out
from moecast.traces.importers.megatron import MegatronImporter
from moecast.traces.importers.npz import NpzImporter
from moecast.traces.importers.options import ImportOptions
from moecast.traces.importers.routes_json import RoutesJsonImporter
from moecast.traces.importers.sglang import SglangImporter
from moecast.traces.importers.table import TableImporter
from moecast.traces.importers.trtllm import TrtllmImporter
from moecast.traces.importers.vllm import VllmImporter
from moecast.traces.importers.vllm_routes import VllmRoutesImporter
from moecast.traces.load_table import LoadTable
from moecast.traces.trace import RoutingTrace, concatenate

__all__ = ["IMPORTERS", "ImportOptions", "ImportedTrace", "Importer", "find_importer", "import_trace", "open_import"]

IMPORTERS: tuple[Importer, ...] = (
    NpzImporter(),
    VllmImporter(),
    SglangImporter(),
    MegatronImporter(),
    TrtllmImporter(),
    VllmRoutesImporter(),
    RoutesJsonImporter(),
    TableImporter(),
)
AUTO = "auto"
_WRAPPED = {
    b"\x1f\x8b": "is compressed by gzip: unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it first",
    b"BZh": "is compressed by bzip2: unpack it first",
    b"\xfd7zX": "is compressed by xz: unpack it first",
    b"\xff\xfe": "is UTF-16 text: convert it to UTF-8 first",
    b"\xfe\xff": "is UTF-16 text: convert it to UTF-8 first",
    b"PAR1": "is Parquet: a moecast trace needs no import, of another table --columns says what is what",
}


def find_importer(paths: Sequence[Path], importer: str = AUTO) -> Importer:
    """The importer of a name, or the one that recognises all the files.

    Raises
    ------
    MoecastError
        No such importer, a file that none or more than one recognises, or files of different
        formats.
    """
    names = ", ".join(known.name for known in IMPORTERS)
    for path in paths:
        if not path.exists():
            raise MoecastError("no such file", file=path)
    if importer != AUTO:
        for known in IMPORTERS:
            if known.name == importer:
                return known
        raise MoecastError(f"one of {AUTO}, {names}", field="format", value=importer)
    if not paths:
        raise MoecastError("no files to import")
    chosen: Importer | None = None
    for path in paths:
        found = [known for known in IMPORTERS if known.recognises(path)]
        if not found:
            raise MoecastError(_unknown(path, names), file=path)
        if len(found) > 1:
            candidates = " or ".join(known.name for known in found)
            raise MoecastError(f"looks like {candidates}: say which with --format", file=path)
        if chosen is not None and found[0].name != chosen.name:
            rule = f"looks like {found[0].name}, {paths[0].name} like {chosen.name}: import them apart"
            raise MoecastError(rule, file=path)
        chosen = found[0]
    assert chosen is not None
    return chosen


def _unknown(path: Path, names: str) -> str:
    """Why no importer knows a file, as far as its first bytes tell."""
    if path.is_dir():
        return f"no importer knows this folder by the names in it: name its files; there are: {names}"
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not head:
        return "is empty"
    for magic, what in _WRAPPED.items():
        if head.startswith(magic):
            return what
    return f"no importer knows this file; there are: {names}; --columns reads other tables"


def open_import(
    paths: Sequence[str | Path], options: ImportOptions | None = None, *, importer: str = AUTO
) -> ImportedTrace | LoadTable:
    """Check foreign files that belong together, and give their tokens batch by batch, or their counts.

    Raises
    ------
    MoecastError
        No importer recognises the files, they break their format's rules, or no row would be left.
    """
    files, options = [Path(path) for path in paths], options or ImportOptions()
    for file in files:
        if file.exists() and not file.is_dir():  # missing: each importer says what it wants there
            check_regular(file)
    if options.columns is not None:
        if importer not in (AUTO, TableImporter.name):
            rule = f"only a {TableImporter.name} has columns to name"
            raise MoecastError(rule, field="format", value=importer)
        importer = TableImporter.name
    found = find_importer(files, importer)
    if options.first_layers is not None and found.name != MegatronImporter.name:
        rule = "only Megatron-Core's traces are of pipeline stages"
        raise MoecastError(rule, field="first_layers")
    opened = found.open(files, options)
    if isinstance(opened, ImportedTrace):
        return leave_out(opened, first=options.drop_first, dummies=options.drop_dummies)
    if options.drop_first or options.drop_dummies:
        field = "drop_first" if options.drop_first else "drop_dummies"
        rule = "the files hold counts only, no rows that could be left out"
        raise MoecastError(rule, file=files[0], field=field)
    return opened


def import_trace(
    paths: str | Path | Sequence[str | Path], options: ImportOptions | None = None, *, importer: str = AUTO
) -> RoutingTrace | LoadTable:
    """Read foreign files that belong together into memory: a trace, or a load table where they hold counts only.

    Raises
    ------
    MoecastError
        No importer recognises the files, or they break their format's rules.
    """
    opened = open_import([paths] if isinstance(paths, (str, Path)) else paths, options, importer=importer)
    return opened if isinstance(opened, LoadTable) else concatenate(list(opened.read()))
