"""Imports point one way: whoever stands lower in this list knows nothing of what stands higher."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "milr"
ORDER = (
    {"drafts", "memory", "statistics", "threads", "version"},
    {"network"},
    {"settings", "hub", "imports", "disk", "reading", "pictures", "paths"},
    {"backbones"},
    {"registry"},
    {"critics"},
    {"searches"},
    {"lab"},
    {"benchmarks"},
    {"runs"},
    {"reports", "doctor"},
    {"serve"},
    {"cli"},
    {"__init__", "__main__"},
)
# The embedded world joins through the same doors as everyone else: these files are doors, and only open it.
DOORS = {f"critics/{name}.py" for name in ("scene", "scene_right", "scene_lite", "scene_noisy", "scene_blind")}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "milr":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("milr."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("milr."))


def level(module):
    return next((rank for rank, modules in enumerate(ORDER) if module in modules), None)


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_point_down(file):
    path = file.relative_to(SOURCE)
    own = path.parts[0].removesuffix(".py")
    assert level(own) is not None, f"{own} has no place in the order"
    for other in set(imported(file)) - {own}:
        if other == "lab" and path.as_posix() in DOORS:
            continue
        assert level(other) is not None, f"{path} imports milr.{other}, which has no place in the order"
        assert level(other) < level(own), f"{path} imports milr.{other}, which stands above it or beside it"
