"""A name that leads to servers of several roles: each group finds the one it wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import LIMIT, config, wait_for
from models import MODELS
from names import NAME, Resolver, resolver

from pgdbpool import PoolTimeout
from pgdbpool.testing import Cluster, Proxy

__all__ = ["resolver"]

EACH = pytest.mark.parametrize("model", MODELS)
PORT = "select inet_server_port()"
ADDRESSES = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]


class Named(dict[int, Proxy]):
    """Each server of a cluster at an address of its own and at the same port, behind one name; by the server's port."""

    def __init__(self, cluster: Cluster, resolver: Resolver, stack: ExitStack) -> None:
        super().__init__()
        port = None
        for host, node in zip(ADDRESSES, cluster.nodes, strict=False):
            self[node.port] = stack.enter_context(node.proxy(host=host, port=port))
            port = self[node.port].port
        resolver[NAME] = [proxy.host for proxy in self.values()]

    def endpoint(self, **more: Any) -> dict[str, Any]:
        return next(iter(self.values())).endpoint(ssl="disable", host=NAME, **more)


@pytest.fixture
def name(pg_cluster: Cluster, resolver: Resolver) -> Iterator[Named]:
    with ExitStack() as stack:
        yield Named(pg_cluster, resolver, stack)


def groups(*targets: str, **more: Any) -> dict[str, Any]:
    return {target: {"target_session_attrs": target, **more} for target in targets}


@EACH
@pytest.mark.parametrize("monitor", [True, False])
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_each_group_finds_the_server_that_it_wants(
    model: str, monitor: bool, turn: int, pg_cluster: Cluster, name: Named, resolver: Resolver
) -> None:
    resolver[NAME] = resolver[NAME][turn:] + resolver[NAME][:turn]
    primary, standbys = pg_cluster.primary.port, {node.port for node in pg_cluster.standbys}
    wanted = groups("read-write", "primary", "prefer-primary", "standby", "read-only", "prefer-standby")
    with MODELS[model](config(name.endpoint(), groups=wanted, monitor=monitor)) as pool:
        for _ in range(5):
            for group in wanted:
                found = pool.ask(group, PORT)
                assert (found == primary) if "prim" in group or "write" in group else (found in standbys), group


@EACH
@pytest.mark.parametrize("monitor", [True, False])
def test_readers_are_spread_over_the_standbys_of_a_name(
    model: str, monitor: bool, pg_cluster: Cluster, name: Named
) -> None:
    with MODELS[model](config(name.endpoint(), groups=groups("standby", connection_count=16), monitor=monitor)) as pool:
        lent = [pool.lend("standby") for _ in range(16)]
        found = Counter(each.ask(PORT) for each in lent)
        for each in lent:
            each.give()
    assert set(found) == {node.port for node in pg_cluster.standbys}


@EACH
@pytest.mark.parametrize("monitor", [True, False])
def test_writes_find_the_new_primary_at_another_address_of_the_name(
    model: str, monitor: bool, pg_cluster: Cluster, name: Named
) -> None:
    wanted = groups("read-write", "standby")
    with MODELS[model](config(name.endpoint(), groups=wanted, monitor=monitor)) as pool:
        old = pg_cluster.primary
        assert pool.ask("read-write", PORT) == old.port
        assert pool.ask("standby", PORT) != old.port
        name[old.port].refuse()
        old.kill()
        new = pg_cluster.most_advanced_standby()
        other = next(node for node in pg_cluster.standbys if node is not new)
        new.promote()
        other.rejoin(new)
        wait_for(lambda: _if_any(pool, "read-write") == new.port)
        wait_for(lambda: _if_any(pool, "standby") == other.port)
        for _ in range(5):
            assert pool.ask("read-write", PORT) == new.port
            assert pool.ask("standby", PORT) == other.port


def _if_any(pool: Any, group: str) -> int | None:
    try:
        return int(pool.ask(group, PORT, LIMIT))
    except Exception as error:  # a statement on a connection that was lost
        return print(error)


@EACH
@pytest.mark.parametrize("monitor", [True, False])
def test_a_role_that_is_at_no_address_is_looked_for_in_peace_and_found_when_it_comes(
    model: str, monitor: bool, pg_cluster: Cluster, name: Named
) -> None:
    for node in pg_cluster.standbys:
        name[node.port].refuse()
    wanted = groups("primary", "standby")
    with MODELS[model](config(name.endpoint(), groups=wanted, monitor=monitor)) as pool:
        assert pool.ask("primary", PORT) == pg_cluster.primary.port
        accepted = name[pg_cluster.primary.port].accepted
        with pytest.raises(PoolTimeout, match="is a primary, not standby"):
            pool.ask("standby", PORT, timeout=2.0)
        assert name[pg_cluster.primary.port].accepted < accepted + 150
        assert pool.ask("primary", PORT) == pg_cluster.primary.port
        back = pg_cluster.standbys[0]
        name[back.port].refuse(False)
        assert pool.ask("standby", PORT) == back.port
