"""What libpq is told: the connection parameters of one endpoint for one group.

Session settings (`query_timeout`, `session_tmp_buffer`) normally travel in the startup packet, as
`options='-c statement_timeout=5000'`: no round trip, and a RESET goes back to them. Some poolers between the
pool and the server refuse such options; for them there is `session_settings`, to be SET after the connect.
"""

from __future__ import annotations

import re

from pgdbpool.config.environment import Refused, libpq_choice
from pgdbpool.config.secret import Secret
from pgdbpool.config.settings import EndpointSettings, GroupSettings

__all__ = ["conninfo", "session_settings"]


def session_settings(endpoint: EndpointSettings, group: GroupSettings) -> dict[str, str]:
    """The server settings a session of this group wants, the group's own before the endpoint's.

    For example `{"statement_timeout": "5000", "temp_buffers": "128MB"}`. What is not configured is not there.
    """
    settings = {}
    query_timeout = _first(group.query_timeout, endpoint.query_timeout)
    if query_timeout is not None:
        settings["statement_timeout"] = str(query_timeout)
    tmp_buffer = _first(group.session_tmp_buffer, endpoint.session_tmp_buffer)
    if tmp_buffer is not None:
        settings["temp_buffers"] = f"{tmp_buffer}MB"
    return settings


def conninfo(
    endpoint: EndpointSettings,
    group: GroupSettings,
    password: Secret | str | None,
    *,
    startup_options: bool = True,
) -> dict[str, str | int | Secret]:
    """libpq's keywords for a connection of `group` to `endpoint`.

    `password` is given apart, since the configured one may be a callable, which only the caller can ask in
    time; None leaves it to libpq's passfile and environment. Without `startup_options` the `session_settings`
    are left out, for poolers that refuse them. `connect_timeout` is not there: the caller bounds the time.
    """
    info: dict[str, str | int | Secret] = {"host": endpoint.host, "port": endpoint.port}
    hidden = Secret(password) if isinstance(password, str) else password
    login = {"dbname": endpoint.name, "user": endpoint.user, "password": hidden}
    info.update({key: value for key, value in login.items() if value is not None})
    if endpoint.ssl is not None:  # else libpq's choice counts, which may be stronger than any default of ours
        info["sslmode"] = endpoint.ssl
    # The pool chooses by role. PGTARGETSESSIONATTRS in the environment must not choose as well.
    info["target_session_attrs"] = "any"
    info["hostaddr"] = ""  # nor must PGHOSTADDR lead to another server than `host`, and all endpoints to the same
    info["fallback_application_name"] = f"pgdbpool:{group.name}"
    if not endpoint.is_socket:
        info.update(_tcp(endpoint))
    info.update(endpoint.params)
    if startup_options and (own := session_settings(endpoint, group)):
        info["options"] = _merge_options(_users_options(endpoint), own)
    return info


def _users_options(endpoint: EndpointSettings) -> str:
    """Those that libpq would send without ours: of `params`, else of PGOPTIONS or a service."""
    options = endpoint.params.get("options")
    if isinstance(options, str):
        return options
    try:
        return libpq_choice(endpoint.params).values.get("options", "")
    except Refused:  # the connect will say so
        return ""


def _tcp(endpoint: EndpointSettings) -> dict[str, int]:
    if not endpoint.keepalives:
        return {"keepalives": 0, "tcp_user_timeout": endpoint.tcp_user_timeout}
    return {
        "keepalives": 1,
        "keepalives_idle": endpoint.keepalives_idle,
        "keepalives_interval": endpoint.keepalives_interval,
        "keepalives_count": endpoint.keepalives_count,
        "tcp_user_timeout": endpoint.tcp_user_timeout,
    }


def _merge_options(users: str, own: dict[str, str]) -> str:
    """The user's startup options, then ours: the server takes the last word."""
    users = _without_lone_backslash(users)
    ours = " ".join(f"-c {name}={_escape(value)}" for name, value in own.items())
    return f"{users} {ours}" if users else ours


def _without_lone_backslash(text: str) -> str:
    """The server ignores a backslash that escapes nothing; before a space of ours it would escape that."""
    backslashes = len(text) - len(text.rstrip("\\"))
    return text[:-1] if backslashes % 2 else text


def _escape(value: str) -> str:
    """The server splits options at blanks; a backslash takes the next character as it is."""
    return re.sub(r"([\\\s])", r"\\\1", value)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
