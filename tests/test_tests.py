"""Tests share code through `tests.helpers` and fixtures, and import no other test."""

import ast

import pytest

from tests.helpers import PROJECT


def imports_of_tests(source):
    """Yield the names that a source imports from test files or conftest.py."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if any(part.startswith("test_") or part == "conftest" for part in name.split(".")):
                yield name


@pytest.mark.parametrize(
    "line",
    ["import tests.lars.test_lars", "from tests.lars.test_lars import TABLE", "import conftest",
     "from tests.lars import test_lars", "from .test_lars import TABLE", "from . import conftest",
     "def f(): from tests.conftest import tree"],
)  # fmt: skip
def test_an_import_of_a_test_is_found(line):
    assert [*imports_of_tests(line)]


def test_no_test_is_imported():
    paths = [*(PROJECT / "tests").rglob("*.py")]
    found = {str(path): [*imports_of_tests(path.read_text())] for path in paths}
    assert len(found) > 50 and not {path: names for path, names in found.items() if names}
