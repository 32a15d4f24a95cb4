"""What is logged holds nothing that a terminal obeys, and nothing in it passes for a line of its own."""

import logging

import pytest
from conftest import config
from hypothesis import given
from hypothesis import strategies as st

import pgdbpool.base  # noqa: F401  # what makes the log printable
from pgdbpool import Error
from pgdbpool.printable import one_line, printable

EVIL = "\x1b[2J\x9b31m\u202e\r\nCRITICAL:root:forged"


@pytest.fixture
def entry(caplog):
    """Logs by the package's logger, and gives what a handler would write of it."""

    def log(message, *args, **more):
        caplog.clear()
        logging.getLogger("pgdbpool").warning(message, *args, **more)
        return logging.Formatter("%(levelname)s:%(name)s:%(message)s").format(caplog.records[-1])

    return log


def test_what_a_server_says_is_logged_without_what_a_terminal_obeys(entry):
    shown = r"\x1b[2J\x9b31m\u202e\r" + "\n  CRITICAL:root:forged"
    assert entry("it says: %s", EVIL) == f"WARNING:pgdbpool:it says: {shown}"


def test_a_traceback_is_indented_so_that_no_line_of_it_passes_for_an_entry(entry):
    try:
        raise ValueError(EVIL)
    except ValueError:
        text = entry("failed", exc_info=True)
    assert "\x1b" not in text
    assert r"ValueError: \x1b[2J" in text
    assert not any(line.startswith("CRITICAL") for line in text.splitlines())


def test_a_harmless_entry_keeps_its_template_by_which_tools_tell_entries_apart(entry, caplog):
    entry("%s is up after %d s", "db1", 5)
    assert (caplog.records[-1].msg, caplog.records[-1].args) == ("%s is up after %d s", ("db1", 5))


@given(st.text())
def test_what_can_be_shown_stays_as_it_is_and_the_rest_is_written_out(text):
    shown = printable(text)
    assert not any(ord(char) in range(0x7F, 0xA0) or (ord(char) < 32 and char not in "\t\n") for char in shown)
    assert not set(shown) & set("\u2028\u2029\u202a\u202e\u2066")
    shown.encode()
    assert len(one_line(text).splitlines()) <= 1
    if text.isprintable():
        assert shown == text


def test_what_a_server_says_to_a_pool_is_logged_so(pg_node, open_pool, caplog):
    place = {**pg_node.endpoint(ssl="disable"), "name": f"no{EVIL}"}
    pool = open_pool(config(place, acquire_timeout=2))
    with pytest.raises(Error), pool.connection():
        pass
    text = "\n".join(logging.Formatter().format(record) for record in caplog.records)
    assert "\x1b" not in text
    assert not any(line.startswith("CRITICAL") for line in text.splitlines())
