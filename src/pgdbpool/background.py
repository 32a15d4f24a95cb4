"""What a pool does in the background belongs to no request.

A thread or task inherits the context variables of whoever starts it: tasks and callbacks of an event loop always,
threads where Python 3.14 is told so and in its free-threaded build. What lives as long as the pool would then see one
request's user, language or trace, that of the request which happened to come first, and would keep all of that alive.
So whatever is begun here begins with an empty context. What is done for one request while it waits, such as its COMMIT,
stays in its own.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")

nobodys = Context
"""Makes an empty context, for the callbacks of an event loop: one for each, since none can be entered twice."""


def thread(target: Callable[..., object], name: str, *args: Any) -> threading.Thread:
    """A daemon thread, not started."""
    if sys.version_info >= (3, 14):
        return threading.Thread(target=target, name=name, args=args, daemon=True, context=Context())
    return threading.Thread(target=target, name=name, args=args, daemon=True)


def task(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task of the running loop."""
    return asyncio.get_running_loop().create_task(work, context=Context())
