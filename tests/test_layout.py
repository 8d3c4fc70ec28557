"""The layout that CONTRIBUTING.md draws holds: imports go down, files are small."""

import ast
from pathlib import Path

import networkx as nx
import pytest

from tests.conftest import ROOT

PACKAGE = "dresnet_jax"
# From the bottom; folders of one layer do not import each other.
LAYERS = (
    (),  # Files of the package's own folder.
    ("connections", "data"),
    ("models",),
    ("training",),
    ("figures", "costs", "structure"),
    ("comparison", "inference"),
    ("commands",),
)
FILES = sorted(Path(ROOT, PACKAGE).rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES, MOST_COMMAND_LINES = 400, 60, 100
# A list of all fields with their comments.
LISTS = ("get_config",)


def _module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


def _imports(path):
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def _layer(module):
    folder = module.split(".")[1] if module.count(".") > 1 else None
    return next(i for i, names in enumerate(LAYERS) if folder in names or not folder)


def _folder(module):
    return module.split(".")[1] if module.count(".") > 1 else ""


def _functions(module):
    """The name and the length of each function, without its docstring."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            lines = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
            yield node.name, lines


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    for name in _imports(MODULES[module]):
        is_own = _folder(name) == _folder(module)
        assert is_own or _layer(name) < _layer(module), f"{module} imports {name}"


def test_no_two_modules_import_each_other():
    graph = nx.DiGraph(
        (module, name) for module, path in MODULES.items() for name in _imports(path)
    )
    assert nx.is_directed_acyclic_graph(graph), nx.find_cycle(graph)


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_small(module):
    text = MODULES[module].read_text()
    assert text.count("\n") <= MOST_LINES
    for name, lines in _functions(module):
        assert name in LISTS or lines <= MOST_FUNCTION_LINES, f"{name}: {lines} lines"


@pytest.mark.parametrize("module", [name for name in MODULES if ".commands." in name])
def test_commands_are_thin(module):
    """Without their help and their flags."""
    if "command = cli.Command(" in MODULES[module].read_text():
        assert sum(lines for _, lines in _functions(module)) <= MOST_COMMAND_LINES
