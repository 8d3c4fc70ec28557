"""The layout that CONTRIBUTING.md draws holds, and texts are in plain English."""

import ast
import re
from pathlib import Path

import networkx as nx

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


def test_imports_go_down():
    for module, path in MODULES.items():
        for name in _imports(path):
            is_own = _folder(name) == _folder(module)
            assert is_own or _layer(name) < _layer(module), f"{module} imports {name}"


def test_no_two_modules_import_each_other():
    graph = nx.DiGraph(
        (module, name) for module, path in MODULES.items() for name in _imports(path)
    )
    assert nx.is_directed_acyclic_graph(graph), nx.find_cycle(graph)


def test_files_and_functions_are_small():
    for module, path in MODULES.items():
        assert path.read_text().count("\n") <= MOST_LINES, module
        for name, lines in _functions(module):
            is_small = name in LISTS or lines <= MOST_FUNCTION_LINES
            assert is_small, f"{module}.{name}: {lines} lines"


def test_commands_are_thin():
    """Without their help and their flags."""
    for module, path in MODULES.items():
        if "command = cli.Command(" in path.read_text():
            lines = sum(lines for _, lines in _functions(module))
            assert lines <= MOST_COMMAND_LINES, f"{module}: {lines} lines"


# Of STYLE's words to avoid, those that mean nothing else.
DIALECT = re.compile(
    r"\banew\b|\b(goes|go|going) on\b|\bso (many|much)\b|\bbut for\b|\bbeside\b"
    r"|\broads?\b|points of a hundred|common rate|solidif|\bwants\b|a person's own"
    r"|\b[Oo]penings?\b|\btold of\b|\bsays of\b|\bone's own\b|\bnothing hid\b"
)
# Of its names to avoid, those that have no other meaning in code.
VAGUE = {"found", "wanted", "carried", "late", "told", "opening", "openings"}
VAGUE |= {"Wanted", "Answer", "Placed", "Carried"}
# A class of CIFAR-100, and the old name of a flag.
ALLOWED = (
    *("raccoon ray road rocket", "--roads", 'command.renamed("roads", "modes")'),
    *("connections.opening", "`opening`"),
)
TEXTS = [
    path
    for pattern in (
        *("dresnet_jax/**/*.py", "dresnet_jax/**/*.html", "dresnet_jax/**/*.md"),
        *("configs/**/*.py", "launch/*", "benchmarks/*", "docs/*.md", "*.md"),
    )
    for path in sorted(Path(ROOT).glob(pattern))
    if path.is_file()
]


def test_texts_are_plain_english():
    for path in TEXTS:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not any(words in line for words in ALLOWED):
                assert not DIALECT.search(line), f"{path}:{number}: {line.strip()}"


def test_names_say_what_they_hold():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "id", getattr(node, "arg", getattr(node, "name", "")))
            assert name not in VAGUE, f"{module}: {name}"


def test_public_functions_say_what_they_do():
    """Their docstrings begin with a verb; those of properties need not."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            decorators = " ".join(map(ast.unparse, node.decorator_list))
            docstring = ast.get_docstring(node)
            if docstring and "propert" not in decorators:
                verb = docstring.split()[0].rstrip(",.:")
                is_verb = re.fullmatch(r"[A-Z][a-z-]+s", verb)
                assert is_verb, f"{module}.{node.name}: {docstring}"
