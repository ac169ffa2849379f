"""Imports go down: the layers of the package, checked transitively in fresh interpreters."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hpsearch

PACKAGE = Path(hpsearch.__file__).parent

# The lower the number, the lower the layer; the longest matching name counts. A file imports what is no higher than
# itself, or lies in its own folder; `test_no_circles` orders those of one layer.
LAYERS = {
    "errors": 0,
    "recipe": 0,
    "space": 0,
    "events": 0,
    "statistics": 0,
    "interrupt": 0,
    "mounts": 0,
    "kernels": 0,
    "settings": 1,
    "sections": 1,
    "relations": 1,
    "candidates": 1,
    "first": 1,
    "form": 1,
    "names": 1,
    "spec": 1,
    "models": 1,
    "data": 1,
    "train": 1,
    "train.program": 2,
    "catalogue": 2,
    "storage": 2,
    "search": 2,
    "artifacts": 2,
    "confusion": 2,
    "pictures": 2,
    "crashes": 2,
    "weights": 2,
    "sealed": 2,
    "trial": 3,
    "trying": 3,
    "training": 3,
    "reporting": 3,
    "stock": 3,
    "ends": 3,
    "patience": 3,
    "worker": 3,
    "processes": 3,
    "doctor": 3,
    "confirm": 3,
    "trained": 3,
    "final_test": 3,
    "claims": 3,
    "export": 3,
    "export_schema": 1,
    "model_card": 2,
    "exported": 3,
    "verify": 3,
    "scores": 0,
    "transfer": 3,
    "arms": 3,
    "report": 3,
    "web": 3,
    "launch": 3,
    "cli": 4,
    "__main__": 5,
}
JOIN = (
    "trial",
    "trying",
    "training",
    "reporting",
    "stock",
    "ends",
    "patience",
    "doctor",
    "worker",
    "trained",
    "final_test",
    "claims",
    "export",
    "exported",
    "verify",
    "transfer",
    "cli",
)
MAY_IMPORT_OPTUNA = ("storage", "search", "confirm", "arms", "model_card", "report", "web", *JOIN)
MAY_IMPORT_TORCH = ("kernels", "models", "data", "train", "weights", *JOIN)


def modules() -> list[str]:
    """Every module of the package, without the leading `hpsearch.`."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = (".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in files)
    return [name for name in names if name != "__init__"]


def layer(module: str) -> int:
    parts = module.removesuffix(".__init__").split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in LAYERS:
            return LAYERS[name]
    raise AssertionError(f"hpsearch/{module.replace('.', '/')}.py has no layer: add it to the table in this file")


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports anywhere in its text, functions included."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    known = set(modules())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: write the import out, from hpsearch on"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    own = {name.removeprefix("hpsearch.") for name in found if name.startswith("hpsearch.")}
    return {name for name in own if name in known} | {f"{name}.__init__" for name in own if f"{name}.__init__" in known}


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    for other in imported(module):
        same_folder = module.split(".", maxsplit=1)[0] == other.split(".")[0] and "." in module
        assert same_folder or layer(other) <= layer(module), (
            f"{module} (layer {layer(module)}) imports {other} (layer {layer(other)})"
        )


def test_no_circles() -> None:
    graph = {module: imported(module) - {module} for module in modules()}
    while graph:
        free = [module for module, needs in graph.items() if not needs & graph.keys()]
        assert free, f"these modules import each other in a circle: {sorted(graph)}"
        for module in free:
            del graph[module]


@pytest.mark.parametrize(
    ("library", "allowed"), [("optuna", MAY_IMPORT_OPTUNA), ("torch", MAY_IMPORT_TORCH)], ids=["optuna", "torch"]
)
def test_only_its_half_imports_a_library(library: str, allowed: tuple[str, ...]) -> None:
    others = [module for module in modules() if module.split(".")[0] not in allowed and module != "__main__"]
    loaded = _loaded_after_import(others)
    assert library not in loaded, f"one of {others} imports {library}"


def test_few_modules_join_both_halves() -> None:
    for module in modules():
        if module.split(".")[0] in (*JOIN, "__main__"):
            continue
        loaded = _loaded_after_import([module]) if module.split(".")[0] in MAY_IMPORT_OPTUNA else set()
        assert not {"optuna", "torch"} <= loaded, f"{module} imports both optuna and torch"


def test_help_imports_neither_half() -> None:
    program = "import sys\nfrom hpsearch.cli.main import main\ntry:\n main(['--help'])\nexcept SystemExit: pass\n"
    loaded = _run(program + "print(' '.join(sys.modules))").split()
    assert not {"torch", "optuna", "sqlalchemy", "pydantic", "rich"} & set(loaded)


def _loaded_after_import(names: list[str]) -> set[str]:
    lines = [f"import hpsearch.{name.removesuffix('.__init__')}" for name in names]
    program = "\n".join(["import sys", *lines, "print(' '.join(sys.modules))"])
    return set(_run(program).split())


def _run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
