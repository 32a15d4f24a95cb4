"""How to connect: what nodes, proxies and impostors have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True)
class Login:
    """Who the tests connect as, and to which database."""

    user: str = "app"
    database: str = "app"
    password: str | None = field(default=None, repr=False)

    def url(self, *addresses: "Address") -> str:
        """A URL that names all these addresses."""
        password = "" if self.password is None else ":" + quote(self.password, safe="")
        hosts = ",".join(f"{address.host}:{address.port}" for address in addresses)
        return f"postgresql://{quote(self.user, safe='')}{password}@{hosts}/{quote(self.database, safe='')}"


class Address(ABC):
    """Something that can be connected to at ``host`` and ``port``."""

    host: str
    login: Login

    @property
    @abstractmethod
    def port(self) -> int:
        """The TCP port."""

    @property
    def dsn(self) -> str:
        """A URL for the test user and database: ``postgresql://app@127.0.0.1:5432/app``."""
        return self.login.url(self)

    def conninfo(self, **parameters: object) -> str:
        """A libpq connection string for the test user and database; ``parameters`` are added."""
        values: dict[str, object] = {
            "host": self.host,
            "port": self.port,
            "dbname": self.login.database,
            "user": self.login.user,
            "password": self.login.password,
        } | parameters
        return " ".join(f"{key}={_quoted(value)}" for key, value in values.items() if value is not None)

    def endpoint(self, **more: Any) -> dict[str, Any]:
        """This address as an entry of ``config["db"]``; ``more`` is added: ``node.endpoint(priority=1)``."""
        entry: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "name": self.login.database,
            "user": self.login.user,
        }
        if self.login.password is not None:
            entry["pass"] = self.login.password
        return entry | more


def _quoted(value: object) -> str:
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
