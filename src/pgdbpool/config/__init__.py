"""What a user writes -> frozen, validated settings.

The way through this package: `load`, `load_toml` and `load_url` take the three forms that a configuration can
have. All three end in `check.py`, which looks at every key before anything is opened and reports all mistakes
at once; `keys.py` says what each key accepts. `settings.py` holds what comes out, and `libpq.py` turns one
endpoint and one group into connection parameters. `typed.py` has the keys for editors and type checkers.

No I/O happens here except reading the TOML file.
"""

from pgdbpool.config.check import Judged, judged, load
from pgdbpool.config.libpq import conninfo, session_settings
from pgdbpool.config.secret import Secret
from pgdbpool.config.settings import EndpointSettings, GroupSettings, MonitorSettings, Settings, StatusSettings
from pgdbpool.config.toml import judged_toml, load_toml
from pgdbpool.config.typed import ConfigDict, EndpointDict, GroupDict, MonitorDict, StatusDict
from pgdbpool.config.url import judged_url, load_url

__all__ = [
    "ConfigDict",
    "EndpointDict",
    "EndpointSettings",
    "GroupDict",
    "GroupSettings",
    "Judged",
    "MonitorDict",
    "MonitorSettings",
    "Secret",
    "Settings",
    "StatusDict",
    "StatusSettings",
    "conninfo",
    "judged",
    "judged_toml",
    "judged_url",
    "load",
    "load_toml",
    "load_url",
    "session_settings",
]
