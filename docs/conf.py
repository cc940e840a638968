"""The documentation site: the pages of this folder, pages from elsewhere in the repository, and the notebooks.

    python -m pip install -e ".[docs]"
    python -m sphinx -W docs site

Notebooks are kept without outputs. Those that a test run has left in `learn/`, with outputs, are shown as they are;
others are run, in their short form.
"""

import base64
import os
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from nbclient import NotebookClient

import rws_jax

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
URL = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
LEARN = DOCS / "learn"


def run_notebooks(app, config):
    """Lay notebooks with their outputs beside the pages, where a test run has not, and the last picture of each."""
    os.environ.setdefault("RWS_JAX_CI", "1")  # their short form
    LEARN.mkdir(exist_ok=True)
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        shown = LEARN / path.name
        if not shown.exists() or shown.stat().st_mtime < path.stat().st_mtime:
            notebook = nbformat.read(path, as_version=4)
            NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
            nbformat.write(notebook, shown)
        outputs = [output for cell in nbformat.read(shown, as_version=4).cells for output in cell.get("outputs", [])]
        pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        if not pictures:
            raise ValueError(
                f"The card of {path.name} shows its last picture, and it has none: remove {shown} to run it again."
            )
        shown.with_suffix(".png").write_bytes(base64.b64decode(pictures[-1]))


def cards():
    """A card for each notebook: its title, the first paragraph of its text, and its picture."""
    grid = ["::::{grid} 1 2 2 2", ":gutter: 3", ""]
    for source in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        path = LEARN / source.name
        _, title, text, *_ = nbformat.read(path, as_version=4).cells[0].source.split("\n\n")
        title = title.removeprefix("# ")
        grid += [f":::{{grid-item-card}} {title}", f":link: learn/{path.stem}", ":link-type: doc"]
        grid += [f":img-bottom: learn/{path.stem}.png", f":img-alt: {title}"]
        grid += [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text), ":::"]  # the whole card is one link
    return "\n".join([*grid, "::::"])


project = "rws_jax"
author = "The rws_jax authors"
copyright = author
version = release = rws_jax.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["figures", "conftest.py"]

html_theme = "sphinx_book_theme"
html_title = "rws_jax"
html_static_path = ["style"]
html_css_files = ["site.css"]
html_theme_options = {
    "repository_url": URL,
    "use_repository_button": True,
    "use_issues_button": True,
    "path_to_docs": "docs",
    "show_toc_level": 2,
    "show_navbar_depth": 1,
}

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes, which types do not
autodoc_class_signature = "separated"
add_module_names = False
default_role = "code"
napoleon_use_rtype = False
napoleon_use_ivar = True
trim_doctest_flags = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Pages whose text is elsewhere in the repository, where readers of it expect them.
ELSEWHERE = {
    "benchmarks": "benchmarks/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "tests": "tests/README.md",
}


def setup(app):
    """Bring in what is kept elsewhere."""
    app.connect("config-inited", run_notebooks)
    app.connect("source-read", _read)
    app.connect("autodoc-process-signature", _signature)


def _signature(app, what, name, obj, options, signature, returns):
    """The default optimizer, a pair of functions, as one writes it."""
    pair = r"\(<function chain\.<locals>\.init_fn>, <function chain\.<locals>\.update_fn>\)"
    return signature and re.sub(pair, "optax.adam(1e-3)", signature), returns


def _read(app, name, source):
    """A page's text, with links that lead to pages of the site; the first page begins as the README does."""
    page = DOCS / f"{name}.md"
    if name in ELSEWHERE:
        source[0] = _linked(REPOSITORY / ELSEWHERE[name])
    elif page.exists():  # it is no notebook
        source[0] = _linked(page)
    if name == "gallery":
        source[0] += f"\n{cards()}\n"
    if name == "index":
        source[0] = _linked(REPOSITORY / "README.md").partition("## Documentation")[0] + source[0]


def _linked(path):
    return re.sub(r"\]\(([^)\s]+)\)", lambda match: f"]({_link(match[1], path.parent)})", path.read_text())


def _link(target, folder):
    """Where a link of a file of the repository leads on the site."""
    file, _, anchor = target.partition("#")
    if urlsplit(target).scheme or not file:
        return target
    path = (folder / file).resolve(strict=True)
    anchor = anchor and f"#{anchor}"
    for name, original in ELSEWHERE.items():
        if path == REPOSITORY / original:
            return f"{name}.md{anchor}"
    if path.is_relative_to(DOCS):
        return f"{path.relative_to(DOCS)}{anchor}"
    if path.is_relative_to(REPOSITORY / "notebooks"):
        return f"learn/{path.name}"
    return f"{URL}/blob/main/{path.relative_to(REPOSITORY)}{anchor}"
