import subprocess
import sys

import pytest

import moecast.traces


@pytest.mark.parametrize("name", moecast.traces.__all__)
def test_every_exported_name_is_there(name):
    found = getattr(moecast.traces, name)
    assert getattr(found, "__doc__", None) or name in ("PHASES", "NO_CHOICE")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = moecast.traces.nothing


def test_importing_the_package_is_cheap():
    heavy = "{'numba', 'pyarrow', 'polars', 'torch', 'rich', 'typer'}"
    code = f"import sys, moecast.traces; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
