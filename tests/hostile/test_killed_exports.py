"""Exports of PEFT are two files: a process is killed before every step of writing them, and PEFT
and we read what is left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import peft
import pytest
import torch
from lora_locksmith.files.header import PEFT_CONFIG
from lora_locksmith.lora.from_plan import spec_of
from lora_locksmith.lora.io.writer import PEFT_FILE
from lora_locksmith.report.inspection import inspect_file
from safetensors.torch import load_file, save_file
from test_writers import Forks

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="needs a POSIX system"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning"),
]
MODULES = [
    f"transformer_blocks.{block}.{layer}"
    for block in range(2)
    for layer in ("ff.net.0.proj", "ff_context.net.0.proj")
]
LAYER = MODULES[0]
RANK = 4
MAX_STEPS = 60


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    found = Forks(tmp_path_factory.mktemp("forks") / "output.txt")
    yield found
    found.server.stdin.close()
    found.server.wait(60)


def factors(seed: int, prefix: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"A": (RANK, 3072), "B": (12288, RANK)}
    return {
        f"{prefix}{module}.lora_{side}.weight": torch.randn(shape, generator=generator)
        for module in MODULES
        for side, shape in shapes.items()
    }


def by_peft(folder: Path, alpha: int, seed: int) -> Path:
    """The two files as PEFT itself writes them, which has no settings in the header."""
    folder.mkdir(parents=True)
    save_file(factors(seed, "base_model.model."), folder / PEFT_FILE, {"format": "pt"})
    peft.LoraConfig(r=RANK, lora_alpha=alpha, target_modules=MODULES).save_pretrained(folder)
    return folder / PEFT_FILE


def by_kohya(path: Path, alpha: int, seed: int) -> Path:
    """A file with alphas of its own."""
    names = {"lora_A": "lora_down", "lora_B": "lora_up"}
    tensors = {}
    for key, tensor in factors(seed, "").items():
        module, side, _ = key.rsplit(".", 2)
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {
            f"{name}.{names[side]}.weight": tensor,
            f"{name}.alpha": torch.tensor(float(alpha)),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


class Base(torch.nn.Module):
    """Layers with the names and sizes of MODULES; their weights are never touched."""

    def __init__(self):
        super().__init__()
        for name in MODULES:
            *owners, last = name.split(".")
            owner = self
            for part in owners:
                if not hasattr(owner, part):
                    owner.add_module(part, torch.nn.Module())
                owner = getattr(owner, part)
            owner.add_module(
                last, torch.nn.utils.skip_init(torch.nn.Linear, 3072, 12288, bias=False)
            )


def as_peft_reads(folder: Path) -> torch.Tensor | None:
    """A corner of the first layer's delta; None where PEFT refuses the folder."""
    try:
        model = peft.PeftModel.from_pretrained(Base(), folder)
    except (ValueError, OSError):
        return None
    layer = model.base_model.model.get_submodule(LAYER)
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    return (layer.scaling["default"] * (up[:8].double() @ down[:, :8].double())).detach()


def as_we_read(path: Path) -> torch.Tensor | None:
    """The same by our plan; None where there is no file."""
    if not path.exists():
        return None
    found, tensors = inspect_file(path), load_file(path)
    adapter = next(
        item for item in found.plan.adapters if item.target.module == "double_blocks.0.img_mlp.0"
    )
    own = {role: tensors[key] for role, key in adapter.roles.items()}
    return spec_of(adapter, own).scale_for(own["down"].shape[0]) * (
        own["up"][:8].double() @ own["down"][:, :8].double()
    )


class Scene(NamedTuple):
    """What is there, the command, the file it writes, and whether PEFT can read it."""

    prepare: Callable[[Path], list[object]]
    written: str
    new_to_peft: bool = True


def export(folder: Path) -> list[object]:
    return [
        "fix",
        by_kohya(folder / "x.safetensors", 32, 1),
        "--to",
        "peft",
        "--output",
        folder / "out",
    ]


def export_over_one_with_the_same_weights(folder: Path) -> list[object]:
    by_peft(folder / "out" / "x", 1, 1)
    return [*export(folder), "--overwrite"]


def resize_in_place(folder: Path) -> list[object]:
    path = by_peft(folder / "x", 32, 1)
    return ["resize", path, "--rank", 2, "-o", path, "--overwrite"]


def fix_in_place(folder: Path) -> list[object]:
    return ["fix", by_peft(folder / "x", 32, 1), "--to", "comfyui", "--in-place", "--backup"]


SCENES = {
    "new": Scene(export, f"out/x/{PEFT_FILE}"),
    "over the same weights": Scene(export_over_one_with_the_same_weights, f"out/x/{PEFT_FILE}"),
    "resize": Scene(resize_in_place, f"x/{PEFT_FILE}"),
    "fix": Scene(fix_in_place, f"x/{PEFT_FILE}", False),
}


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SCENES)
def test_a_kill_before_any_step_leaves_no_new_weights_at_an_old_strength(name, tmp_path, forks):
    scene = SCENES[name]
    whole = tmp_path / "whole"
    command = scene.prepare(whole)
    before = as_we_read(whole / scene.written)
    forks.start(*command)
    assert forks.code() == 0, forks.told()
    after = as_we_read(whole / scene.written)
    assert after is not None
    if scene.new_to_peft:
        assert same(as_peft_reads((whole / scene.written).parent), after)
    told = set()
    for step in range(1, MAX_STEPS):
        folder = tmp_path / str(step)
        command, path = scene.prepare(folder), folder / scene.written
        forks.start(*command, step=step)
        code = forks.code()
        told.add(check(scene, path, before, after))
        if code != -9:
            assert code == 0, forks.told()
            break
        again(forks, command, path, after)
    assert step > 5 and (same(before, after) or told == {"old", "new"})


def check(scene: Scene, path: Path, before: torch.Tensor | None, after: torch.Tensor) -> str:
    """Fails where a reader finds anything but the old state, the new state, or nothing; tells which
    we find.
    """
    ours = as_we_read(path)
    assert same(ours, before) or same(ours, after), sorted(os.listdir(path.parent))
    if scene.new_to_peft:
        theirs = as_peft_reads(path.parent) if path.parent.exists() else None
        assert theirs is None or same(theirs, before) or same(theirs, after), sorted(
            os.listdir(path.parent)
        )
    return "old" if same(ours, before) else "new"


def again(forks: Forks, command: list[object], path: Path, after: torch.Tensor) -> None:
    """The same command does what was asked, where it was not done; nothing is left in its way, and
    nothing of the killed one stays.
    """
    done = same(as_we_read(path), after)
    forks.start(*command)
    code = forks.code()
    assert code == 0 or done, forks.told()
    if code == 0:
        assert same(as_we_read(path), after)
        left = [
            item.name
            for item in path.parent.iterdir()
            if item.name.startswith(".") or item.name.endswith(".old")
        ]
        assert not left or done, left


def test_where_header_and_settings_beside_differ_the_report_says_so(tmp_path):
    path = by_peft(tmp_path / "x", 8, 1)
    assert not inspect_file(path).report.cautions
    alone = as_we_read(path)
    config = json.loads((path.parent / PEFT_CONFIG).read_text("utf-8"))
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(config)})
    assert not inspect_file(path).report.cautions and same(as_we_read(path), alone)
    (path.parent / PEFT_CONFIG).write_text(json.dumps(config | {"lora_alpha": 64}), "utf-8")
    (caution,) = inspect_file(path).report.cautions
    assert (
        "lora_alpha is 8 in the header and 64 in adapter_config.json" in caution
        and "The header counts" in caution
    )
    assert same(as_we_read(path), alone)


def test_save_lora_killed_before_any_step(comfy, one_thread, tmp_path, monkeypatch):
    """The node, over an export of PEFT with the same weights at another strength."""
    import folder_paths
    from forks import die_before
    from lora_locksmith.nodes.save import SaveLoRA

    def save(folder: Path, step: int) -> int:
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"})
        )
        folder_paths.filename_list_cache.pop("loras", None)
        number = os.fork()
        if not number:
            try:
                die_before(step)
                SaveLoRA.execute("x.safetensors", "out/x", "peft", overwrite=True)
            except BaseException:
                os._exit(99)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

    told, scene = set(), Scene(export_over_one_with_the_same_weights, f"out/x/{PEFT_FILE}")
    scene.prepare(tmp_path / "whole")
    before = as_we_read(tmp_path / "whole" / scene.written)
    assert save(tmp_path / "whole", MAX_STEPS) == 0
    after = as_we_read(tmp_path / "whole" / scene.written)
    for step in range(1, MAX_STEPS):
        scene.prepare(tmp_path / str(step))
        code = save(tmp_path / str(step), step)
        told.add(check(scene, tmp_path / str(step) / scene.written, before, after))
        if code != -9:
            assert code == 0
            break
    folder_paths.filename_list_cache.pop("loras", None)
    assert step > 5 and told == {"old", "new"}
