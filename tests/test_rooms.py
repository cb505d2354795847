"""The packages of engine import each other in one direction only.

Imports inside functions and under TYPE_CHECKING count too.
"""

import ast
import subprocess
import sys
from pathlib import Path

from tests.helpers import PROJECT

# A package imports only from those in earlier tuples, and not from others in its own tuple.
LAYERS = (
    ("errors",), ("config", "system"), ("cli", "data"), ("training",), ("runs",), ("report",),
    ("sweeps",),
)  # fmt: skip
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
WITHOUT_TORCH = ("config", "cli", "errors")


def find_modules() -> dict[str, Path]:
    """Return the path of each module of the project, except tests, by dotted name."""
    found = {}
    for place in ("engine", "lars", "models", "schedulers", "scripts", "train.py", "val.py"):
        for path in sorted((PROJECT / place).rglob("*.py")) or [PROJECT / place]:
            name = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Return the modules of the project that a module imports."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            origin = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            targets = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            while target and target not in modules:
                target = target.rpartition(".")[0]
            found.add(target)
    # A package's __init__ may import the package's modules.
    return {t for t in found if t and t != name and not name.startswith(f"{t}.")}


MODULES = find_modules()
IMPORTS = {name: imports_of(name, path, MODULES) for name, path in MODULES.items()}


def package_of(name: str) -> str:
    return name.split(".")[1]


def test_no_package_imports_a_later_one():
    inside = {name: found for name, found in IMPORTS.items() if name.startswith("engine.")}
    back = [
        f"{name} imports {target}"
        for name, found in inside.items()
        for target in found
        if target in inside and package_of(target) != package_of(name)
        if LEVEL[package_of(target)] >= LEVEL[package_of(name)]
    ]
    assert len(inside) > 30 and not back


def test_libraries_import_no_engine_and_nothing_imports_a_command():
    for name, found in IMPORTS.items():
        if name.partition(".")[0] in ("lars", "models", "schedulers"):
            assert not [t for t in found if t.partition(".")[0] != name.partition(".")[0]], name
        # Searches launch the same job as train.py -m.
        allowed = {"train"} if name in ("scripts.tune", "scripts.critical") else set()
        if name.startswith("engine"):
            assert not [t for t in found if t.startswith("scripts")], name
        assert not found & {"train", "val"} - allowed, name


def test_no_import_cycle():
    def below(name: str) -> set[str]:
        seen: set[str] = set()
        pending = [*IMPORTS[name]]
        while pending:
            target = pending.pop()
            if target not in seen:
                seen.add(target)
                pending += IMPORTS[target]
        return seen

    assert not [name for name in MODULES if name in below(name)]


def test_engine_has_only_these_packages_and_modules():
    loose = {path.stem for path in (PROJECT / "engine").glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in (PROJECT / "engine").glob("*/__init__.py")}
    assert loose == {"errors", "cli"} and loose | folders == set(LEVEL)


def test_configuration_and_command_line_do_not_import_torch():
    early = [
        name for name in MODULES if name.startswith("engine.") and package_of(name) in WITHOUT_TORCH
    ]
    assert len(early) >= 6
    code = f"import sys, {', '.join(early)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
