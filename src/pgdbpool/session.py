"""What a pool does with one connection: open it, look at it, take it back, close it.

This is all the I/O of a pool but for the users' own. It is written once, as coroutines: with a driver whose coroutines
never suspend `blocking.run` carries them out for `Pool`, and `AsyncPool` awaits them. No lock is held here; what is
found out goes to the topology as evidence, and core decides what it means.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from . import ended, outcome
from .clock import monotonic
from .config import EndpointSettings, GroupSettings, MonitorSettings, Secret, conninfo
from .core.endpoint import Endpoint
from .core.evidence import Fault, Report, Role, Sighting
from .core.group import ABORTED, LEFT, OVERTAKEN, Group, outlived
from .core.lane import Lane, Slot
from .core.plan import Order
from .core.server import PARTICULAR
from .core.snapshot import snapshot
from .core.topology import Topology
from .drivers import (
    Choice,
    Conduct,
    ConnectFailed,
    Doubt,
    Driver,
    DriverTimeout,
    Lessor,
    Misfit,
    NotWanted,
    Patience,
    Status,
    Style,
    Unanswered,
)
from .drivers.cancel import IN_PLACE
from .ended import GRACE
from .errors import DBConnectionError
from .habitat import say_once
from .poolers import is_pooled, make_fit
from .seldom import say_seldom
from .wording import LeftOpen, chain, log_raised, words_of, words_raised

logger = logging.getLogger("pgdbpool")

PING_AFTER = 30.0  # s of rest after which a silent socket is not enough
ASK_AGAIN_AFTER = 1.0  # s without an answer, after which it is asked what is behind a pooler: as often as monitors do
PING_LIMIT = 2.0  # s a healthy server may take to answer nothing
RESET_LIMIT = 10.0  # s it may take to put a session back, with all of its temporary tables
LEAST_PATIENCE = 0.5  # s: silence for less than that, because a caller was in a hurry, is no evidence
_LOST = frozenset({Status.BROKEN, Status.CLOSED, Status.BUSY})  # after a COMMIT: nobody knows what became of it
# Of the caller's own thread, and for the caller: it has called too deep, or there is no memory.
_CALLERS_OWN = (RecursionError, MemoryError)
# Closed for these reasons it has no statement of a user's: its server is dead, or a question of ours got no answer.
_ENDED = frozenset({"aborted", "broken"})
_NOT_BEGUN = "25P03"  # SQLSTATE idle_in_transaction_session_timeout: the server had not begun with what was sent
_READ_ONLY = "25006"  # SQLSTATE read_only_sql_transaction
_READERS = frozenset({"standby", "read-only", "prefer-standby"})
_WRITERS = frozenset({"any", "primary", "prefer-primary", "read-write"})  # whose refused writes tell something


class Sessions:
    """Opens, checks, settles and closes the connections of one pool. Safe to use from many threads."""

    def __init__(self, driver: Driver, topology: Topology, monitor: MonitorSettings | None = None) -> None:
        self.driver = driver
        self.topology = topology
        self._monitor = monitor or MonitorSettings()
        # Set by the keeper's owner. `closing`: a slot is about to be closed. `check`: what a call that gets no answer
        # asks about its server, where no monitor would find out; see `Patience.check`.
        self.closing: Callable[[Slot], None] = lambda slot: None
        self.check: Callable[[Endpoint], Callable[..., str | None]] | None = None
        self.lessors: dict[str, Lessor] = {}  # of each group, whom its connections tell that a user closes them
        # Has `end` carried out where nobody is held up by it.
        self.end_first: Callable[[Slot], None] = self.end_now
        self._unready: dict[int, tuple[Order, Any]] = {}  # being made ready; whoever opens one puts it in and out
        # In the place of `Driver.password`, by a threaded pool: one that can be ended.
        self.password: Callable[[Callable[[], Any], float], Coroutine[Any, Any, Secret | None]] | None = None

    # -- opening ----------------------------------------------------------------------------------------------

    async def open(
        self,
        order: Order,
        deadline: float = float("inf"),
        *,
        limit: float = float("inf"),
        callers_own: bool = False,
    ) -> None:
        """Carry out one order of the plan, before the deadline and within `limit` seconds, and report how it went.

        Silence for the whole of a `limit` is evidence if that is not very short. Raises no `Exception`, but for
        RecursionError and MemoryError where the caller's own thread does it: they are for the caller.
        """
        group, endpoint = order.group, order.lane.endpoint
        where: EndpointSettings = endpoint.settings  # type: ignore[assignment]
        how: GroupSettings = group.settings  # type: ignore[assignment]
        # Every other time by a connection of its own: the name may lead elsewhere now.
        if order.search and order.lane.rank is None and order.lane.searches % 2 == 0:
            try:
                answered = await self._ask_neighbour(order, deadline)
            except BaseException:
                self.topology.cancelled(order)
                raise
            if answered:
                self.topology.cancelled(order)
                return
        began = monotonic()
        deadline = min(deadline, began + limit)
        patience = min(where.connect_timeout, LEAST_PATIENCE)
        hurried = deadline < began + patience
        deadline = min(deadline, began + min(where.connect_timeout, endpoint.patience(began)))
        conn = None
        try:
            conn, unsaid = await self._connect(order, where, how, deadline)
            since = monotonic()
            self.topology.reached(order)
            hurried |= deadline < monotonic() + patience / 2  # what is left for the questions
            # Through a pooler the answer may be long in coming, and another endpoint waits for its turn.
            latest = min(deadline, since + PING_LIMIT) if endpoint.pooled else deadline
            sighting = await self._ask(endpoint, conn, how, latest)
            pooled = sighting.pooled or unsaid is None or where.pooler is not None
            if pooled or unsaid:
                await make_fit(self.driver, conn, where, how, deadline, pooled=pooled, unsaid=unsaid is not False)
        except NotWanted:
            self.topology.cancelled(order)
            return
        except ConnectFailed as error:
            if error.sqlstate == "53300":
                say_once(
                    logging.WARNING,
                    f"{endpoint.label} takes no more connections: {error}; how many this configuration may open says "
                    "pgdbpool check CONFIG --processes N",
                    of=f"{endpoint.label} is full",
                )
            if error.fault is Fault.TIMEOUT and hurried:
                self.topology.given_up(order, monotonic())
            else:
                self.topology.open_failed(order, error.fault, str(error), monotonic())
            return
        except BaseException as error:
            if conn is not None:
                self.driver.close(conn)
            if not isinstance(error, Exception):
                self.topology.cancelled(order)
                raise
            if hurried and isinstance(error, DriverTimeout):
                self.topology.given_up(order, monotonic())
            elif isinstance(error, Unanswered | Misfit):
                self.topology.setup_failed(order, str(error), monotonic())
            elif (fault := self.driver.fault(error)) is not None:
                if fault is Fault.TIMEOUT and endpoint.pooled and conn is not None:  # it has let us in
                    fault = Fault.WAITING
                self.topology.open_failed(order, fault, words_of(error, self.driver, lost=False), monotonic())
            else:
                self.topology.hindered(order, f"{type(error).__name__} in the attempt", monotonic())
                if callers_own and isinstance(error, _CALLERS_OWN):
                    raise
                self._own(error, f"an attempt to connect to {endpoint.label}")
            return
        key = id(conn)  # now: no call may be interrupted between what is put in and what is taken out
        doing = ""
        try:
            self._unready[key] = order, conn
            given = await self.driver.shown(conn)
            if how.sqlprepare:
                doing = "sqlprepare"
                await self.driver.statement(conn, 'select "SQLPrepare"."PrepareQueries"()', deadline)
                self.driver.keep_prepared(conn)
                if how.reset == "state":
                    await self.driver.note_prepared(conn, deadline)
            if how.configure is not None:
                doing = "configure"
                await self._configure(conn, given, how.configure, how.autocommit, deadline)
            clean = self._watch(conn, how)
        except BaseException as error:
            lost = self.driver.status(conn) is Status.BROKEN
            self.driver.close(conn)
            if not isinstance(error, Exception):
                self.topology.cancelled(order)
                raise
            if lost and not order.wanted:  # most likely by ourselves, see `abort`
                self.topology.cancelled(order)
                return
            if hurried and isinstance(error, DriverTimeout):
                self.topology.given_up(order, monotonic())
                return
            if lost:
                self.topology.lost_in_setup(order, words_of(error, self.driver, lost=True), monotonic())
            else:
                if not isinstance(error, (self.driver.Error, DriverTimeout, TimeoutError, LeftOpen)):
                    log_raised(f"group {group.name!r}: {doing}", error)  # which says where
                self.topology.setup_failed(order, words_raised(doing, error, self.driver), monotonic())
            return
        finally:
            self._unready.pop(key, None)
        report, identity, *_ = sighting
        address = self.driver.address(conn)
        self.topology.opened(order, conn, clean, report, monotonic(), identity, since, pooled, address, given)
        self.abort()
        self.bury(group)

    async def _ask(self, endpoint: Endpoint, conn: Any, how: GroupSettings, deadline: float) -> Sighting:
        """The role of its server, which one it is, and whether a pooler is in between.

        Raises Unanswered for a group that must not have a server whose role nobody knows.
        """
        try:
            return await self._sight(endpoint, conn, deadline)
        except Unanswered:
            if how.target_session_attrs in PARTICULAR:
                raise
            return Sighting(Report(Role.UNKNOWN), pooled=is_pooled(endpoint))

    async def _sight(self, endpoint: Endpoint, conn: Any, deadline: float) -> Sighting:
        """What its server says; and nothing that the session reports, if a pooler is known to be in between."""
        if is_pooled(endpoint):
            return await self.driver.sight(conn, deadline, pooled=True)
        return await self.driver.sight(conn, deadline)

    async def _ask_neighbour(self, order: Order, deadline: float) -> bool:
        """In a search for a role: ask a session of another group what its server is now, in place of a connect.

        False: there is none that answers.
        """
        endpoint = order.lane.endpoint
        for slot in [slot for lane in self.topology.lanes(endpoint) for slot in snapshot(lane.idle)]:
            lane = slot.lane
            if slot.generation != lane.generation:  # on its way out
                continue
            try:
                lane.idle.remove(slot)
            except ValueError:  # taken meanwhile
                continue
            began = monotonic()
            try:
                limit = min(deadline, began + PING_LIMIT)
                sighting = await self._sight(endpoint, slot.conn, limit)
            except Unanswered:
                lane.group.give(slot, monotonic())
                return False
            except BaseException as error:
                try:
                    if not isinstance(error, Exception):
                        raise
                    if not (isinstance(error, DriverTimeout) and deadline < began + LEAST_PATIENCE):
                        await self._lost(slot, error)
                finally:
                    lane.group.retire(slot, "broken")
                return False
            self.topology.probed(endpoint, sighting, monotonic() - began, monotonic(), slot.born)
            self.abort()
            if _clean(slot) or await self._catch_up(slot, deadline):
                lane.group.give(slot, monotonic())
            return True
        return False

    async def tell_outages(self) -> None:
        """Call the `reconnect_failed` of the groups that bear an outage no longer."""
        outages = self.topology.outages
        while outages:
            group, endpoint, error = outages.popleft()
            tell = group.settings.reconnect_failed
            if tell is not None:
                try:
                    await self._outcome(tell(endpoint, error))
                except Exception as failure:
                    log_raised(f"group {group.name!r}: reconnect_failed", failure)

    async def _connect(
        self, order: Order, where: EndpointSettings, how: GroupSettings, deadline: float
    ) -> tuple[Any, bool | None]:
        """A connection, and whether its settings were left unsaid; None: since a pooler would not hear of them."""
        password = where.password
        if callable(password):
            password = await (self.password or self.driver.password)(password, deadline)
        connect = partial(
            self.driver.connect,
            autocommit=how.autocommit,
            deadline=deadline,
            wanted=lambda: order.wanted,
            conduct=self._conduct(order.lane, where, how),
            choice=self._choice(order.lane, where, how),
            style=style_of(how),
            lessor=self.lessors.get(order.group.name),
        )
        if is_pooled(order.lane.endpoint):
            return await connect(conninfo(where, how, password, startup_options=False)), True
        try:
            return await connect(conninfo(where, how, password)), False
        except ConnectFailed as error:
            if not error.options_refused:
                raise
        return await connect(conninfo(where, how, password, startup_options=False)), None

    def _choice(self, lane: Lane, where: EndpointSettings, how: GroupSettings) -> Choice | None:
        """Who will do where the endpoint's name has several addresses."""
        spread = where.params.get("load_balance_hosts") == "random" or how.target_session_attrs in _READERS
        if how.target_session_attrs == "any" and not spread:
            return None
        return Choice(partial(self.topology.rank, lane), spread)

    def _conduct(self, lane: Lane, where: EndpointSettings, how: GroupSettings) -> Conduct:
        """How long users' calls may go unanswered, and who is told how long they took."""
        timeout = where.query_timeout if how.query_timeout is None else how.query_timeout
        limit = timeout / 1000 + GRACE if timeout else None
        check = None if self.check is None or self.topology.monitored else self._checking(self.check(lane.endpoint))
        patience = None
        if limit or check:
            late = f"{ended.by_query_timeout(where, how)}, and {GRACE:g} s more had passed" if limit else ""
            patience = Patience(limit, check=check, limited_by=late, checked_by=ended.by_look(self._monitor))
        observe = lane.latency.observe_call if how.balance == "latency" else None
        return Conduct(patience, observe and (lambda seconds: observe(seconds, monotonic())))

    def _checking(self, check: Callable[..., str | None]) -> Callable[..., str | None]:
        def look(until: float, address: str = "") -> str | None:
            words = check(until, address) if address else check(until)
            self.abort()  # it may have met a newer primary behind the name: then this very call ends
            return words

        return look

    async def _configure(
        self, conn: Any, given: Any, configure: Callable[[Any], Any], autocommit: bool, deadline: float
    ) -> None:
        await self._outcome(configure(given), deadline)
        await self._end_transaction(conn)
        await self.driver.adopt(conn, autocommit)

    async def _end_transaction(self, conn: Any) -> None:
        """After a callback: keep what it did, and leave the session idle."""
        status = self.driver.status(conn)
        if status is Status.IN_TRANSACTION:
            await self.driver.commit(conn)
            status = self.driver.status(conn)
        if status is not Status.IDLE:
            raise LeftOpen(f"left the connection {status.value}")

    async def _outcome(self, result: Any, deadline: float = float("inf")) -> Any:
        """What a user's callable returned, if need be after it has been awaited."""
        return await self.driver.within(result, deadline) if inspect.isawaitable(result) else result

    def _watch(self, conn: Any, how: GroupSettings) -> Callable[[float], bool]:
        # A group with a reset always takes the long way back.
        writes = how.target_session_attrs in ("primary", "prefer-primary", "read-write", "read-only")
        clean = self.driver.watch(conn, writes)
        return clean if how.reset == "none" else _Resets(clean)

    # -- before a checkout --------------------------------------------------------------------------------------

    async def verify(self, slot: Slot, deadline: float) -> bool:
        """Whether a slot that rested for a while can be handed out. One that cannot is out of the pool."""
        group = slot.lane.group
        now = monotonic()
        if slot.generation != slot.lane.generation or now >= slot.expires:
            group.retire(slot, outlived(slot))
            return False
        if now < slot.fresh_until:
            return True
        if self.driver.status(slot.conn) not in (Status.IDLE, Status.BROKEN):
            say_seldom(
                logging.WARNING,
                f"group {group.name!r}: a connection to {slot.lane.endpoint.label} was used after it had been returned "
                "to the pool, and is closed: a caller keeps it beyond its block, or beyond putconn",
                of=("used after return", group.name),
            )
            group.retire(slot, "busy")
            return False
        check = group.settings.check
        try:
            if self._unsure(slot.lane, now):
                await self._ask_again(slot, min(deadline, now + PING_LIMIT))
            # `off` comes here where a fork may have gone unnoticed, and when the whole pool is asked.
            if check not in ("auto", "off") or now - slot.rested >= PING_AFTER or not self.driver.quiet(slot.conn):
                if callable(check):
                    await self._outcome(check(slot.given), deadline)
                    await self._end_transaction(slot.conn)
                    await self.driver.restore(slot.conn)
                else:
                    await self.driver.ping(slot.conn, min(deadline, now + PING_LIMIT))
        except _CALLERS_OWN:  # as an interruption
            group.retire(slot, "broken")
            raise
        except Exception as error:
            try:
                hurried = deadline < now + LEAST_PATIENCE
                if callable(check) and self.driver.status(slot.conn) is not Status.BROKEN:
                    self.topology.put_off(slot.lane, monotonic())  # it may say the same of the next one
                if not (hurried and isinstance(error, DriverTimeout | TimeoutError)):
                    await self._lost(slot, error, checked=callable(check))
            finally:
                group.retire(slot, "broken")
            return False
        except BaseException:  # interrupted: no evidence, but nobody knows what is still to come on this connection
            group.retire(slot, "broken")
            raise
        if slot.generation != slot.lane.generation or slot.expires <= LEFT:
            group.retire(slot, outlived(slot))
            return False
        if not _clean(slot):
            # What it heard while it rested: its server has another role now, say.
            return await self._catch_up(slot, deadline)
        return True

    def _unsure(self, lane: Lane, now: float) -> bool:
        """Whether nothing would tell that another server answers behind a pooler: no monitor, and no session either."""
        endpoint = lane.endpoint
        if not endpoint.pooled or self.topology.monitored or lane.group.settings.target_session_attrs == "any":
            return False
        return endpoint.answered_at is None or now - endpoint.answered_at >= ASK_AGAIN_AFTER

    async def _ask_again(self, slot: Slot, limit: float) -> None:
        began = monotonic()
        try:
            sighting = await self._sight(slot.lane.endpoint, slot.conn, limit)
        except Unanswered:
            return
        self.topology.probed(slot.lane.endpoint, sighting, monotonic() - began, monotonic())

    async def _catch_up(self, slot: Slot, deadline: float, *, refused: bool = False) -> bool:
        """The session says something else of its server than before, or a write was refused.

        Tell the topology; False if the session had to go.
        """
        group, conn = slot.lane.group, slot.conn
        limit = min(deadline, monotonic() + PING_LIMIT)
        try:
            pooled = slot.lane.endpoint.pooled
            report, identity = (
                (Report(Role.UNKNOWN) if refused or pooled else await self.driver.report(conn, limit)),
                None,
            )
            if report.role is not slot.server.report.role:  # a promotion begins a new timeline
                report, identity, *_ = await self._sight(slot.lane.endpoint, conn, limit)
            if report.read_only and await self.driver.says_read_only_itself(conn, limit):
                # Its user's own doing. The next one shall find a session like any other. Behind a pooler it may be
                # that of another application, and the next statement may run elsewhere. A group that takes any server
                # may have been meant to be so, by its `configure`.
                if not pooled and group.settings.target_session_attrs != "any":
                    await self.driver.statement(conn, "RESET default_transaction_read_only", limit)
            else:
                self.topology.reported(slot, report, monotonic(), identity, refused=refused)
                self.abort()
            slot.clean = self._watch(conn, group.settings)
        except Unanswered:  # it refused a write, and does not say why: nothing against the server, but it must not stay
            group.retire(slot, "role")
            return False
        except Exception as error:
            try:
                await self._lost(slot, error)
            finally:
                group.retire(slot, "broken")
            return False
        except BaseException:
            group.retire(slot, "broken")
            raise
        if slot.generation != slot.lane.generation or slot.expires <= LEFT:
            group.retire(slot, outlived(slot))
            return False
        return True

    # -- after use ----------------------------------------------------------------------------------------------

    async def settle(self, slot: Slot, error: BaseException | None, *, commit: bool) -> None:
        """Take back a slot that cannot simply be put on the stack.

        `commit`: a block has ended, normally if there is no `error`. Then a transaction that is open in a transaction
        group is committed, and what became of the work is said: raises OutcomeUnknown if the connection was lost in a
        COMMIT, the block's own included, the driver's exception if the server refuses to commit, and DBConnectionError
        if there is nothing left to commit on. In all other cases a transaction is rolled back. A session that is busy
        or broken is closed.
        """
        group, conn = slot.lane.group, slot.conn
        status = self.driver.status(conn)
        lost = None
        if error is not None:
            if commit:
                outcome.note_on(error, slot, self.driver)
        elif slot in slot.lane.slots:  # and not of the process that we were forked from
            lost = outcome.of_block(slot, status, self.driver) if commit else None
            if lost is None and commit and status is Status.IN_TRANSACTION and not group.settings.autocommit:
                await self._commit_and_put_away(slot)
                return
            outcome.log_return(slot, status)
        if status is Status.BUSY:
            try:
                await self.driver.ended(conn)
            except BaseException:
                group.retire(slot, "busy")
                raise
        if status is Status.BUSY and error is None:  # what it was left in the middle of is still in somebody's hands
            await self._close(slot, status, None)
        else:
            await self._put_away(slot, error)
        if lost is not None:
            raise lost

    async def discard(self, slot: Slot, error: BaseException | None) -> None:
        """Take back a slot that is not to be used again. `error` is evidence, as in `settle`."""
        status = self.driver.status(slot.conn)
        await self._close(slot, status if status is Status.BROKEN else Status.CLOSED, error)

    async def commit(self, slot: Slot) -> None:
        """Commit what is open. Raises OutcomeUnknown, DBConnectionError or the driver's exception, as `settle` does."""
        status = self.driver.status(slot.conn)
        if status is not Status.IN_TRANSACTION:
            lost = outcome.of_commit(slot, status, self.driver)
            if lost is not None:
                raise lost
            await self.driver.commit(slot.conn)  # nothing is open, or it is not to be committed like this: it says so
            return
        goodbye = self.driver.farewell(slot.conn)
        if goodbye is not None:
            raise outcome.lost_before_commit(slot, goodbye) from goodbye
        try:
            await self.driver.commit(slot.conn)
        except Exception as failure:
            status = self.driver.status(slot.conn)
            if status not in _LOST and self.driver.in_doubt(slot.conn) is not Doubt.COMMIT:
                raise
            if self.driver.sqlstate(failure) == _NOT_BEGUN:
                raise outcome.lost_before_commit(slot, failure) from failure
            raise outcome.lost_in_commit(slot, status) from failure

    async def _commit_and_put_away(self, slot: Slot) -> None:
        try:
            await self.commit(slot)
        except DBConnectionError as lost:
            status = self.driver.status(slot.conn)
            # In a transaction: its server has said goodbye, and libpq has not read to the end.
            await self._close(slot, Status.BROKEN if status is Status.IN_TRANSACTION else status, lost.__cause__)
            raise
        except Exception as failure:
            if self.driver.status(slot.conn) is Status.IN_TRANSACTION:
                failure.add_note(outcome.LEFT_INSIDE)
            await self._put_away(slot, failure)
            raise
        except BaseException as interrupt:
            status = self.driver.status(slot.conn)
            await self._close(slot, Status.BUSY if status is Status.IDLE else status, interrupt)
            raise
        await self._put_away(slot, None)

    async def _put_away(self, slot: Slot, error: BaseException | None) -> None:
        """What is left to do after a commit, or where there is nothing to commit."""
        driver, group, conn = self.driver, slot.lane.group, slot.conn
        how: GroupSettings = group.settings
        try:
            if driver.status(conn) is Status.IN_TRANSACTION:
                slot.rollbacks += 1
                await driver.rollback(conn)
            status = driver.status(conn)
            if status is Status.IDLE:
                await driver.restore(conn)
        except BaseException as failure:
            status = driver.status(conn)
            await self._close(slot, Status.BUSY if status is Status.IDLE else status, error or failure)
            if not isinstance(failure, (driver.Error, DriverTimeout)):  # an interruption, which is for the caller
                raise
            return
        if status is not Status.IDLE:
            await self._close(slot, status, error)
            return
        if driver.worn(conn):
            group.retire(slot, "lifetime")
            return
        if how.reset != "none" and not await self._reset(slot, error):
            return
        # What the user has caught inside the block is known to the connection, which takes note.
        refused = driver.write_refused(conn) or self._sqlstate(error) == _READ_ONLY
        refused = refused and how.target_session_attrs in _WRITERS
        if refused and not await self._catch_up(slot, monotonic() + PING_LIMIT, refused=True):
            return
        if _clean(slot) or await self._catch_up(slot, monotonic() + PING_LIMIT):
            group.give(slot, monotonic())

    async def _reset(self, slot: Slot, error: BaseException | None) -> bool:
        """Do what the group's `reset` says. False: it failed, and the slot is out of the pool."""
        conn, group = slot.conn, slot.lane.group
        how: GroupSettings = group.settings
        doing = "reset"
        try:
            if callable(how.reset):
                await self._outcome(how.reset(slot.given))
                await self._end_transaction(conn)
                await self.driver.restore(conn)
            elif await self.driver.reset(conn, limit := monotonic() + RESET_LIMIT) and how.configure is not None:
                doing = "configure"
                await self._configure(conn, slot.given, how.configure, how.autocommit, limit)
        except BaseException as failure:
            lost = self.driver.status(conn) is Status.BROKEN
            if isinstance(failure, Exception):
                words = words_of(failure, self.driver, lost=True) if lost else words_raised(doing, failure, self.driver)
                line = f"group {group.name!r}: reset failed, connection closed: {words}"
                say_seldom(logging.WARNING, line, of=("reset", group.name))
            if lost:
                await self._lost_for_good(slot, error or failure)
            else:
                group.retire(slot, "reset")
            if not isinstance(failure, Exception):
                raise
            return False
        return True

    async def _close(self, slot: Slot, status: Status, error: BaseException | None) -> None:
        """Close one that is not idle."""
        if status is Status.BROKEN:
            await self._lost_for_good(slot, error)
            return
        # In a transaction: inside a block of the driver's own, which lets nobody else end it.
        slot.lane.group.retire(slot, "closed" if status is Status.CLOSED else "busy")

    async def _lost_for_good(self, slot: Slot, error: BaseException | None) -> None:
        try:
            await self._lost(slot, error)
        finally:
            slot.lane.group.retire(slot, "broken")

    async def _lost(self, slot: Slot, error: BaseException | None, *, checked: bool = False) -> None:
        """A session is gone. Have a look at those that rest beside it: a read of their sockets, no round trip.

        An error of our own is no evidence, unless a user's `check` has raised it. To be called before the slot is
        retired: that wakes the keeper, which should see the new belief.
        """
        now = monotonic()
        if isinstance(error, DriverTimeout):
            tell = self.topology.waits if slot.lane.endpoint.pooled else self.topology.silent
            tell(slot.lane.endpoint, str(error), now)
            return
        broken = checked or error is None or self.driver.status(slot.conn) is Status.BROKEN
        if not broken and error is not None and self.driver.fault(error) is None:
            self._own(error, f"a question to {slot.lane.endpoint.label}")
            return
        if self._session_lost(slot, error, now, checked=checked):
            await self.look_at(self.topology.lanes(slot.lane.endpoint))

    def _session_lost(self, slot: Slot, error: BaseException | None, now: float, *, checked: bool = False) -> bool:
        """Tell the topology, in the server's own words if it left any."""
        code, said = self._sqlstate(error), self.driver.last_words(slot.conn)
        if said is not None:
            return self.topology.session_lost(slot, said.sqlstate, said.words, now)
        lost = self.driver.status(slot.conn) in _LOST
        if checked and not lost and error is not None:
            words = words_raised("check", error, self.driver)
        else:
            words = words_of(error, self.driver, lost=lost)
        return self.topology.session_lost(slot, code, words, now)

    def _own(self, error: BaseException, what: str) -> None:
        """An error of our own: no evidence."""
        words = f"{what} failed in an unforeseen way, which says nothing about the server: {type(error).__name__}"
        say_seldom(logging.ERROR, words, error=error)

    async def look_at(self, lanes: Iterable[Lane]) -> None:
        """Look at the sockets of those that rest; close those whose server has said goodbye."""
        for lane in lanes:
            for slot in snapshot(lane.idle):
                if not self.driver.quiet(slot.conn):
                    await self._look_closer(slot)

    async def _look_closer(self, slot: Slot) -> None:
        lane = slot.lane
        try:
            lane.idle.remove(slot)
        except ValueError:  # taken meanwhile: its holder looks as well
            return
        try:
            await self.driver.ping(slot.conn, monotonic() + PING_LIMIT)
        except BaseException as error:
            try:
                if not isinstance(error, Exception):
                    raise
                if self.driver.fault(error) is None:
                    self._own(error, f"a question to {lane.endpoint.label}")
                else:
                    self._session_lost(slot, error, monotonic())
            finally:
                lane.group.retire(slot, "broken")
        else:  # it only had something to say
            slot.lane.group.give(slot, monotonic())

    def speaks(self, endpoint: Endpoint, seconds: float, address: str | None = None) -> bool:
        """Whether a session of an endpoint, or with this address of it, has had a word in the last so many seconds."""
        heard_within = self.driver.heard_within
        return any(
            heard_within(slot.conn, seconds)
            for lane in self.topology.lanes(endpoint)
            for slot in lane.ledger.live
            if address in (None, slot.address)
        )

    def heard(self, slot: Slot) -> None:
        """Its server may have said goodbye. If so it will not be handed out again."""
        if self.driver.quiet(slot.conn):
            return
        group = slot.lane.group
        try:
            slot.lane.idle.remove(slot)  # nobody else may close it while we read what it was told
        except ValueError:
            group.goodbye(slot)  # it goes when its holder gives it back
            return
        try:
            self.driver.listen_to_the_end(slot.conn)
            said = self.driver.last_words(slot.conn)
            code, words = said or (None, "the server closed the connection")
            self.topology.session_lost(slot, code, words, monotonic())
        finally:
            group.retire(slot, "broken")

    def _sqlstate(self, error: BaseException | None) -> str | None:
        """The code of the driver's exception, also where the application has wrapped it in its own, or in a group."""
        return next(filter(None, map(self.driver.sqlstate, chain(error))), None)

    # -- closing ------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """End the calls in flight on servers that are dead, or of the past. May be called by any thread."""
        aborts = self.topology.aborts
        while aborts:
            try:
                slot = aborts.popleft()
            except IndexError:  # another thread has just done it
                break
            gone = slot.generation != slot.lane.generation or slot.expires <= OVERTAKEN
            if gone and slot in slot.lane.slots:
                slot.expires = ABORTED
                self.driver.abort(slot.conn, ended.by_pool(slot, self._monitor))
        for order, conn in snapshot(self._unready.values()):  # a callable of the user's may be waiting for the server
            if not order.wanted:
                self.driver.abort(conn)

    def bury(self, group: Group) -> None:
        """Close what core has taken out of the pool."""
        while True:
            try:
                slot, reason = group.closing.popleft()
            except IndexError:
                return
            self.closing(slot)
            driver, conn = self.driver, slot.conn
            if (reason not in _ENDED or driver.given_up(conn)) and driver.at_work(conn):
                self.end_first(slot)
            else:
                driver.close(conn)
                group.buried(slot)

    async def end(self, slot: Slot, limit: float) -> None:
        """Close a slot with whose statement its server is still busy, and have that ended before.

        Until then it counts, so that no other connection is opened in its place. Never raises an `Exception`.
        """
        try:
            await self.driver.cancel(slot.conn, monotonic() + limit)
        except Exception as error:
            logger.debug("group %r: cannot cancel a statement: %s", slot.lane.group.name, type(error).__name__)
        finally:
            self.driver.close(slot.conn)
            slot.lane.group.buried(slot)

    def end_now(self, slot: Slot) -> None:
        """The same where nothing can be awaited, and nobody else could do it."""
        try:
            self.driver.cancel_now(slot.conn, monotonic() + IN_PLACE)
        finally:
            self.driver.close(slot.conn)
            slot.lane.group.buried(slot)


class _Resets:
    """`Slot.clean` where the group has a `reset`: never; on the long way back `clean` is asked."""

    def __init__(self, clean: Callable[[float], bool]) -> None:
        self.clean = clean

    def __call__(self, now: float) -> bool:
        return False


def style_of(how: GroupSettings) -> Style:
    """What a group wants of the driver's objects."""
    return Style(how.connection_class, how.cursor_factory, how.row_factory, how.context, how.prepare_threshold)


def _clean(slot: Slot) -> bool:
    clean = slot.clean.clean if isinstance(slot.clean, _Resets) else slot.clean
    return clean(monotonic())
