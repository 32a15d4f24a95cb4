"""The rows of `examples/rows.toml` and what is made of them."""

import re

import pytest

from examples.rows import load

from . import ROOT

ROWS = load()


def test_every_row_has_its_section_in_the_manual() -> None:
    page = (ROOT / "docs" / "deploying.rst").read_text()
    assert sorted(re.findall(r"^\.\. deployment:: (\S+)$", page, re.MULTILINE)) == sorted(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_its_numbers_fit_its_model(name: str) -> None:
    row = ROWS[name]
    assert set(row.groups) == {"read", "write", "transaction", "batch"}
    assert all(1 <= count <= row.threads for count in row.groups.values())
    assert (row.threads == 1) is (row.model == "non-threaded")
    assert row.connections >= row.processes * sum(row.groups.values())
