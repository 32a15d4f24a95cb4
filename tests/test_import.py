"""What ``import pgdbpool`` costs: the driver is loaded by whoever makes a pool, and by nobody else."""

import ast
import sys
import types
from pathlib import Path

import pytest
from conftest import output, python

import pgdbpool

LOADED = """
import sys
before = set(sys.modules)
{}
print(*sorted(set(sys.modules) - before))
"""


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter loads for it."""
    return set(output(python(LOADED.format(statement))).split())


def test_importing_the_package_loads_nothing_of_it():
    loaded = loaded_by("import pgdbpool")
    assert {name for name in loaded if name.startswith("pgdbpool")} == {"pgdbpool"}
    assert not loaded & {"psycopg", "msgspec", "asyncio", "threading"}


@pytest.mark.parametrize(
    "statement",
    [
        "from pgdbpool import ConfigError, PoolTimeout",
        "from pgdbpool import Settings; from pgdbpool.config import load, load_toml, load_url",
        "from pgdbpool import Event, EventKind",
        "from pgdbpool import Holder; import pgdbpool.holders, pgdbpool.lost",
    ],
)
def test_errors_and_configuration_need_no_driver(statement):
    assert "psycopg" not in loaded_by(statement)


def test_a_pool_without_asyncio_loads_none_of_the_code_for_it():
    loaded = loaded_by("from pgdbpool import Pool; from pgdbpool import pool")
    assert not loaded & {"pgdbpool.aio", "pgdbpool.tasks"}


@pytest.mark.parametrize("name", pgdbpool.__all__)
def test_every_name_can_be_imported_by_itself(name):
    program = f"from pgdbpool import {name}; import pgdbpool; assert pgdbpool.{name} is {name}; print({name}.__name__)"
    assert output(python(program)) == f"{name}\n"


def test_the_modules_can_be_had_in_both_ways():
    program = """
        import pgdbpool
        assert pgdbpool.pool.Connection is pgdbpool.Connection
        assert pgdbpool.errors.Error is pgdbpool.Error
        from pgdbpool import errors, pool
        assert (pool, errors) == (pgdbpool.pool, pgdbpool.errors)
        print("fine")
    """
    assert output(python(program)) == "fine\n"


def test_a_star_imports_all_names():
    program = "from pgdbpool import *; import pgdbpool; print(set(pgdbpool.__all__) <= set(globals()))"
    assert output(python(program)) == "True\n"


def test_dir_tells_all_names_before_they_are_used():
    program = "import pgdbpool; print(set(pgdbpool.__all__) | {'__version__', 'pool'} <= set(dir(pgdbpool)))"
    assert output(python(program)) == "True\n"


def test_a_name_that_is_not_there_is_an_error_like_any_other():
    with pytest.raises(AttributeError, match="module 'pgdbpool' has no attribute 'Pol'"):
        pgdbpool.Pol  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Pol'"):
        exec("from pgdbpool import Pol")
    assert not hasattr(pgdbpool, "__wrapped__")


def test_a_type_checker_is_told_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(str(pgdbpool.__file__)).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    told = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        told |= {alias.name: f"pgdbpool.{node.module}" for alias in node.names}
    assert sorted(told) == sorted(pgdbpool.__all__)
    for name, module in told.items():
        found = getattr(sys.modules[module] if module in sys.modules else __import__(module, fromlist=[name]), name)
        assert getattr(pgdbpool, name) is found
        assert not isinstance(found, types.ModuleType)
