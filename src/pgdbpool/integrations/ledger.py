"""What the processes of one application have counted together, those included that have ended.

A scrape reaches one of several worker processes, and is to be told of all. What each has counted is in the file that
it publishes (`pgdbpool.publish`), and vanishes with it. But a sum that shrinks is a restart to Prometheus, and all
that is left would be counted once more. So there is one more file, the ledger, with what each process had counted when
it was last looked at: an account stays when its process is gone, and some time later is added to those of all that went
before.

::

    process published ──▶ account, never less than before ──process gone, FORGET later──▶ `gone`
    the sum = gone + all accounts

Each look at the ledger reads, changes and replaces it with an exclusive lock on a file beside it, so it makes no
difference which process is asked. A process that ends enters its last numbers itself; those of one that was killed are
entered from its file, before that is removed (`pgdbpool.publish.heirs`), or are missing since it was last written.

What is measured at a moment, such as connections in use, needs no ledger: the living are added up.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ..core.stats import PoolStats
from ..publish import Worker, place
from .catalogue import METRICS, Histogram, Kind, Value, never_less

logger = logging.getLogger("pgdbpool")

FORGET = 600.0
"""Seconds after which the account of a process that is gone is closed. One that was only silent may come back."""
_LARGEST = 64 * 2**20  # bytes
_LOCK_LIMIT = 2.0  # s that another one's look may take
_LOCK_PAUSE = 0.005

Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""The name of a metric, the pool, and the labels."""
Book = dict[Key, Value]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One series, in the file."""

    metric: str
    pool: str
    labels: tuple[tuple[str, str], ...]
    value: int | float | Histogram


class Account(msgspec.Struct, frozen=True):
    """One process."""

    process: str
    seen: float
    """When it was last there, in seconds since the epoch."""
    entries: tuple[Entry, ...]


class Ledger(msgspec.Struct, frozen=True):
    """The file."""

    gone: tuple[Entry, ...] = ()
    accounts: tuple[Account, ...] = ()
    version: int = 1


# -- decisions --------------------------------------------------------------------------------------------------


def entered(ledger: Ledger, workers: Iterable[Worker], now: float) -> Ledger:
    """The ledger after a look at those who live, at `now` in seconds since the epoch."""
    accounts = {account.process: account for account in ledger.accounts}
    for worker in workers:
        process = "/".join(map(str, worker.identity))
        before = _book(accounts[process].entries) if process in accounts else {}
        book = counted([pool.stats for pool in worker.pools])
        # What a pool that was closed meanwhile has counted stays.
        after = before | {key: never_less(before.get(key), value) for key, value in book.items()}
        accounts[process] = Account(process, now, _entries(after))
    closed = [account for account in accounts.values() if now - account.seen > FORGET]
    staying = tuple(account for account in accounts.values() if account not in closed)
    gone = _entries(added([_book(ledger.gone), *(_book(account.entries) for account in closed)]))
    return Ledger(gone, staying)


def total(ledger: Ledger) -> Book:
    """The sum over all there have been."""
    return added([_book(ledger.gone), *(_book(account.entries) for account in ledger.accounts)])


def counted(pools: Iterable[PoolStats]) -> Book:
    """What only grows, of these pools."""
    return added(
        {(metric.name, stats.name, tuple(sample.labels.items())): sample.value for sample in metric.read(stats)}
        for stats in pools
        for metric in METRICS
        if metric.kind in (Kind.COUNTER, Kind.HISTOGRAM)
    )


def added(books: Iterable[Book]) -> Book:
    """The sum of some."""
    result: Book = {}
    for book in books:
        for key, value in book.items():
            before = result.get(key)
            result[key] = value if before is None else before + value  # type: ignore[operator]
    return result


def _book(entries: Iterable[Entry]) -> Book:
    return {(entry.metric, entry.pool, entry.labels): entry.value for entry in entries}


def _entries(book: Book) -> tuple[Entry, ...]:
    return tuple(Entry(*key, value) for key, value in book.items())


# -- the file ---------------------------------------------------------------------------------------------------


def look(name: str, directory: Path, workers: Sequence[Worker]) -> Book:
    """What the application `name` has counted, `workers` being those that live.

    Where the ledger cannot be kept it is the sum of the living; OSError says why.
    """
    file = f"{name}.ledger.json"
    with place.opened(directory) as here, _locked(here.open_lock(f"{name}.ledger.lock")):
        ledger = entered(_read(here, file), workers, time.time())
        here.replace(file, msgspec.json.encode(ledger))
    return total(ledger)


def _read(here: place.Place, file: str) -> Ledger:
    data = here.content(file, _LARGEST)
    if data is None:
        return Ledger()
    try:
        return msgspec.json.decode(data, type=Ledger)
    except (msgspec.MsgspecError, RecursionError) as error:
        logger.warning("%s cannot be read, and is begun anew: %s", here.path / file, error)
        return Ledger()


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Alone with the ledger; the file is closed at the end. Raises OSError if that cannot be had in time."""
    try:
        deadline = time.monotonic() + _LOCK_LIMIT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(descriptor)
