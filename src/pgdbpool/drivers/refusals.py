"""Why a connect failed, and who says so: the server, the kernel, libpq, or nobody.

It matters who. What a server says, or the kernel of its machine, counts against it. What libpq says of a key that it
cannot read, or this machine of its own ports, does not: the sessions that are open are as good as before.

libpq gives words, and translates its own; a server's are in the server's language. So the words are for people, and
what is believed comes from elsewhere:

the SQLSTATE
    of what the server said. libpq has it, and writes it into the words when told to be verbose; psycopg has no way to
    tell it, so `private.be_verbose` asks libpq itself. What it adds is taken out again.
`Attempt.heard`, `Attempt.closed`
    whether a byte has come from the server, and whether the connection was closed: the socket is looked at before
    libpq reads it.
the errno
    in whose words, which `os.strerror` gives in the same language, libpq says what the kernel said.

::

    a SQLSTATE                            what the server means by it: `connect_fault`
    closed, and no word has come          refused
    closed after a word                   ended: somebody is there, and lets nobody in at this moment
    ECONNREFUSED, ECONNRESET, ...         refused; likewise a Unix socket that is not there
    ENETUNREACH, EHOSTUNREACH, ...        unreachable: a network in between says so, also after the accept
    EAGAIN                                full: too many ask at the same Unix socket
    EMFILE, EADDRNOTAVAIL, ...            local: this machine could not even ask
    anything else is libpq's word         misconfigured
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import socket
import struct
import termios

from psycopg import pq

from ..core.evidence import Fault, connect_fault
from . import ConnectFailed
from .private import be_verbose

MOST = 1 << 20  # bytes that a server may send until it has let us in; an ordinary one sends some 2,000

_REFUSED = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE)
_NO_SOCKET = (errno.ENOENT, errno.ENOTDIR)  # a Unix socket that is not there, since no server is
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ETIMEDOUT)
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # also on the way, for a file with a key, say
_LOCAL = (
    *_SHORT,
    errno.EADDRNOTAVAIL,
    errno.EADDRINUSE,
    errno.EACCES,
    errno.EPERM,
    errno.EAFNOSUPPORT,
    errno.EINVAL,
)
_KERNEL = (
    *((code, Fault.REFUSED) for code in (*_REFUSED, *_NO_SOCKET)),
    *((code, Fault.UNREACHABLE) for code in _UNREACHABLE),
    (errno.EAGAIN, Fault.FULL),
    *((code, Fault.LOCAL) for code in _LOCAL),
)

# A pooler says nearly all with this code, and in English.
POOLER = "08P01"
NO_SERVER = "query_wait_timeout"  # what PgBouncer says where it has no server for a client in time
_POOLER_SAYS = (
    (r"the database system is|not (yet )?accepting connections", "57P03"),
    (r"too many (clients|connections)|connection slots are reserved|no more connections allowed", "53300"),
    (r"password authentication failed|authentication failed|auth failed|no such user|password required", "28P01"),
    (r"pg_hba\.conf|role \".*\" does not exist|not permitted to log in|TLS required|SSL required", "28000"),
    (r"database \".*\" does not exist|no such database", "3D000"),
)

# FATAL:  28P01: password authentication failed for user "app"
# LOCATION:  auth_failed, auth.c:326
_SQLSTATE = re.compile(r"(?<=: {2})([0-9A-Z]{5}): ")
_LOCATION = re.compile(r"\n[^\s:]+: {2}(?:\w+, )?[^\s:]+:\d+(?=\n|$)")
_SPOKE = re.compile(r"failed: [^\s:]+: {2}")  # severity, colon, two blanks: a server's message that has no SQLSTATE


class Attempt:
    """One attempt of libpq's to connect, and what is seen of it from outside."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self.reached = False  # somebody has accepted the connection
        self.heard = False  # a byte has come from there
        self.closed = False
        self._left = MOST
        be_verbose(pgconn, True)

    def look(self) -> None:
        """Before libpq goes on: what waits in the socket. Raises ConnectFailed if the server does not stop talking."""
        if self._pgconn.status == pq.ConnStatus.STARTED:
            # Of several addresses each is asked anew.
            self.reached = self.heard = self.closed = False
            return
        self.reached = True
        waiting, self.closed = waiting_in(self._pgconn.socket)
        self.heard |= waiting > 0
        self._left -= waiting
        if self._left < 0:
            words = f"what answers there has sent more than {MOST} bytes, and has not let us in"
            raise ConnectFailed(words, Fault.MISCONFIGURED)

    def let_in(self) -> None:
        """The connect succeeded: errors shall have the words that users are used to."""
        be_verbose(self._pgconn, False)

    def failure(self) -> ConnectFailed:
        """The words, without what only we wanted to know, and their meaning."""
        message = self._pgconn.error_message.decode("utf-8", "replace").strip()
        # Of several addresses the last one counts: the others may be of a kind that this machine does not speak.
        last = message.rpartition("connection to server")[2]
        said = _SQLSTATE.search(last)
        words = _LOCATION.sub("", _SQLSTATE.sub("", message)).strip()
        if said is not None:
            return _refused_by_server(words, said[1])
        if not message:  # libpq 16 and newer do not say why there is no socket
            return _no_socket()
        return ConnectFailed(words, self._fault(last))

    def _fault(self, words: str) -> Fault:
        code = _errno_in(words)
        if self.reached:
            spoke = bool(_SPOKE.search(words)) or "sent an error response during" in words  # it could not fork, say
            if code in _UNREACHABLE and not spoke:  # which closes the connection, too
                return Fault.UNREACHABLE
            if self.closed or code in _REFUSED or "closed the connection unexpectedly" in words:
                return Fault.ENDED if self.heard else Fault.REFUSED
            if spoke:
                return Fault.FULL
            if code in _SHORT:
                return Fault.LOCAL
        elif "could not translate host name" in words:
            return Fault.UNRESOLVED
        elif code is not None:
            return dict(_KERNEL)[code]
        return Fault.LOCAL if "out of memory" in words else Fault.MISCONFIGURED


def _refused_by_server(words: str, sqlstate: str) -> ConnectFailed:
    if sqlstate == POOLER:
        if "unsupported startup parameter" in words:
            return ConnectFailed(words, Fault.MISCONFIGURED, sqlstate=sqlstate, options_refused=True)
        if NO_SERVER in words:
            return ConnectFailed(words, Fault.WAITING, sqlstate=sqlstate)
        if re.search(r"database \".*\" is disabled", words):  # those that are open go on
            return ConnectFailed(words, Fault.FULL, sqlstate=sqlstate)
        sqlstate = next((code for pattern, code in _POOLER_SAYS if re.search(pattern, words)), sqlstate)
    return ConnectFailed(words, connect_fault(sqlstate), sqlstate=sqlstate)


def _no_socket() -> ConnectFailed:
    try:
        socket.socket().close()
    except OSError as error:
        return ConnectFailed(f"could not create socket: {error.strerror}", Fault.LOCAL)
    return ConnectFailed("connection failed: no socket could be made", Fault.LOCAL)


def _errno_in(words: str) -> int | None:
    return next((code for code, _ in _KERNEL if os.strerror(code) in words), None)


_READABLE = select.POLLIN | getattr(select, "POLLRDHUP", 0)


def waiting_in(descriptor: int) -> tuple[int, bool]:
    """How many bytes wait in a socket to be read, and whether it was closed or broken, and nothing is left to read."""
    poller = select.poll()
    poller.register(descriptor, _READABLE)
    if not poller.poll(0):
        return 0, False
    (waiting,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))
    return waiting, not waiting
