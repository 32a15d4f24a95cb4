"""One operation of one caller, and how it travels from the child to the parent: as one line of JSON."""

import json
from typing import Literal, NamedTuple

Kind = Literal["write", "read"]
Outcome = Literal["done", "failed", "doubt"]
KINDS: tuple[Kind, Kind] = ("write", "read")


class Op(NamedTuple):
    """An operation that has ended. Times are those of `time.monotonic`, which all processes of a machine share."""

    caller: int
    kind: Kind
    id: int
    """Unique; a write inserts it."""
    began: float
    ended: float
    outcome: Outcome
    """``failed``: the caller was told so, and it has not happened. ``doubt``: it may have happened."""
    server: int | None
    """The port of the server that answered, as the server says."""
    error: str = ""

    @property
    def took(self) -> float:
        return self.ended - self.began


class Caller(NamedTuple):
    """Who works: a number, and whether it writes or reads."""

    number: int
    kind: Kind


def callers(count: int, first: int = 0) -> list[Caller]:
    """So many callers, half of them writing, numbered from ``first``."""
    return [Caller(first + number, KINDS[number % 2]) for number in range(count)]


def line(what: str, *content: object) -> bytes:
    """A message of the child."""
    return json.dumps([what, *content]).encode() + b"\n"
