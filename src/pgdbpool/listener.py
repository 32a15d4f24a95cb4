"""Hears a server's goodbye the moment it is said, and is what the keeper thread sleeps on.

A connection whose server went away looks well until somebody uses it. Asking each before each use costs a round trip,
looking at its socket half a microsecond. The kernel knows at once, and can tell: one epoll set holds the sockets of
all connections, idle and leased, and asks only for *the other side has shut down* (``EPOLLRDHUP``), so that ordinary
answers wake nobody. Where there is no epoll the listener is deaf, and sockets are looked at after a rest.
"""

from __future__ import annotations

import os
import select
import threading
from typing import Protocol

from .core.lane import Slot


class Listener(Protocol):
    """What the keeper thread sleeps on. All methods may be called from any thread."""

    def add(self, slot: Slot, descriptor: int) -> None:
        """Listen to this connection."""

    def forget(self, slot: Slot) -> None:
        """It is about to be closed."""

    def references(self, slot: Slot) -> int:
        """How many references to this connection the listener has."""

    def wake(self) -> None:
        """End the sleep."""

    def sleep(self, seconds: float) -> list[Slot]:
        """Sleep until woken, at most so long. Returns those whose server may have said goodbye: look at them."""


class EpollListener:
    """By Linux's epoll."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)
        self._slots: dict[int, Slot] = {}
        self._descriptors: dict[Slot, int] = {}

    @property
    def descriptor(self) -> int:
        """Readable when `sleep` would return at once."""
        return self._epoll.fileno()

    def add(self, slot: Slot, descriptor: int) -> None:
        self._slots[descriptor] = slot
        self._descriptors[slot] = descriptor
        try:
            # Edge-triggered: told once, even if nobody acts on it yet.
            self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLET)
        except (OSError, ValueError):  # closed in this very moment: whoever uses it finds out
            pass

    def forget(self, slot: Slot) -> None:
        descriptor = self._descriptors.pop(slot, None)
        # The number may belong to a newer connection already.
        if descriptor is not None and self._slots.get(descriptor) is slot:
            del self._slots[descriptor]

    def references(self, slot: Slot) -> int:
        descriptor = self._descriptors.get(slot)
        return 0 if descriptor is None else 1 + (self._slots.get(descriptor) is slot)

    def wake(self) -> None:
        os.eventfd_write(self._bell, 1)

    def sleep(self, seconds: float) -> list[Slot]:
        heard = []
        for descriptor, _events in self._epoll.poll(seconds):
            if descriptor == self._bell:
                os.eventfd_read(self._bell)
            elif (slot := self._slots.get(descriptor)) is not None:
                heard.append(slot)
        return heard

    def __del__(self) -> None:
        # Not before: somebody who still knows the listener might ring, on a number that is another file's by then.
        if hasattr(self, "_bell"):
            os.close(self._bell)


class DeafListener:
    """Where there is no epoll: sleeps and wakes, and hears nothing."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def add(self, slot: Slot, descriptor: int) -> None: ...

    def forget(self, slot: Slot) -> None: ...

    def references(self, slot: Slot) -> int:
        return 0

    def wake(self) -> None:
        self._event.set()

    def sleep(self, seconds: float) -> list[Slot]:
        self._event.wait(seconds)
        self._event.clear()
        return []


def listener() -> Listener:
    """The best this system has, and has room for."""
    if hasattr(select, "epoll") and hasattr(os, "eventfd"):
        try:
            return EpollListener()
        except OSError:  # no descriptor to be had; a forked child needs a listener all the same
            pass
    return DeafListener()
