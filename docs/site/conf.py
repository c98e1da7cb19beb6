"""Settings of the site, which sphinx makes of the Markdown pages as they lie in the repository, and of docstrings:

    sphinx-build -c docs/site . build/site

The source folder is the repository's root, so that links between pages are the same on the site and on a code host.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

project = "quark-onnx"
author = "the quark-onnx authors"
version = release = installed_version("quark-onnx")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",
    "configuration_fields",
    "signatures",
]
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "*/README.md", "docs/**"]
exclude_patterns = [".*", "build", "dist", "quark_onnx", "tests"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
highlight_language = "text"  # of blocks that are indented, which are tables and trees

smartquotes = False  # --option stays as it is written

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False

default_role = "py:obj"  # docstrings name things in single backticks; what is no object becomes code
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:class", r"(onnx|os|np)\..*|NDArray|Path|Figure|Any|Mapping|Sequence|Iterator|Callable"),  # of other packages
]
add_module_names = False
maximum_signature_line_length = 80
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style"), ("Keys", "params_style"), ("Members", "params_style")]

_LINK = re.compile(r"\]\(([^)#\s]+)\)")


def contents(index: str) -> str:
    """The site's table of contents: every page that docs/README.md links to, below the headings that it has there."""
    blocks = ["```{toctree}\n:hidden:\n\n/docs/README\n```\n"]
    for section in re.split(r"^## +", index, flags=re.MULTILINE):
        title, _, text = section.partition("\n")
        pages = [posixpath.normpath(f"/docs/{link}").rpartition(".")[0] for link in _LINK.findall(text)]
        caption = f":caption: {title}\n" if not title.startswith("#") else ""
        blocks.append(f"```{{toctree}}\n:hidden:\n{caption}\n" + "\n".join(pages) + "\n```\n")
    return "\n".join(blocks)


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Append what only the site needs: on a code host it would show as code."""
    if page == root_doc:
        index = (app.srcdir / "docs" / "README.md").read_text(encoding="utf-8")
        source[0] += "\n" + contents(index)
    elif page == "docs/decisions/README":
        source[0] += "\n```{toctree}\n:glob:\n\n0*\n```\n"


def add_index_page(app: Sphinx, error: Exception | None) -> None:
    """Web servers look for index.html, code hosts for README.md."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_index_page)
