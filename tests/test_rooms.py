"""Which room imports which, and that adapter kinds are known in theirs alone."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from lora_locksmith.adapters.registry import kinds
from lora_locksmith.key_maps.dialect import FOLDER, read_dialect

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("adapters", "key_maps", "lora", "nodes")  # each may import those before it
ALLOWED = {"nodes": ROOMS, "commands": ("adapters", "key_maps", "lora", "commands")} | {
    room: ROOMS[: place + 1] for place, room in enumerate(ROOMS[:-1])
}
PLAIN = {"key_maps.errors"}  # the base class of all errors, which imports nothing
NEEDS_TORCH = {"tensors.py", "products.py", "rotations.py"}  # imported when first used
SHARED = {"diff_b", "w_norm", "b_norm", "set_weight", "up_bias"}  # roles of differences and biases, which any writer may have
WORDS = {"lora", "diff", "norm", "set"}  # names of kinds that are also roles, or words for people


def modules(room):
    return sorted((ROOT / room).rglob("*.py"))


def imports(path):
    """(room.module, imported with the file) of every relative import, and the names of absolute ones."""
    tree = ast.parse(path.read_text("utf-8"))
    package = path.relative_to(ROOT).parts[:-1]
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            yield ".".join((*base, *((node.module or "").split(".") if node.module else ()))), id(node) in at_once
        elif isinstance(node, ast.ImportFrom):
            yield node.module, id(node) in at_once
        elif isinstance(node, ast.Import):
            yield from ((name.name, id(node) in at_once) for name in node.names)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_those_below_it(room):
    for path in modules(room):
        for name, _ in imports(path):
            first = name.partition(".")[0]
            assert first not in {*ROOMS, "commands"} or first in ALLOWED[room] or name in PLAIN, f"{path.relative_to(ROOT)} imports {name}"


def test_the_kinds_import_no_torch_with_their_file():
    for path in [*modules("adapters"), *modules("key_maps")]:
        needed = {name.partition(".")[0] for name, at_once in imports(path) if at_once}
        assert path.name in NEEDS_TORCH or not needed & {"torch", "numpy", "safetensors", "comfy"}, path


def texts(path):
    """The strings of a module, without its docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare
    ]


@pytest.mark.parametrize("room", ["key_maps", "lora", "nodes", "commands"])
def test_no_kind_is_named_outside_its_module(room):
    names = {kind.name for kind in kinds()} - WORDS
    own = {role for kind in kinds() for need in kind.needs for role in need if "_" in role} - SHARED
    for path in modules(room):
        found = {text for text in texts(path) if text in names | own}
        assert not found, f"{path.relative_to(ROOT)} names {found}"


OURS = {"comfyui", "ComfyUI", "lycoris", "peft", "diffusers", "kohya"}  # the host, and forms that files are written in
GENERAL = {"ss_network_module", "ss_base_model_version", "lora_adapter_metadata", "locksmith.dialect"}  # metadata of several trainers


@cache
def trainers():
    """By what records know trainers: their names, their titles, the metadata that give them away."""
    records = [read_dialect(path) for path in sorted(FOLDER.glob("*.record"))]
    titles = {record.title.split(" (")[0] for record in records}
    keys = {entry.partition("=")[0] for record in records for entry in record.metadata}
    return ({record.name for record in records} | titles | keys) - OURS - GENERAL


def test_records_give_names_to_look_for():
    assert {"OneTrainer", "ai_toolkit", "ot_branch", "lycoris_config", "software"} <= trainers()


@pytest.mark.parametrize("room", ["adapters", "key_maps", "lora", "nodes", "commands"])
def test_no_trainer_is_named_outside_its_record_and_the_modules_of_its_own_kinds(room):
    for path in modules(room):
        found = trainers() & set(texts(path))
        assert not found or path.parent.name == "kinds", f"{path.relative_to(ROOT)} names {found}"
