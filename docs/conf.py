"""Sphinx configuration: `make docs`."""

import larpanda

project = "larpanda"
author = "The larpanda developers"
release = larpanda.__version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"larpanda {release}"
exclude_patterns = ["_build", "results/*"]  # the latter is included in results.md
myst_heading_anchors = 3
