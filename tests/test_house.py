"""How the package is built: imports go down, functions are short, an option is named in few files."""

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

import rws_jax
from rws_jax import options

ROOT = Path(rws_jax.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# A module may import from its own floor and from those further down.
FLOORS = [
    {"__init__", "__main__"},
    {"losses", "guides", "training", "posterior", "plots"},
    {"arguments"},
    {"options"},
    {"estimators"},
    {"execution"},
    {"programs"},
    {"checks"},
    {"core"},
]


def floor_of(parts):
    return next(number for number, floor in enumerate(FLOORS) if parts[0] in floor)


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_go_down(path):
    own = floor_of(path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(tree_of(path)):
        modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            parts = module.split(".")
            if parts[0] == "rws_jax" and len(parts) > 1:
                assert floor_of(parts[1:]) >= own, f"{path.name} imports {module}, which is further up"
            if module == "rws_jax" and isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert floor_of([alias.name]) >= own, f"{path.name} imports {alias.name}, which is further up"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_functions_and_files_are_short(path):
    """60 lines without the docstring, and 260."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 260
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            assert node.end_lineno - node.lineno + 1 - docstring <= 60, node.name


def names_in(path):
    """All identifiers of a file, and strings that are names."""
    for node in ast.walk(tree_of(path)):
        for field in ("id", "attr", "arg"):
            if hasattr(node, field):
                yield getattr(node, field)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("option", sorted(options.NAMES))
def test_an_option_is_named_in_eight_files_at_most(option):
    files = [name for name, path in zip(NAMES, FILES, strict=True) if option in names_in(path)]
    assert 1 <= len(files) <= 8, files


def test_the_names_of_options_are_those_of_all_signatures():
    """What is missing here would go to programs with **kwargs in silence."""
    functions = rws_jax.make_step, rws_jax.wake_theta_loss, rws_jax.wake_phi_loss, rws_jax.sleep_phi_loss
    kinds = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    taken = {p.name for f in functions for p in inspect.signature(f).parameters.values() if p.kind == kinds[0]}
    taken |= {p.name for p in inspect.signature(rws_jax.ReweightedWakeSleep).parameters.values() if p.kind in kinds}
    assert taken == options.NAMES, taken ^ options.NAMES


def test_only_what_is_exported_is_public():
    assert set(rws_jax.__all__) <= set(vars(rws_jax))
    for name in NAMES:
        module = "rws_jax." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if not name.endswith("__main__.py"):
            assert importlib.import_module(module).__doc__, f"{name} says what it is"
    assert dataclasses.is_dataclass(options.StepOptions)
