"""Apache with mod_wsgi, as Debian has them: in Apache's own processes, or in processes beside them."""

from pathlib import Path

import pytest

from examples.rows import load
from pgdbpool.testing import Cluster

from .harness import at_work

ROWS = load()


@pytest.mark.parametrize("name", ["apache-embedded", "apache-daemon"])
def test_threads_of_each_process_share_a_pool(cluster: Cluster, open_folder: Path, name: str) -> None:
    with at_work(ROWS[name], cluster, open_folder) as work:
        work.wait_for_workers(2)
        work.check_status_page()
        work.lose_a_standby()
        work.lose_the_primary()
        work.reload()
    work.check()


def test_a_graceful_restart_of_apache_ends_daemon_processes_and_their_connections(
    cluster: Cluster, open_folder: Path
) -> None:
    with at_work(ROWS["apache-daemon"], cluster, open_folder) as work:
        work.reload("run apache2 -d $PWD -f apache/daemon.conf -k graceful")
    # Until its new processes are there mod_wsgi answers with 503; the application fails nobody.
    work.check(excused=lambda op: not isinstance(op.answer, dict))
