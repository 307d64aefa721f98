"""Functions that take tensors say their shapes, in the letters of their module's legend."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llava"
SHAPE = re.compile(r"\((\w+(\([\w ]+\))?|\.\.\.|…)( [*+] \w+)?(, ?[\w(). *+]+)*,?\)")


def functions_of_tensors() -> list[tuple[str, ast.FunctionDef]]:
    """Every public function that takes a tensor, with where it stands."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                annotations = [
                    ast.unparse(argument.annotation) for argument in node.args.args if argument.annotation
                ]
                # A dictionary of weights has no shape of its own.
                if any(re.search(r"(?<!str, )\bTensor\b", annotation) for annotation in annotations):
                    found.append((f"{path.relative_to(PACKAGE)}:{node.name}", node))
    return found


@pytest.mark.parametrize("function", [pytest.param(node, id=name) for name, node in functions_of_tensors()])
def test_a_function_of_tensors_says_their_shapes(function):
    assert SHAPE.search(ast.get_docstring(function) or ""), "no shape such as (B, N) in the docstring"
