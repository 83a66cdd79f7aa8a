from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.lean_json import loads_without_rle

NAMES = st.sampled_from(["rle", '"rle', "rle]", "\\", '\\"rle', "value", '"rle": [1]', ""])
VALUES = st.recursive(
    st.none() | st.integers(-1, 300) | st.floats(allow_nan=False) | NAMES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(st.integers(0, 255), max_size=5)
        | st.dictionaries(NAMES, inner, max_size=4)
    ),
    max_leaves=20,
)


def emptied(value: Any) -> Any:
    """The same with every list of natural numbers under "rle" emptied, done after parsing."""
    if isinstance(value, list):
        return [emptied(item) for item in value]
    if not isinstance(value, dict):
        return value

    def is_rle(item: Any) -> bool:
        return isinstance(item, list) and all(type(n) is int and n >= 0 for n in item)

    return {k: [] if k == "rle" and is_rle(v) else emptied(v) for k, v in value.items()}


@given(
    value=VALUES,
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")]),
    indent=st.sampled_from([None, 1]),
    is_ascii=st.booleans(),
)
def test_only_the_numbers_of_an_rle_are_missing(
    value: Any, separators: tuple[str, str], indent: int | None, is_ascii: bool
) -> None:
    text = json.dumps(value, separators=separators, indent=indent, ensure_ascii=is_ascii)
    # An emptied list inside a list under "rle" is cut where the outer one is not; both are lost.
    assert emptied(loads_without_rle(text.encode())) == emptied(json.loads(text))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
def test_other_encodings_of_json_are_parsed_as_ever(encoding: str) -> None:
    value = {"rle": [1, 2], "text": "Köln"}
    found = loads_without_rle(json.dumps(value, ensure_ascii=False).encode(encoding))
    assert found["text"] == "Köln"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"rle": [1, 2', id="torn in an RLE"),
        pytest.param(b'{"rle": [1, 2]', id="torn behind it"),
        pytest.param(b'"rle": []', id="no value"),
        pytest.param(b'{"rle"', id="torn in the name"),
        pytest.param(b'\xff"rle":[1]', id="no text"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_no_json_is_told(body: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        loads_without_rle(body)


def test_a_body_made_to_be_slow_is_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of RLEs without their lists, of which each could search the rest of the body."""
    looked_at = 0

    class Counted(bytes):
        def find(self, *args: Any) -> int:
            nonlocal looked_at
            found = super().find(*args)
            looked_at += (len(self) if found < 0 else found) - args[1]
            return found

    for body in (b'"rle":[' * 10_000, b'"rle":[' * 10_000 + b"]"):
        looked_at = 0
        with pytest.raises((ValueError, RecursionError)):
            loads_without_rle(Counted(body))
        assert 0 < looked_at <= len(body)
