"""TLS that was there stays, and what proves who answers: on Debian's PostgreSQL, since the wheel's has no TLS."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LIMIT, config, wait_for
from support import Wire
from testing.helpers import DEBIAN, needs_debian

from pgdbpool import AsyncPool, DBOfflineError, Pool
from pgdbpool.drivers import tls
from pgdbpool.testing import Cluster, Node

pytestmark = needs_debian
SECRET = "tls-s3cr3t"
GONE = "has spoken TLS before and offers none now"


@pytest.fixture(scope="module")
def server() -> Iterator[Node]:
    """A server with TLS, where a password is asked for."""
    with Cluster(0, password=SECRET, bin_folder=str(DEBIAN)) as cluster:
        node = cluster.primary
        certificate, key = (node.data / name for name in ("server.crt", "server.key"))
        names = "subjectAltName=DNS:db.test,DNS:localhost,IP:127.0.0.1"
        made = ["openssl", "req", "-new", "-x509", "-nodes", "-days", "2", "-subj", "/CN=db.test", "-addext", names]
        subprocess.run([*made, "-out", certificate, "-keyout", key], check=True, capture_output=True)
        for path in (certificate, key):
            path.chmod(0o600)
            node.own(path)
        node.configure(ssl="on")
        yield node


@pytest.fixture(scope="module")
def authority(server: Node, tmp_path_factory: Any) -> str:
    """A file with the certificate that clients are to trust."""
    path: Path = tmp_path_factory.mktemp("tls") / "root.crt"
    path.write_bytes((server.data / "server.crt").read_bytes())
    return str(path)


@pytest.fixture(scope="module")
def rogue() -> Iterator[Node]:
    """A server without TLS that lets everyone in."""
    with Cluster(0) as cluster:
        yield cluster.primary


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The next test may have another server at the same port."""
    yield
    tls._spoken.clear()


def with_threads(given: dict[str, Any]) -> bool:
    with Pool(given) as pool, pool.connection(timeout=LIMIT) as conn:
        return conn.pgconn.ssl_in_use


def without_threads(given: dict[str, Any]) -> bool:
    return with_threads({**given, "type": "non-threaded"})


def with_tasks(given: dict[str, Any]) -> bool:
    async def story() -> bool:
        async with AsyncPool(given) as pool, pool.connection(timeout=LIMIT) as conn:
            return conn.pgconn.ssl_in_use

    return asyncio.run(story())


MODELS = pytest.mark.parametrize("use", [with_threads, without_threads, with_tasks])


def refused(use: Any, given: dict[str, Any]) -> str:
    with pytest.raises(DBOfflineError) as caught:
        use(given)
    return str(caught.value)


@MODELS
@pytest.mark.parametrize("said", ["nothing", "prefer", "by the environment"])
def test_one_that_has_spoken_tls_gets_nothing_without_it(
    use: Any, said: str, server: Node, rogue: Node, monkeypatch: Any
) -> None:
    if said == "by the environment":
        monkeypatch.setenv("PGSSLMODE", "prefer")
    more = {"ssl": "prefer"} if said == "prefer" else {}
    with server.proxy() as proxy, Wire(rogue) as wire:
        given = config(proxy.endpoint(**more))
        assert use(given)
        proxy.target = wire
        for _ in range(2):
            assert GONE in refused(use, given)
        other = {**proxy.endpoint(**more), "user": "another", "pass": "another"}  # of another pool of the process
        assert GONE in refused(use, config(other))
        assert wire.startups == []  # not even who we are, and no password
        proxy.target = server
        assert use(given)


def test_nor_does_a_pool_that_is_open_and_its_monitor_give_it_anything(server: Node, rogue: Node) -> None:
    with server.proxy() as proxy, Wire(rogue) as wire, Pool(config(proxy.endpoint())) as pool:
        with pool.connection(timeout=LIMIT) as conn:
            assert conn.pgconn.ssl_in_use
        proxy.target = wire
        proxy.reset()
        wait_for(lambda: GONE in (pool.endpoints()[0].last_error or ""))
        with pytest.raises(DBOfflineError, match='restart this process, or set ssl to "allow"'), pool.connection():
            pass
        proxy.target = server

        def speaks_tls_again() -> bool:
            try:
                with pool.connection() as conn:
                    return conn.pgconn.ssl_in_use
            except DBOfflineError:
                return False

        wait_for(speaks_tls_again)
        assert wire.startups == []


def test_nor_does_a_call_that_asks_whether_its_server_is_dead(server: Node, rogue: Node) -> None:
    with server.proxy() as proxy, Wire(rogue) as wire:
        given = config(proxy.endpoint(), monitor=False)
        with Pool(given) as pool:
            with pool.connection(timeout=LIMIT) as conn:
                assert conn.pgconn.ssl_in_use
            proxy.target = wire
            assert pool._sessions.check is not None
            pool._sessions.check(pool._topology.endpoints[0])(float("inf"))
            assert wire.startups == []


@MODELS
@pytest.mark.parametrize("mode", ["allow", "disable"])
def test_where_the_configuration_does_without_it_is_used_without(
    use: Any, mode: str, server: Node, rogue: Node, monkeypatch: Any
) -> None:
    with server.proxy() as proxy, Wire(rogue) as wire:
        assert use(config(proxy.endpoint(), monitor=False))
        proxy.target = wire
        assert not use(config(proxy.endpoint(ssl=mode), monitor=False))
        monkeypatch.setenv("PGSSLMODE", mode)
        assert not use(config(proxy.endpoint(), monitor=False))


def test_one_that_never_had_tls_may_begin_with_it(server: Node, rogue: Node) -> None:
    with server.proxy() as proxy:
        proxy.target = rogue
        assert not with_threads(config(proxy.endpoint()))
        assert not with_threads(config(proxy.endpoint()))
        proxy.target = server
        assert with_threads(config(proxy.endpoint()))
        proxy.target = rogue
        assert GONE in refused(with_threads, config(proxy.endpoint()))


# -- what proves who answers --


@MODELS
def test_a_certificate_is_looked_at_where_the_environment_wants_it(
    use: Any, server: Node, authority: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", authority)
    assert use(config(server.endpoint()))
    other = {**server.endpoint(params={"hostaddr": "127.0.0.1"}), "host": "another.test"}
    assert "another.test" in refused(use, config(other))


@MODELS
def test_the_certificates_that_the_system_trusts(use: Any, server: Node, authority: str, monkeypatch: Any) -> None:
    place = server.endpoint(params={"sslrootcert": "system"})
    # A monitor that still asks for the pool before would tell what it found out in that one's environment.
    assert "certificate verify failed" in refused(use, config(place, monitor=False))
    monkeypatch.setenv("SSL_CERT_FILE", authority)
    assert use(config(place, monitor=False))
    assert use(config({**place, "ssl": "verify-full"}, monitor=False))
