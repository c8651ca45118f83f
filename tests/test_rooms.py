"""Which room imports which, and that adapter kinds are known in theirs alone."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from lora_locksmith.adapters.registry import kinds
from lora_locksmith.key_maps.dialect import FOLDER, read_dialect

ROOT = Path(__file__).resolve().parents[1]
# Each room imports itself and what stands before it in its line; the rest of the pack is not for
# it.
BELOW = {
    "files": (),
    "adapters": ("files",),
    "key_maps": ("files", "adapters"),
    "planning": ("files", "adapters", "key_maps"),
    "identify": ("files", "adapters", "key_maps", "planning"),
    "report": ("files", "adapters", "key_maps", "planning", "identify"),
    "lora": ("files", "adapters", "key_maps", "planning", "identify", "report"),
}
BELOW |= {room: tuple(BELOW) for room in ("nodes", "commands")}
PLAIN = ("errors", "messages")  # modules for all rooms, which import none of them
TORCH_FREE = ("files", "adapters", "key_maps", "planning", "identify", "report")
NEEDS_TORCH = {"tensors.py", "products.py", "rotations.py"}  # imported when first used
SHARED = {
    "diff_b",
    "w_norm",
    "b_norm",
    "set_weight",
    "up_bias",
}  # roles of differences and biases, which any writer may have
WORDS = {"lora", "diff", "norm", "set"}  # names of kinds that are also roles, or words for people


def modules(room):
    return sorted((ROOT / room).rglob("*.py"))


def is_module(package, name):
    return (ROOT.joinpath(*package.split(".")) / f"{name}.py").exists()


def imports(path):
    """(room.module, imported with the file) of every relative import, and the names of absolute
    ones.
    """
    tree = ast.parse(path.read_text("utf-8"))
    package = path.relative_to(ROOT).parts[:-1]
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            place = ".".join(part for part in base if part)
            submodules = [name.name for name in node.names if is_module(place, name.name)]
            yield from ((f"{place}.{name}".strip("."), id(node) in at_once) for name in submodules)
            if len(submodules) < len(node.names):
                yield place, id(node) in at_once
        elif isinstance(node, ast.ImportFrom):
            yield node.module, id(node) in at_once
        elif isinstance(node, ast.Import):
            yield from ((name.name, id(node) in at_once) for name in node.names)


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_those_below_it(room):
    allowed = {room, *PLAIN, *BELOW[room]}
    for path in modules(room):
        for name, _ in imports(path):
            first = name.partition(".")[0]
            assert first not in BELOW or first in allowed, f"{path.relative_to(ROOT)}: {name}"


def test_every_room_has_its_place():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert rooms == set(BELOW)


def test_no_modules_import_each_other_in_a_circle():
    """Of what is imported with the file; what a function imports is for type hints or late."""
    known = {dotted(path): path for room in BELOW for path in modules(room)}
    after: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        after[name] = {target for target, at_once in imports(path) if at_once} & set(known)
    while after:
        free = {name for name, needs in after.items() if not needs & set(after)}
        assert free, f"a circle among {sorted(after)}"
        after = {name: needs for name, needs in after.items() if name not in free}


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# What reaches other machines. The pack inside ComfyUI never does; aiohttp is what the host serves
# its routes with.
NETWORK = {
    "dask", "distributed", "fsspec", "ftplib", "http", "httpx", "huggingface_hub", "requests",
    "smtplib", "socket", "ssl", "telnetlib", "urllib3", "xmlrpc",
}  # fmt: skip
OF_COMMANDS = {"commands.remote", "commands.remote_folder", "commands.engines"}


def reaches(name):
    return name.partition(".")[0] in NETWORK or name.startswith("urllib.request")


def test_only_commands_reach_other_machines_and_import_what_does_when_it_is_used():
    late = set()
    for path in [*ROOT.glob("*.py"), *(path for room in BELOW for path in modules(room))]:
        for name, at_once in imports(path):
            if reaches(name) or (name.partition(".")[0] == "aiohttp" and "nodes" not in path.parts):
                assert dotted(path) in OF_COMMANDS and not at_once, f"{path}: {name}"
                late.add(name.partition(".")[0])
    assert late == {"aiohttp", "dask", "distributed", "fsspec"}


def test_what_reaches_other_machines_is_imported_by_commands_alone():
    for path in [*ROOT.glob("*.py"), *(path for room in BELOW for path in modules(room))]:
        found = {name for name, _ in imports(path)} & OF_COMMANDS
        assert not found or path.parent.name == "commands", f"{path}: {found}"
    nodes = {name for path in modules("nodes") for name, _ in imports(path)}
    assert not any(name.partition(".")[0] == "commands" for name in nodes)


def test_the_kinds_import_no_torch_with_their_file():
    for path in [path for room in TORCH_FREE for path in modules(room)]:
        needed = {name.partition(".")[0] for name, at_once in imports(path) if at_once}
        assert path.name in NEEDS_TORCH or not needed & {
            "torch",
            "numpy",
            "safetensors",
            "comfy",
        }, path


def texts(path):
    """The strings of a module, without its docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare
    ]


@pytest.mark.parametrize("room", [room for room in BELOW if room != "adapters"])
def test_no_kind_is_named_outside_its_module(room):
    names = {kind.name for kind in kinds()} - WORDS
    own = {role for kind in kinds() for need in kind.needs for role in need if "_" in role} - SHARED
    for path in modules(room):
        found = {text for text in texts(path) if text in names | own}
        assert not found, f"{path.relative_to(ROOT)} names {found}"


OURS = {
    "comfyui",
    "ComfyUI",
    "lycoris",
    "peft",
    "diffusers",
    "kohya",
}  # the host, and forms that files are written in
GENERAL = {
    "ss_network_module",
    "ss_base_model_version",
    "lora_adapter_metadata",
    "locksmith.dialect",
}  # metadata of several trainers


@cache
def trainers():
    """By what records know trainers: their names, their titles, the metadata that
    give them away.
    """
    records = [read_dialect(path) for path in sorted(FOLDER.glob("*.record"))]
    titles = {record.title.split(" (")[0] for record in records}
    keys = {entry.partition("=")[0] for record in records for entry in record.metadata}
    return ({record.name for record in records} | titles | keys) - OURS - GENERAL


def test_records_give_names_to_look_for():
    assert {"OneTrainer", "ai_toolkit", "ot_branch", "lycoris_config", "software"} <= trainers()


@pytest.mark.parametrize("room", BELOW)
def test_no_trainer_is_named_outside_its_record_and_the_modules_of_its_own_kinds(room):
    for path in modules(room):
        found = trainers() & set(texts(path))
        assert not found or path.parent.name == "kinds", f"{path.relative_to(ROOT)} names {found}"
