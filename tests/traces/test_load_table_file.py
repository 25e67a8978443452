"""A load table's file is JSON, strictly."""

import json

import pytest

from moecast.errors import MoecastError
from moecast.traces import LoadTable, read_load_table, write_load_table
from tests.traces.small import small


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"layers":', '"layers": 7, "layers":', "'layers' stands twice"),
        ('"source": {}', '"source": {"x": NaN}', "NaN is no JSON number"),
        ('"load":', f'"notes": "", "load": [[{"9" * 6000}]], "x":', "not JSON that can be read"),
    ],
)
def test_what_json_has_not_is_refused(tmp_path, old, new, words):
    path = tmp_path / "load.json"
    write_load_table(LoadTable.count(small()), path)
    assert read_load_table(path).load_LE.tolist() == [[4, 4, 0, 0]] * 2
    text = json.dumps(json.loads(path.read_text()))
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(MoecastError, match=words) as failure:
        read_load_table(path)
    assert str(failure.value).startswith(f"{path}: ")
