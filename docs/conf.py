"""Configuration of the documentation site; `make docs` builds it."""

import re
from importlib import metadata

project = "speechclip-plus"
author = "speechclip-plus developers"
release = metadata.version("speechclip-plus")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"speechclip-plus {release}"

myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository, which the site does not hold

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def markdown_to_rst(app, what, name, obj, options, lines):
    """Docstrings are Markdown, as transformers' are: turn code fences and `code` into what autodoc reads."""
    converted, is_code = [], False
    for line in lines:
        if line.strip().startswith("```"):
            is_code = not is_code
            indent = line[: len(line) - len(line.lstrip())]
            converted += ["", f"{indent}.. code-block:: python", ""] if is_code else [""]
        elif is_code:
            converted.append(f"    {line}")
        else:
            converted.append(
                re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line).replace("[``", "``").replace("``]", "``")
            )
    lines[:] = converted


def setup(app):
    """Convert docstrings before napoleon reads them."""
    app.connect("autodoc-process-docstring", markdown_to_rst, priority=100)
