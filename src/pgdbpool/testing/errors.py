"""What can go wrong while a test cluster is built or driven."""


class ClusterError(RuntimeError):
    """Base of every error of ``pgdbpool.testing``."""


class BinariesNotFound(ClusterError):
    """No PostgreSQL programs to run: none installed, or not where we were told to look."""


class ServerStartError(ClusterError):
    """A server ended, or did not accept connections in time; the message ends with the tail of its log."""


class PortTaken(ServerStartError):
    """Another program took the server's port first; the cluster answers by choosing other ports."""


class ClusterTimeout(ClusterError, TimeoutError):
    """Something that was waited for did not happen within its limit."""
