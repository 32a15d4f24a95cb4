"""What `help` says: an example, all keys, and what is raised."""

import inspect
import pydoc
import re

import pytest

from pgdbpool import AsyncPool, Connection, Handler, Pool
from pgdbpool.config import keys

# What never raises an exception of its own.
SILENT = {"closed", "name", "close", "stats", "pop_stats", "endpoints", "on_event", "conn_ref", "check"}


def section(text, heading):
    """The words in double backquotes from a heading to the next one."""
    found = re.search(rf"Keys {heading}.*?(?=\n\n|Keys of|\.  )", text, re.DOTALL)
    assert found is not None, heading
    return re.findall(r"``(\w+)``", found[0].partition(":")[2])


@pytest.mark.parametrize(
    ("heading", "accepted"),
    [
        ("on top", keys.TOP),
        ("of an endpoint", keys.ENDPOINT),
        ("of a group", keys.GROUP),
        ("of ``monitor``", keys.MONITOR),
        ("of ``status``", keys.STATUS),
    ],
)
def test_the_help_of_a_pool_has_every_key(heading, accepted):
    assert section(inspect.getdoc(Pool), heading) == list(accepted)


@pytest.mark.parametrize("kind", [Pool, AsyncPool])
def test_the_help_of_a_pool_begins_with_an_example_and_says_what_its_size_is_per(kind):
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    before, _, _ = text.partition("Method resolution order")
    assert 'pool.connection("write") as conn' in before
    assert "``connection_count`` is per endpoint and process" in before


@pytest.mark.parametrize("kind", [Pool, AsyncPool, Handler, Connection])
def test_the_help_of_a_method_says_what_it_raises(kind):
    public = [name for name in dir(kind) if not name.startswith("_") and name not in SILENT]
    assert [name for name in public if "Raises:" not in (inspect.getdoc(getattr(kind, name)) or "")] == []
    assert kind is Connection or "Raises:" in inspect.getdoc(kind)
