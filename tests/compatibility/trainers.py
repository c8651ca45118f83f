"""What the scripts beside it share, which read with a fetched trainer's own code what `fix` writes
for it. They are run by hand, as no trainer of theirs is on PyPI.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file, save_file

PACK = Path(__file__).parents[2]
RANK, ALPHA = 4, 8  # not alike: a strength that is lost shows
FUTURE = "from __future__ import annotations\n"  # a function's types need no imports then


def source_of(clone: str, revision: str, path: str) -> str:
    """The text of a file in the clone, a git directory."""
    command = ["git", "--git-dir", clone, "show", f"{revision}:{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def function_of(clone: str, revision: str, path: str, name: str, room: dict, owner: str = ""):
    """The function of that name (of the class `owner`) as it stands in the clone's file; `room`
    has what it uses of the file's imports.
    """
    tree = ast.parse(source_of(clone, revision, path))
    if owner:
        tree = next(
            node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner
        )
    node = next(
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name
    )
    exec(compile(ast.parse(FUTURE + ast.unparse(node)), path, "exec"), room)
    return room[name]


def module_of(clone: str, revision: str, path: str) -> ModuleType:
    """A file of the clone, imported alone, without the packages that it stands in."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, Path(path).name)
        file.write_text(source_of(clone, revision, path), "utf-8")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers in blocks, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(part.isdigit() for part in name.split("."))
    }


def pairs(layers: dict[str, torch.nn.Linear], ranks=lambda name: RANK) -> dict[str, tuple]:
    """(down, up) for each layer, at random."""
    return {
        name: (
            torch.randn(ranks(name), layer.in_features),
            torch.randn(layer.out_features, ranks(name)),
        )
        for name, layer in layers.items()
    }


def by_peft(factors: dict[str, tuple], component: str) -> tuple[dict, dict]:
    """(tensors, metadata) as diffusers saves such a LoRA of lora_alpha ALPHA."""
    tensors = {}
    for name, (down, up) in factors.items():
        tensors[f"{component}.{name}.lora_A.weight"] = down
        tensors[f"{component}.{name}.lora_B.weight"] = up
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
    packed = {f"{component}.{name}": value for name, value in settings.items()}
    return tensors, {"lora_adapter_metadata": json.dumps(packed)}


def fixed(tensors: dict, metadata: dict | None, dialect: str) -> dict[str, torch.Tensor]:
    """What `fix --to` writes of such a file; the file itself where it is left as it is."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "lora.safetensors"), Path(folder, "fixed.safetensors")
        save_file(tensors, source, metadata)
        command = [sys.executable, str(PACK / "cli.py"), "fix", source, "-o", target]
        done = subprocess.run([*command, "--to", dialect], capture_output=True, text=True)
        print(done.stdout, done.stderr, sep="", end="", file=sys.stderr, flush=True)
        done.check_returncode()
        return load_file(target if target.exists() else source)


def difference(
    read: dict[str, tuple], meant: dict[str, tuple], scale: float | None = None
) -> float:
    """The largest difference of what the changes make of a few random inputs, relative to the
    largest that is meant: whole changes of the published sizes would take minutes.

    read: module -> (down, up, scale). meant: module -> (down, up), of lora_alpha ALPHA if no
    `scale` is given.
    """
    worst = 0.0
    for name, (down, up) in meant.items():
        inputs = torch.randn(down.shape[1], 3)
        wanted = up @ (down @ inputs) * (ALPHA / len(down) if scale is None else scale)
        found_down, found_up, found_scale = read[name]
        found = found_up @ (found_down @ inputs) * found_scale
        worst = max(worst, ((found - wanted).abs().max() / wanted.abs().max()).item())
        if found.isnan().any():
            return float("nan")
    return worst
