"""Sphinx: `make docs` builds the manual. Nothing is fetched from the network."""

import sys
from pathlib import Path

import pgdbpool

project = "pgdbpool"
author = "the pgdbpool developers"
project_copyright = "the pgdbpool developers, MIT licence"
release = pgdbpool.__version__
version = ".".join(release.split(".")[:2])

sys.path.insert(0, str(Path(__file__).parent))  # sizing_table, deployment
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sizing_table", "deployment"]
napoleon_numpy_docstring = False  # "Raises:" is all that is used of it
exclude_patterns = ["_build", "_generated"]

# Docstrings write `name` for code.
default_role = "code"
highlight_language = "python"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False

# A reference to one of our own names must lead somewhere; what belongs to others is not looked up.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!pgdbpool\.).*")]
nitpick_ignore = [  # in signatures
    ("py:class", "pgdbpool.config.settings.Settings"),
    ("py:class", "pgdbpool.config.typed.ConfigDict"),
    ("py:class", "pgdbpool.config.settings.StatusSettings"),
    ("py:class", "pgdbpool.core.group.Group"),
    ("py:class", "pgdbpool.publish.alive.Identity"),
]

html_theme = "furo"
html_title = f"pgdbpool {release}"
html_show_sourcelink = False
