"""What the pool does with one connection: open it, look at it, take it back, close it.

This is all the blocking I/O of the synchronous pool. No lock is held here; what is found out goes to the topology
as evidence, and core decides what it means.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from .config import EndpointSettings, GroupSettings, conninfo, session_settings
from .core.evidence import Fault
from .core.group import Group, outlived
from .core.lane import Slot
from .core.plan import Order
from .core.topology import Topology
from .drivers import ConnectFailed, Driver, DriverTimeout, Status
from .errors import OutcomeUnknown

logger = logging.getLogger("pgdbpool")

PING_AFTER = 30.0  # s of rest after which a silent socket is not enough
PING_LIMIT = 2.0  # s a healthy server may take to answer nothing
LEAST_PATIENCE = 0.5  # s: silence for less than that, because a caller was in a hurry, is no evidence


class Sessions:
    """Opens, checks, settles and closes the connections of one pool. Safe to use from many threads."""

    def __init__(self, driver: Driver, topology: Topology) -> None:
        self.driver = driver
        self.topology = topology
        self.closing: Callable[[Slot], None] = lambda slot: None  # set by the keeper's owner

    # -- opening ----------------------------------------------------------------------------------------------

    def open(self, order: Order, deadline: float = float("inf")) -> None:
        """Carry out one order of the plan, and report how it went. Never raises an `Exception`."""
        group, endpoint = order.group, order.lane.endpoint
        where: EndpointSettings = endpoint.settings  # type: ignore[assignment]
        how: GroupSettings = group.settings  # type: ignore[assignment]
        began = monotonic()
        hurried = deadline < began + min(where.connect_timeout, LEAST_PATIENCE)
        deadline = min(deadline, began + where.connect_timeout)
        conn = None
        try:
            conn = self._connect(where, how, deadline)
            report = self.driver.report(conn, deadline)
        except ConnectFailed as error:
            if error.fault is Fault.TIMEOUT and hurried:
                self.topology.cancelled(order)
            else:
                self._open_failed(order, error.fault, str(error))
            return
        except BaseException as error:
            if conn is not None:
                self.driver.close(conn)
            if not isinstance(error, Exception):
                self.topology.cancelled(order)
                raise
            if hurried and isinstance(error, DriverTimeout):
                self.topology.cancelled(order)
                return
            fault = Fault.TIMEOUT if isinstance(error, DriverTimeout) else Fault.REFUSED
            self._open_failed(order, fault, _words(error))
            return
        try:
            self._make_ready(conn, how, deadline)
            clean = self._watch(conn, how)
        except BaseException as error:
            self.driver.close(conn)
            if not isinstance(error, Exception):
                self.topology.cancelled(order)
                raise
            self.topology.setup_failed(order, _words(error), monotonic())
            return
        self.topology.opened(order, conn, clean, report, monotonic())
        self.bury(group)

    def _open_failed(self, order: Order, fault: Fault, error: str) -> None:
        endpoint = order.lane.endpoint
        for group in self.topology.open_failed(order, fault, error, monotonic()):
            tell = group.settings.reconnect_failed  # type: ignore[attr-defined]
            if tell is not None:
                try:
                    tell(endpoint.label, error)
                except Exception:
                    logger.exception("group %r: reconnect_failed raised", group.name)

    def _connect(self, where: EndpointSettings, how: GroupSettings, deadline: float) -> Any:
        password = where.password
        if callable(password):
            try:
                password = password()
            except Exception as error:
                raise ConnectFailed(
                    f"the callable given as pass raised {type(error).__name__}", Fault.MISCONFIGURED
                ) from error
        try:
            return self.driver.connect(conninfo(where, how, password), how.autocommit, deadline)
        except ConnectFailed as error:
            if not error.options_refused:
                raise
        # A pooler in between takes no startup options: say the same after the connect.
        params = conninfo(where, how, password, startup_options=False)
        conn = self.driver.connect(params, how.autocommit, deadline)
        try:
            for name, value in session_settings(where, how).items():
                self.driver.run(conn, f"SET {name} = '{value}'", deadline)
        except BaseException:
            self.driver.close(conn)
            raise
        return conn

    def _make_ready(self, conn: Any, how: GroupSettings, deadline: float) -> None:
        if how.sqlprepare:
            self.driver.run(conn, 'select "SQLPrepare"."PrepareQueries"()', deadline)
        if how.configure is not None:
            how.configure(conn)
            self._end_transaction(conn, "configure", how.autocommit)

    def _end_transaction(self, conn: Any, callback: str, autocommit: bool) -> None:
        """After a callback: keep what it did, and leave the session idle in the mode of its group."""
        status = self.driver.status(conn)
        if status is Status.IN_TRANSACTION:
            self.driver.commit(conn)
            status = self.driver.status(conn)
        if status is not Status.IDLE:
            raise RuntimeError(f"{callback} left the connection {status.value}")
        if self.driver.autocommit(conn) is not autocommit:
            self.driver.set_autocommit(conn, autocommit)

    def _watch(self, conn: Any, how: GroupSettings) -> Callable[[], bool]:
        # A group with a reset callable always takes the long way back.
        if how.reset is not None:
            return _never
        writes = how.target_session_attrs in ("primary", "prefer-primary", "read-write", "read-only")
        return self.driver.watch(conn, how.autocommit, writes)

    # -- before a checkout --------------------------------------------------------------------------------------

    def verify(self, slot: Slot, deadline: float) -> bool:
        """Whether a slot that rested for a while can be handed out. One that cannot is out of the pool."""
        group = slot.lane.group
        now = monotonic()
        if slot.generation != slot.lane.generation or now >= slot.expires:
            group.retire(slot, outlived(slot))
            return False
        if now < slot.fresh_until:
            return True
        check = group.settings.check
        try:
            if check != "auto" or now - slot.rested >= PING_AFTER or not self.driver.quiet(slot.conn):
                if callable(check):
                    check(slot.conn)
                    self._end_transaction(slot.conn, "check", group.settings.autocommit)
                else:
                    self.driver.ping(slot.conn, min(deadline, now + PING_LIMIT))
        except BaseException as error:
            if not isinstance(error, DriverTimeout) or deadline >= now + LEAST_PATIENCE:
                self._lost(slot, error)
            group.retire(slot, "broken")
            if not isinstance(error, Exception):
                raise
            return False
        if not slot.clean() and group.settings.reset is None:
            # What it heard while it rested: its server has another role now, say.
            return self._catch_up(slot, deadline)
        return True

    def _catch_up(self, slot: Slot, deadline: float) -> bool:
        """The session says something else of its server than before. Tell the topology; False if it had to go."""
        group, conn = slot.lane.group, slot.conn
        limit = min(deadline, monotonic() + PING_LIMIT)
        try:
            report = self.driver.report(conn, limit)
            if report != slot.lane.endpoint.report:
                if report.read_only and self.driver.says_read_only_itself(conn, limit):
                    # Its user's own doing. The next one shall find a session like any other.
                    self.driver.run(conn, "RESET default_transaction_read_only", limit)
                else:
                    self.topology.reported(slot.lane.endpoint, report, monotonic())
            slot.clean = self._watch(conn, group.settings)
        except Exception as error:
            self._lost(slot, error)
            group.retire(slot, "broken")
            return False
        if slot.generation != slot.lane.generation:
            group.retire(slot, "role")
            return False
        return True

    # -- after use ----------------------------------------------------------------------------------------------

    def settle(self, slot: Slot, error: BaseException | None, *, commit: bool) -> None:
        """Take back a slot that cannot simply be put on the stack.

        An open transaction is committed if `commit` is true and there is no `error`, else rolled back; a session that
        is busy or broken is closed. Raises OutcomeUnknown if the connection dies during COMMIT, and the driver's
        exception if the server refuses to commit.
        """
        driver, group, conn = self.driver, slot.lane.group, slot.conn
        how: GroupSettings = group.settings
        try:
            if driver.status(conn) is Status.IN_TRANSACTION:
                if commit and error is None and not how.autocommit:
                    self._commit(slot)
                else:
                    self._roll_back(slot)
            status = driver.status(conn)
            if status is Status.IDLE:
                if driver.autocommit(conn) is not how.autocommit:
                    driver.set_autocommit(conn, how.autocommit)
                if how.reset is not None:
                    how.reset(conn)
                    self._end_transaction(conn, "reset", how.autocommit)
        except OutcomeUnknown as unknown:
            self._lost(slot, unknown.__cause__ or unknown)
            group.retire(slot, "broken")
            raise
        except BaseException as failure:
            status = driver.status(conn)
            if status is not Status.IDLE or not isinstance(failure, RefusedCommit):
                self._close(slot, status, error or failure)
                if not isinstance(failure, Exception):
                    raise
                return
            group.give(slot, monotonic())
            raise failure.error from None
        if status is not Status.IDLE:
            self._close(slot, status, error)
        elif how.reset is not None or slot.clean() or self._catch_up(slot, monotonic() + PING_LIMIT):
            group.give(slot, monotonic())

    def _commit(self, slot: Slot) -> None:
        try:
            self.driver.commit(slot.conn)
        except Exception as error:
            if self.driver.status(slot.conn) in (Status.BROKEN, Status.CLOSED, Status.BUSY):
                raise OutcomeUnknown(
                    f"group {slot.lane.group.name!r}: the connection to {slot.lane.endpoint.label} was lost during "
                    "COMMIT; the transaction may or may not have been committed"
                ) from error
            raise RefusedCommit(error) from error

    def _roll_back(self, slot: Slot) -> None:
        slot.rollbacks += 1
        self.driver.rollback(slot.conn)

    def _close(self, slot: Slot, status: Status, error: BaseException | None) -> None:
        group = slot.lane.group
        if status is Status.BROKEN:
            self._lost(slot, error)
            group.retire(slot, "broken")
            return
        if status is Status.IDLE:  # its reset callable failed
            logger.warning("group %r: reset failed, connection closed: %s", group.name, _words(error))
        group.retire(slot, "reset" if status is Status.IDLE else status.value)

    def _lost(self, slot: Slot, error: BaseException | None) -> None:
        """A session is gone. Have a look at those that rest beside it: a read of their sockets, no round trip.

        To be called before the slot is retired: that wakes the keeper, which should see the new belief.
        """
        now = monotonic()
        if isinstance(error, DriverTimeout):
            self.topology.silent(slot.lane.endpoint, str(error), now)
            return
        if not self.topology.session_lost(slot, self._sqlstate(error), _words(error), now):
            return
        for lane in self.topology.lanes(slot.lane.endpoint):
            for other in tuple(lane.idle):
                if not self.driver.quiet(other.conn):
                    self._look_closer(other)

    def _look_closer(self, slot: Slot) -> None:
        lane = slot.lane
        try:
            lane.idle.remove(slot)
        except ValueError:  # taken meanwhile: its holder looks as well
            return
        try:
            self.driver.ping(slot.conn, monotonic() + PING_LIMIT)
        except Exception:
            lane.group.retire(slot, "broken")
        else:  # it only had something to say
            slot.lane.group.give(slot, monotonic())

    def heard(self, slot: Slot) -> None:
        """Its server may have said goodbye. If so it will not be handed out again."""
        if not self.driver.quiet(slot.conn):
            group = slot.lane.group
            if group.goodbye(slot):
                self.topology.session_lost(slot, None, "the server closed the connection", monotonic())
                group.wish()

    def _sqlstate(self, error: BaseException | None) -> str | None:
        """The code of the driver's exception, also where the application has wrapped it in its own."""
        seen = 0
        while error is not None and seen < 10:
            code = self.driver.sqlstate(error)
            if code is not None:
                return code
            error, seen = error.__cause__ or error.__context__, seen + 1
        return None

    # -- closing ------------------------------------------------------------------------------------------------

    def bury(self, group: Group) -> None:
        """Close what core has taken out of the pool."""
        while True:
            try:
                slot, _reason = group.closing.popleft()
            except IndexError:
                return
            self.closing(slot)
            self.driver.close(slot.conn)
            group.buried(slot)


class RefusedCommit(Exception):
    """COMMIT failed and the server said so: nothing was committed."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error  # the driver's


def _never() -> bool:
    return False


def _words(error: BaseException | None) -> str:
    if error is None:
        return "the connection was lost"
    return f"{error}".strip() or type(error).__name__
