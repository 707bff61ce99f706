"""Sphinx: the pages are MyST, the API reference is made from the docstrings as they are written."""

from importlib.metadata import version as installed_version

project = "distillation-laws"
version = release = installed_version("distillation-laws")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build", "examples"]
templates_path = ["_templates"]
suppress_warnings = ["myst.xref_missing"]  # anchors inside README that only its own page has

html_theme = "furo"
html_title = project

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autosummary_generate = True


def as_written(app, what, name, obj, options, lines):
    """Docstrings hold formulas laid out in columns, no markup: they are shown as they stand."""
    if any(lines):
        lines[:] = ["::", "", *(f"   {line}" for line in lines), ""]


def setup(app):
    app.connect("autodoc-process-docstring", as_written)
