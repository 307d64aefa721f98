"""Who may import whom: the model knows nothing of what is built on it, and no modules import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Packages and modules that stand on the model, and those that stand on the engine.
ABOVE_THE_MODEL = ("assistant", "bench", "data", "engine", "eval", "messages", "serve", "train")
ABOVE_THE_ENGINE = ("assistant", "serve", "eval", "train")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / "llava").rglob("*.py"))}


def imports(path: Path, everywhere: bool) -> Iterator[str]:
    """Names of the project's modules that a file imports, also inside functions if ``everywhere``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    yield inner
                elif node.module in MODULES:
                    yield node.module


@pytest.mark.parametrize(
    ("package", "above"), [("llava.model", ABOVE_THE_MODEL), ("llava.engine", ABOVE_THE_ENGINE)]
)
def test_a_package_knows_nothing_of_what_is_built_on_it(package, above):
    upward = [
        f"{name} imports {imported}"
        for name, path in MODULES.items()
        if name.startswith(package)
        for imported in imports(path, everywhere=True)
        if imported.split(".")[1] in above
    ]
    assert upward == []


def test_no_modules_import_each_other():
    graph = {name: set(imports(path, everywhere=False)) - {name} for name, path in MODULES.items()}
    # What imports nothing that is left is taken away; a circle stays.
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    circle = {name: sorted(imported & graph.keys()) for name, imported in graph.items()}
    assert circle == {}
