"""The process-wide API: Connection, Handler, Query, Row."""

import json
import pickle

import psycopg
import pytest
from conftest import LIMIT, backends, config, output, python, wait_for
from support import Wire, start
from support import tidy as tidy

import pgdbpool
from pgdbpool import ConfigWarning
from pgdbpool import pool as dbpool

GROUPS = {"read": {"autocommit": True, "connection_count": 2}, "write": {"autocommit": False, "connection_count": 2}}

PREPARE = """
create schema if not exists "SQLPrepare";
grant usage on schema "SQLPrepare" to app;
create or replace function "SQLPrepare"."PrepareQueries"() returns int language plpgsql as $$
begin
    perform set_config('sqlprepare.called', '1', false);
    prepare add_up (int, int) as select $1 + $2;
    return 1;
end $$;
create or replace function "SQLPrepare"."ExecuteQuery"(name text, a int default 0, b int default 0) returns int
language plpgsql as $$
declare result int;
begin
    execute format('execute %I(%L, %L)', name, a, b) into result;
    return result;
end $$;
"""


@pytest.fixture
def node(pg_node):
    """A server with a table of two rows."""
    for statement in (
        "drop table if exists handler_t",
        "create table handler_t (id int primary key, name text)",
        "insert into handler_t values (1, 'one'), (2, 'two')",
        "grant all on handler_t to app",
    ):
        pg_node.execute(statement)
    return pg_node


@pytest.fixture
def db(node):
    """The process-wide pool is open, with the groups "read" and "write"."""
    yield dbpool.Connection.init(config(node, groups=GROUPS))
    dbpool.Connection.close()


@pytest.fixture(autouse=True)
def _closed():
    yield
    dbpool.Connection.close()


def count(node):
    return node.execute("select count(*) from handler_t")[0][0]


# -- Connection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
def test_init_takes_db_as_a_dict_or_a_list(several, pg_cluster):
    places = pg_cluster.endpoints(ssl="disable")
    places = places if several else places[0]
    pool = dbpool.Connection.init({"db": places, "groups": {"read": {}}})
    assert len(pool.endpoints()) == (3 if several else 1)
    with dbpool.Handler("read") as handler:
        assert handler.query("select 1").fetchone() == (1,)


@pytest.mark.parametrize("model", ["threaded", "non-threaded"])
def test_init_takes_both_models(model, node):
    dbpool.Connection.init(config(node, type=model, groups=GROUPS))
    with dbpool.Handler("read") as handler:
        assert handler.query("select 1").fetchone() == (1,)


def test_init_again_closes_the_pool_that_was_there(node, db):
    new = dbpool.Connection.init(config(node, groups={"other": {}}))
    assert db.closed
    assert dbpool.Connection.pool() is new
    wait_for(lambda: not backends(node, "read") and not backends(node, "write"))
    with dbpool.Handler("other") as handler:
        assert handler.query("select 1").fetchone() == (1,)
    with pytest.raises(dbpool.UnconfiguredGroupError):
        dbpool.Handler("read")


def test_init_with_a_mistake_leaves_the_pool_that_was_there(db):
    with pytest.raises(dbpool.ConfigError, match="connection_count: expected 1 or more, got 0"):
        dbpool.Connection.init({"db": {"host": "x"}, "groups": {"read": {"connection_count": 0}}})
    assert dbpool.Connection.pool() is db
    with dbpool.Handler("read") as handler:
        assert handler.query("select 1").fetchone() == (1,)


def test_a_handler_in_use_while_the_pool_is_replaced_ends_in_peace(node, db):
    with dbpool.Handler("write") as handler:
        handler.query("insert into handler_t values (3, 'three')")
        dbpool.Connection.init(config(node, groups=GROUPS))
    assert count(node) == 3
    wait_for(lambda: len(backends(node, "write")) == 1)


def test_without_init_there_is_no_pool():
    for ask in (dbpool.Connection.pool, lambda: dbpool.Handler("read")):
        with pytest.raises(dbpool.PoolClosed, match="init"):
            ask()


def test_close_ends_all_sessions_and_may_be_called_twice(node, db):
    with dbpool.Handler("read") as handler:
        handler.query("select 1")
    dbpool.Connection.close()
    dbpool.Connection.close()
    wait_for(lambda: not backends(node, "read") and not backends(node, "write"))


def test_keys_of_older_pools_are_accepted_with_a_warning(node):
    old = config(node, groups={"read": {"connection_count": 2, "connection_retry_sleep": 1}})
    with pytest.warns(ConfigWarning, match="connection_retry_sleep"):
        dbpool.Connection.init(old)
    with dbpool.Handler("read") as handler:
        assert handler.query("select 1").fetchone() == (1,)


def test_the_same_names_come_from_the_package_and_from_its_pool_module():
    names = [name for name in dbpool.__all__ if hasattr(pgdbpool, name)]
    assert {"Connection", "Handler", "Query", "Error", "DBQueryError", "DBOfflineError"} <= set(names)
    assert set(dbpool.__all__) <= set(pgdbpool.__all__)
    for name in names:
        assert getattr(pgdbpool, name) is getattr(dbpool, name)


def test_pool_of_the_package_is_the_module():
    assert pgdbpool.pool is dbpool


# -- Handler --------------------------------------------------------------------------------------------------------


def test_query_gives_rows(db):
    with dbpool.Handler("read") as handler:
        rows = handler.query("select * from handler_t order by id")
        assert isinstance(rows, dbpool.Query)
        assert list(rows) == rows.rows == [(1, "one"), (2, "two")]
        assert (len(rows), rows.rowcount, rows.columns) == (2, 2, ["id", "name"])
        assert rows[1] == (2, "two")


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("select name from handler_t where id = %s", (2,)),
        ("select name from handler_t where id = %s", [2]),
        ("select name from handler_t where id = %(id)s", {"id": 2}),
        ("select name from handler_t where id = 2", None),
    ],
)
def test_query_takes_parameters_by_position_and_by_name(sql, params, db):
    with dbpool.Handler("read") as handler:
        assert handler.query(sql, params).fetchone() == ("two",)


def test_a_per_cent_sign_is_no_parameter_where_there_are_none(db):
    with dbpool.Handler("read") as handler:
        assert handler.query("select name from handler_t where name like 't%'").fetchall() == [("two",)]


def test_a_query_is_an_iterator_that_goes_on_where_the_last_look_stopped(db):
    with dbpool.Handler("read") as handler:
        rows = handler.query(statement="select * from generate_series(1, 6)", params=None)
        assert next(rows) == (1,)
        assert rows.fetchone() == (2,)
        for row in rows:
            assert row == (3,)
            break
        assert iter(rows) is rows
        assert next(rows) == (4,)
        assert rows.fetchall() == [(5,), (6,)]
        assert next(rows, None) is None
        assert list(rows) == rows.fetchall() == []
        assert (rows.fetchone(), len(rows), rows[0], len(rows.rows)) == (None, 6, (1,), 6)


def test_without_a_port_the_environment_says_which_as_it_always_did(node):
    program = """
import json, sys
from pgdbpool import pool as dbpool
dbpool.Connection.init(json.loads(sys.argv[1]))
with dbpool.Handler("read", timeout=20) as handler:
    print(handler.query("select current_setting('port')").fetchone()[0], flush=True)
"""
    settings = config(node, groups={"read": {}}, monitor=False)
    del settings["db"][0]["port"]
    assert output(python(program, json.dumps(settings), env={"PGPORT": str(node.port)})) == f"{node.port}\n"


def test_query_of_a_statement_without_rows_says_what_it_did(db):
    with dbpool.Handler("write") as handler:
        done = handler.query("update handler_t set name = 'x'")
        assert (done.rowcount, done.status, done.rows, done.columns) == (2, "UPDATE 2", [], [])
        assert done.fetchone() is None
        assert list(done) == []
        handler.rollback()


def test_a_block_of_a_transaction_group_commits_at_its_end(node, db):
    with dbpool.Handler("write") as handler:
        handler.query("insert into handler_t values (3, 'three')")
        assert count(node) == 2
    assert count(node) == 3


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_block_left_by_an_exception_rolls_back_and_never_commits(error, node, db):
    with pytest.raises(error), dbpool.Handler("write") as handler:
        insert_and_raise(handler, error())
    assert count(node) == 2


def insert_and_raise(handler, error):
    handler.query("insert into handler_t values (3, 'three')")
    raise error


def test_what_was_committed_before_an_exception_stays(node, db):
    with pytest.raises(ZeroDivisionError), dbpool.Handler("write") as handler:
        commit_use_and_raise(handler)
    assert node.execute("select max(id) from handler_t") == [(3,)]


def commit_use_and_raise(handler):
    handler.query("insert into handler_t values (3, 'three')")
    handler.commit()
    handler.query("insert into handler_t values (4, 'four')")
    raise ZeroDivisionError


def test_commit_and_rollback_within_a_block(node, db):
    with dbpool.Handler("write") as handler:
        handler.query("insert into handler_t values (3, 'three')")
        handler.rollback()
        assert count(node) == 2
        handler.query("insert into handler_t values (4, 'four')")
        handler.commit()
        assert count(node) == 3
        handler.commit()
        handler.rollback()


def test_an_autocommit_group_sends_neither_begin_nor_commit(node):
    with Wire(node) as wire:
        dbpool.Connection.init(config(wire, groups=GROUPS, monitor=False))
        with dbpool.Handler("read") as handler:
            handler.query("insert into handler_t values (3, 'three')")
            assert count(node) == 3
            handler.commit()
            handler.rollback()
        assert wire.of_users == ["insert into handler_t values (3, 'three')"]


def test_a_query_that_fails_has_the_servers_words_its_code_and_the_drivers_error(db):
    with dbpool.Handler("read") as handler:
        with pytest.raises(dbpool.DBQueryError, match='relation "nowhere" does not exist') as caught:
            handler.query("select * from nowhere")
        assert caught.value.sqlstate == "42P01"
        assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedTable)
        assert handler.query("select 1").fetchone() == (1,)


def test_a_query_with_the_wrong_parameters_is_a_query_error(db):
    with dbpool.Handler("read") as handler:
        with pytest.raises(dbpool.DBQueryError) as caught:
            handler.query("select %s, %s", (1,))
        assert caught.value.sqlstate is None
        assert isinstance(caught.value.__cause__, psycopg.ProgrammingError)


def test_after_a_failed_query_a_transaction_can_be_rolled_back_and_goes_on(node, db):
    with dbpool.Handler("write") as handler:
        handler.query("insert into handler_t values (3, 'three')")
        with pytest.raises(dbpool.DBQueryError) as caught:
            handler.query("insert into handler_t values (3, 'again')")
        assert caught.value.sqlstate == "23505"
        with pytest.raises(dbpool.DBQueryError) as caught:
            handler.query("select 1")
        assert caught.value.sqlstate == "25P02"
        handler.rollback()
        handler.query("insert into handler_t values (4, 'four')")
    assert node.execute("select id from handler_t order by id") == [(1,), (2,), (4,)]


def test_commit_of_a_transaction_that_has_failed_is_an_error(node, db):
    with dbpool.Handler("write") as handler:
        with pytest.raises(dbpool.DBQueryError):
            handler.query("select 1 / 0")
        with pytest.raises(dbpool.DBQueryError, match="nothing was committed") as caught:
            handler.commit()
        assert caught.value.sqlstate == "25P02"
        assert handler.query("select 1")[0][0] == 1


def test_a_group_that_does_not_exist_is_an_error_with_a_hint(db):
    with pytest.raises(dbpool.UnconfiguredGroupError, match="did you mean 'read'") as caught:
        dbpool.Handler("raed")
    assert isinstance(caught.value, LookupError)
    assert caught.value.known == ("read", "write")


def test_conn_ref_is_the_drivers_connection(db):
    with dbpool.Handler("write") as handler:
        assert isinstance(handler.conn_ref, psycopg.Connection)
        assert not handler.conn_ref.autocommit
        handler.query("create temp table mine (i int)")
        handler.conn_ref.execute("insert into mine values (1)")
        assert handler.query("select i from mine").fetchone() == (1,)


def test_outside_its_block_a_handler_has_no_connection(db):
    handler = dbpool.Handler("read")
    uses = [lambda: handler.conn_ref, lambda: handler.query("select 1"), handler.commit, handler.rollback]
    for _ in range(2):
        for use in uses:
            with pytest.raises(dbpool.Error, match="inside its with block only"):
                use()
        with handler:
            assert handler.query("select 1").fetchone() == (1,)


def test_a_handler_is_entered_once_at_a_time(db):
    with dbpool.Handler("read") as handler:
        with pytest.raises(dbpool.Error, match="in use already"):
            handler.__enter__()
        assert handler.query("select 1").fetchone() == (1,)
    assert db.stats().groups["read"].leased == 0


def test_a_handler_has_a_timeout_of_its_own_and_says_who_holds_the_connections(db):
    with dbpool.Handler("read") as one, dbpool.Handler("read") as two:
        with pytest.raises(dbpool.PoolTimeout) as caught, dbpool.Handler("read", timeout=0.05):
            pytest.fail("not reached")
        assert str(caught.value).count("says_who_holds_the_connections") == 2
        assert one.conn_ref is not two.conn_ref


def test_handlers_of_many_threads_share_the_group(db):
    def work():
        for _ in range(20):
            with dbpool.Handler("read", timeout=LIMIT) as handler:
                assert handler.query("select count(*) from handler_t").fetchone() == (2,)

    for each in [start(work) for _ in range(6)]:
        each.result(LIMIT)
    assert db.stats().groups["read"].open <= 2
    assert db.stats().groups["read"].counters.requests == 120


# -- prepared -------------------------------------------------------------------------------------------------------


def test_query_prepared_calls_what_was_prepared_when_the_connection_was_opened(node):
    node.execute(PREPARE)
    dbpool.Connection.init(config(node, groups={"read": {"sqlprepare": True, "connection_count": 1}}))
    with dbpool.Handler("read") as handler:
        assert handler.query("select current_setting('sqlprepare.called')").fetchone() == ("1",)
        assert handler.query_prepared(("add_up", 20, 22)).fetchone()[0] == 42
        assert handler.query_prepared(["add_up", 1, 2])[0]["ExecuteQuery"] == 3


def test_query_prepared_takes_a_name_alone(node):
    node.execute(PREPARE)
    dbpool.Connection.init(config(node, groups={"read": {"sqlprepare": True}}))
    with dbpool.Handler("read") as handler:
        assert handler.query_prepared("add_up").fetchone()[0] == 0


def test_query_prepared_of_an_unknown_name_is_a_query_error(node):
    node.execute(PREPARE)
    dbpool.Connection.init(config(node, groups={"read": {"sqlprepare": True}}))
    with dbpool.Handler("read") as handler, pytest.raises(dbpool.DBQueryError, match="nonsense") as caught:
        handler.query_prepared(("nonsense", 1))
    assert caught.value.sqlstate == "26000"


def test_preparing_opens_no_transaction(node):
    node.execute(PREPARE)
    with Wire(node) as wire:
        groups = {"write": {"sqlprepare": True, "autocommit": False}}
        dbpool.Connection.init(config(wire, groups=groups, monitor=False))
        with dbpool.Handler("write"):
            pass
        assert wire.of_users == ['select "SQLPrepare"."PrepareQueries"()']


def test_where_nothing_can_be_prepared_callers_get_the_servers_words(node):
    node.execute('drop schema if exists "SQLPrepare" cascade')
    dbpool.Connection.init(config(node, groups={"read": {"sqlprepare": True}}))
    with pytest.raises(dbpool.DBOfflineError, match='schema "SQLPrepare" does not exist'), dbpool.Handler("read"):
        pytest.fail("not reached")


# -- rows -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def row(db):
    with dbpool.Handler("read") as handler:
        return handler.query("select 1 as id, 'one' as name, null as nothing").fetchone()


def test_a_row_is_read_by_position_and_by_name(row):
    assert (row[0], row[1], row[-1]) == (1, "one", None)
    assert (row["id"], row["name"], row["nothing"]) == (1, "one", None)


def test_a_row_is_a_tuple(row):
    number, name, nothing = row
    assert (number, name, nothing) == (1, "one", None) == row
    assert row[:2] == (1, "one")
    assert len(row) == 3
    assert hash(row) == hash((1, "one", None))
    assert row != (1, "two", None)


def test_a_row_equals_a_list_of_its_values(row):
    assert row == [1, "one", None] == row
    assert row != [1, "two", None]
    assert row != [1, "one"]
    assert row != {"id": 1}


def test_what_is_in_a_row_are_its_columns_by_name_and_its_values_that_are_no_text(row):
    assert "name" in row
    assert "one" not in row
    assert 1 in row
    assert 2 not in row


def test_a_row_knows_its_columns(row):
    assert row.keys() == ["id", "name", "nothing"]
    assert row.as_dict() == {"id": 1, "name": "one", "nothing": None}
    assert row.get("name") == "one"
    assert row.get("nothing", 5) is None
    assert row.get("missing", 5) == 5


def test_a_column_that_does_not_exist_is_an_error_with_those_that_do(row):
    with pytest.raises(KeyError, match="no column 'nmae'; the columns are id, name, nothing"):
        row["nmae"]
    with pytest.raises(IndexError):
        row[3]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_row_can_be_pickled(protocol, row):
    again = pickle.loads(pickle.dumps(row, protocol))
    assert again == row
    assert again["name"] == "one"
    assert isinstance(again, pgdbpool.Row)


def test_of_columns_of_the_same_name_the_first_counts(db):
    with dbpool.Handler("read") as handler:
        row = handler.query("select 1 as x, 2 as x, 3 as y").fetchone()
    assert (row["x"], row["y"]) == (1, 3)
    assert tuple(row) == (1, 2, 3)
    assert row.as_dict() == {"x": 1, "y": 3}
    assert tuple(pickle.loads(pickle.dumps(row))) == (1, 2, 3)


def test_duplicate_columns_survive_pickling(db):
    with dbpool.Handler("read") as handler:
        row = handler.query("select 1 as x, 2 as x, 3 as y").fetchone()
    assert pickle.loads(pickle.dumps(row))["y"] == 3


def test_rows_with_the_same_columns_are_of_one_type_however_often_they_are_asked_for(db):
    with dbpool.Handler("read") as handler:
        one, other = (handler.query("select %s::int as id", [number]).fetchone() for number in (1, 2))
    assert type(one) is type(other)


def test_rows_outlive_their_handler(db):
    with dbpool.Handler("read") as handler:
        rows = handler.query("select * from handler_t order by id")
    assert [row["name"] for row in rows] == ["one", "two"]
