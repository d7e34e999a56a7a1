"""How the documentation is built: `make docs`."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.nodes import make_refnode

import deltaflow

project = "deltaflow"
author = "The deltaflow authors"
copyright = "the deltaflow authors"
release = version = deltaflow.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_templates", "**/.ipynb_checkpoints", "jupyter_execute"]

html_theme = "furo"
html_title = "deltaflow"
html_theme_options = {
    "source_repository": "https://github.com/deltaflow/deltaflow/",
    "source_branch": "main",
    "source_directory": "docs/",
}

# Tutorials run when they are built; what they print and draw is never stored.
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_traceback = True
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

templates_path = ["_templates"]
autosummary_generate = True
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False

# A name in single backticks is a reference where this documentation has it, and code elsewhere.
default_role = "py:obj"
nitpicky = True

PUBLIC = [
    "deltaflow",
    "deltaflow.flows",
    "deltaflow.encoders",
    "deltaflow.heads",
    "deltaflow.tasks",
]
"""The modules whose `__all__` is the public surface: each name needs an entry in the reference."""


def link_or_code(app: Sphinx, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Resolve a short name such as `TimeSplitter`, and show any other one as code.

    A reference written with its full name, into deltaflow, must resolve.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip("~.").removesuffix("()")
    short = target.rpartition(".")[-1] if target.startswith("deltaflow.") else target
    domain = env.get_domain("py")
    found = [
        (name, entry)
        for name, entry in domain.objects.items()
        if (name == target or name.endswith(f".{short}")) and not entry.aliased
    ]
    if found:
        name, entry = min(found, key=lambda pair: len(pair[0]))
        return make_refnode(
            app.builder, node["refdoc"], entry.docname, entry.node_id, content, name
        )
    if target.startswith("deltaflow.") and node["reftype"] == "obj":
        return None  # a dead link of a page: Sphinx warns, and the build fails
    return nodes.literal(content.astext(), content.astext())


def check_public_names(app: Sphinx, error: Exception | None) -> None:
    """Fail if a public name has no entry in the reference, or no docstring."""
    if error is not None or app.builder.name != "html":
        return
    documented = app.env.get_domain("py").objects
    problems = []
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            if name == "__version__":
                continue
            if not any(known.endswith(f".{name}") for known in documented):
                problems.append(f"{module_name}.{name} is not in the reference")
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isfunction(value)) and not value.__doc__:
                problems.append(f"{module_name}.{name} has no docstring")
    if problems:
        raise ExtensionError("undocumented public names:\n  " + "\n  ".join(problems))


def setup(app: Sphinx) -> None:
    """Connect the two checks."""
    app.connect("missing-reference", link_or_code)
    app.connect("build-finished", check_public_names)
