"""Dependencies point one way: no top-level module imports one from a later layer (DESIGN 6)."""

from __future__ import annotations

import ast
from pathlib import Path

import pal_fast

ORDER = [
    {"constants", "_version", "warn", "autocast", "messages", "suspect_landmarks", "files", "image_files"},
    {"reference", "_checks"},
    {"options"},
    {"_extension", "_derivative", "ops", "kernels"},
    {"dispatch"},
    {"calls"},
    {"functional", "regions"},
    {"capture"},
    {"attribution", "nn"},
    {"inspection", "batch_checks", "preflight", "compiled"},
    {"engine"},
    {"loss_copies"},
    {"loss"},
    {"faces", "metrics", "visualize", "landmarks"},
    {"data"},
    {"training", "demo", "explain"},
    {"report"},
    {"benchmarks"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imports(path: Path) -> set[str]:
    """The top-level modules of pal_fast that a file imports, including lazy imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pal_fast":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("pal_fast.")}
    return found & set(RANK)


def test_no_module_imports_from_a_later_layer():
    root = Path(pal_fast.__file__).parent
    wrong = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts == ("__init__",):
            continue
        module = parts[0]
        assert module in RANK, f"{path}: add the module {module!r} to ORDER"
        wrong += [f"{module} ({path.name}) imports {other}" for other in imports(path) if RANK[other] > RANK[module]]
    assert not wrong, wrong


def test_the_reference_imports_nothing_but_constants():
    assert imports(Path(pal_fast.__file__).parent / "reference.py") <= {"constants"}
