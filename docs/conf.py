"""Sphinx configuration: MyST pages, API pages from docstrings, no network while building."""

from __future__ import annotations

import atoll

project = "Atoll"
author = "the Atoll contributors"
project_copyright = author
release = version = atoll.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Names of other libraries and of private type variables have no page here; an inventory of theirs would need
# the network. Everything called atoll.* must resolve; the schema's classes are the job file page, in code.
nitpick_ignore_regex = [
    ("py:.*", r"(?!atoll\.).*"),
    ("py:class", r"atoll\.job\.schema\..*"),
    ("py:(class|obj)", r"atoll\.(\w+\.)+_\w+"),
    # Two classes in signatures of other rooms, without pages of their own.
    ("py:class", r"atoll\.(models\.torch\.flat\.Bench|report\.markup\.Safe)"),
]

html_theme = "furo"
html_title = f"Atoll {release}"
html_copy_source = False
html_show_sphinx = False
