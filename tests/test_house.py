"""The house rules that a parser can check: layers, docstrings, lengths, names."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lynx_video"
MODULES = sorted(SOURCE.rglob("*.py"))
# Higher may import lower; the longest name that fits counts. Neighbours on a level do not import each other.
LAYERS = {
    "errors": 0, "types": 0, "config": 1, "draft": 1, "flow": 1,
    "adapters": 2, "face": 2, "media": 2, "runtime": 2, "safety": 2, "assets": 2, "hub": 2, "shards": 2, "pool": 2, "work": 2,
    "nano": 3, "download": 3,
    "nano.recipe": 4, "pipeline": 4,
    "training": 5, "evaluation": 5, "bench": 5,
    "presets": 6,
    "studio": 7,
    "batch": 8, "server": 8, "ui": 8,
    "cli": 9,
    "__main__": 10, "": 10,
}  # fmt: skip
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "manager", "misc"}


def name_of(file):
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def layer_of(module):
    parts = module.split(".")
    return next(name for i in range(len(parts), -1, -1) if (name := ".".join(parts[:i])) in LAYERS)


def imports(file):
    """(line, module) of every import of our own, but for those that only types need."""
    tree = ast.parse(file.read_text())
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            if node.module == "lynx_video":
                names = [f"lynx_video.{alias.name}" for alias in node.names if alias.name != "__version__"]
            else:
                names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("lynx_video.") and id(node) not in typing:
                yield node.lineno, name.removeprefix("lynx_video.")


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_module(file):
    text, module = file.read_text(), name_of(file)
    assert ast.get_docstring(ast.parse(text)), "a module says what it is"
    assert text.count("\n") <= 400, "a module stays under 400 lines"
    assert not set(module.split(".")) & FORBIDDEN_NAMES, "a module's name says what is in it"
    if module == "":
        return  # the package offers names from every layer, lazily
    mine = layer_of(module)
    for line, other in imports(file):
        theirs = layer_of(other)
        assert theirs == mine or LAYERS[theirs] < LAYERS[mine], (
            f"{file}:{line}: {mine or 'the package'} imports {theirs}, which is not below it"
        )
