"""Configuration of the documentation's builder."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

# Notebooks live beside the package, with their outputs; Sphinx reads only what is below its own folder.
shutil.rmtree(HERE / "tutorials", ignore_errors=True)
shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials", ignore=shutil.ignore_patterns(".*"))

info = metadata("cellxpert")
project = info["Name"]
author = info["Author"]
copyright = f"2026, {author}"
version = release = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    *(path.stem for path in (HERE / "extensions").glob("*.py")),
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "generated/README*"]
source_suffix = {".rst": "restructuredtext", ".ipynb": "myst-nb", ".md": "myst-nb"}  # autosummary takes the first
templates_path = ["_templates"]
default_role = "literal"

autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_include_init_with_doc = False
napoleon_custom_sections = [("Writes", "returns_style")]
always_use_bars_union = True
typehints_defaults = "braces"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make tutorials` executes them

# Links into other projects' documentation need their inventories from the internet: only the hosted build asks for them.
# Elsewhere names outside cellxpert are not checked; those inside always are.
online = os.environ.get("READTHEDOCS") == "True"
intersphinx_mapping = (
    {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "mudata": ("https://mudata.readthedocs.io/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }
    if online
    else {}
)
nitpicky = True
nitpick_ignore_regex = [] if online else [(r"py:.*", r"(?!cellxpert).*")]

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_theme_options = {
    "repository_url": "https://github.com/cellxpert/cellxpert",
    "repository_branch": "main",
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_issues_button": True,
}
