"""Sphinx makes a site of these pages: `make docs`, then open outputs/docs/index.html."""

project = "segsweep"
author = "The segsweep authors"
extensions = ["myst_parser"]
root_doc = "index"
html_theme = "furo"
html_title = "segsweep"
exclude_patterns = ["conf.py"]
myst_heading_anchors = 3  # links to headings, as on the repository's pages
suppress_warnings = ["myst.xref_missing"]  # files beside docs/, which the repository's pages link to
