"""Every node on every hostile file, and on adapters put together at random: nothing but the pack's
own errors leaves a node.
"""

from __future__ import annotations

import json
import logging
import random
import sys
from pathlib import Path

import pytest
import torch
from lora_locksmith.errors import LocksmithError
from lora_locksmith.files.header import LoraFileError, read_header
from lora_locksmith.lora.io.mapped import map_tensors
from safetensors.torch import save_file
from test_stock_rules import kinds_of

sys.path.insert(0, str(Path(__file__).parent.parent / "hostile"))
import seeds

SMALL = {name: content for name, content in seeds.CORPUS.items() if len(content) < 1_000_000}
MODULES = {
    "double_blocks.0.img_attn.proj": (128, 128),
    "single_blocks.1.linear1": (896, 128),
    "final_layer.linear": (64, 128),
}
FILE = "x.safetensors"


@pytest.fixture
def nodes(comfy, tmp_path):
    """(the module of each node, a loras folder that is the only one ComfyUI knows)."""
    import folder_paths
    from lora_locksmith.nodes import inspect, load_and_fix, merge, save, stack

    before = folder_paths.folder_names_and_paths["loras"]
    folder_paths.folder_names_and_paths["loras"] = ([str(tmp_path / "loras")], before[1])
    (tmp_path / "loras").mkdir()
    yield (
        {
            "load": lambda **more: load_and_fix.LoadAndFixLoRA.execute(
                lora_name=FILE, strength_model=1.0, strength_clip=1.0, **more
            ),
            "stack": lambda **more: stack.LoadAndFixStack.execute(
                loras=json.dumps([{"name": FILE}, {"name": FILE}]), **more
            ),
            "inspect": lambda **more: inspect.InspectLoRAKeys.execute(
                FILE, weights="on", detail="every key", **more
            ),
            "save": lambda **more: save.SaveLoRA.execute(
                FILE, "out/made", "kohya", overwrite=True, **more
            ),
            "merge": lambda **more: merge.MergeLoRAs.execute(
                json.dumps([{"name": FILE}]), {"method": "sum"}, **more
            ),
            "forecast": lambda **more: merge.MergeLoRAs.execute(
                json.dumps([{"name": FILE}]), {"method": "sum"}, dry_run=True, **more
            ),
            "apply": lambda lora, **more: merge.ApplyLoRA.execute(
                lora=lora, strength_model=1.0, strength_clip=1.0, **more
            ),
        },
        tmp_path / "loras",
    )
    folder_paths.folder_names_and_paths["loras"] = before
    folder_paths.filename_list_cache.pop("loras", None)


def tensors_of(path: Path):
    try:
        return map_tensors(path, read_header(path))
    except LoraFileError:
        return None


def run(nodes, path: Path, model, only=()) -> dict[str, object]:
    """What each node gives, or the error of ours that it stops with."""
    ended = {}
    for name in only or nodes:
        more = {"lora": tensors_of(path)} if name == "apply" else {}
        if more.get("lora", ()) is None:
            continue
        try:
            ended[name] = nodes[name](model=model, **more).args
        except LocksmithError as error:
            assert len(str(error)) > 20 and "Traceback" not in str(error)
            ended[name] = error
    return ended


def test_every_node_on_every_hostile_file(nodes, tiny_flux):
    (made, folder), model, loaded = nodes, tiny_flux(), 0
    for name, content in SMALL.items():
        (folder / FILE).write_bytes(content)
        try:
            ended = run(made, folder / FILE, model)
        except Exception as error:
            pytest.fail(f"{name}: {type(error).__name__}: {error}")
        refused = {node for node, end in ended.items() if isinstance(end, LocksmithError)}
        # A file is loaded or refused by all nodes that only look at it alike.
        assert len({"load", "stack", "inspect"} & refused) in (0, 3), name
        loaded += "load" not in refused
    assert 100 < loaded < len(SMALL) - 100


def puzzles(count: int):
    """Files of adapters that are nearly right: parts left out, taken from other kinds, or of other
    shapes.
    """
    chance = random.Random(5)
    for _ in range(count):
        tensors = {}
        for module, (out, inner) in MODULES.items():
            kinds = kinds_of(out, (inner,))
            endings = dict(kinds[chance.choice(sorted(kinds))])
            if chance.random() < 0.4:
                endings |= dict(
                    chance.sample(sorted(kinds[chance.choice(sorted(kinds))].items()), 1)
                )
            for ending, shape in endings.items():
                if chance.random() < 0.1:
                    continue
                change = chance.random()
                shape = (
                    (*shape, 1, 1)
                    if change < 0.1
                    else shape[:-1]
                    if change < 0.15
                    else shape[::-1]
                    if change < 0.2
                    else shape
                )
                number = (
                    chance.choice([0.0, 1.0, 4.0])
                    if ending.endswith(("alpha", "on_input"))
                    else None
                )
                made = torch.randn(shape) * 0.1 if number is None else torch.full(shape, number)
                tensors[f"diffusion_model.{module}{ending}"] = made
        if tensors:
            yield tensors


def test_what_a_node_loads_can_be_sampled_with(nodes, tiny_flux, patched, caplog):
    """Adapters at random: what is loaded is computed, beside the layers too, and the host finds
    nothing to complain of.
    """
    (made, folder), base, placed = nodes, tiny_flux(), 0
    for tensors in puzzles(150):
        save_file(tensors, folder / FILE)
        ended = run(made, folder / FILE, base, ("load", "inspect", "save", "merge"))
        model, _, _, told, *_ = ended["load"]
        placed += json.loads(told)["keys"]["placed"]
        with caplog.at_level(logging.WARNING):
            patched(model)
        beside = made["load"](model=base, mode="bypass").args[0]
        beside.patch_model(torch.device("cpu"))
        try:
            for module, (_, inner) in MODULES.items():
                beside.model.get_submodule(f"diffusion_model.{module}")(torch.randn(2, 3, inner))
        finally:
            beside.unpatch_model(torch.device("cpu"))
        assert not caplog.records, [record.getMessage() for record in caplog.records]
    assert placed > 300


def test_what_the_machine_has_too_little_of_is_said(nodes, tiny_flux, monkeypatch):
    """A real MemoryError out of Python, and what it says where no thread can be started."""
    from lora_locksmith.nodes import host

    made, folder = nodes
    save_file(
        {"a.lora_A.weight": torch.ones(2, 2), "a.lora_B.weight": torch.ones(2, 2)}, folder / FILE
    )
    for fail, word in ((lambda *_, **__: bytearray(sys.maxsize), "memory"), (no_thread, "threads")):
        monkeypatch.setattr(host, "make_plan", fail)
        for name in ("load", "stack"):
            with pytest.raises(LocksmithError, match=word) as raised:
                made[name](model=tiny_flux())
            assert FILE in str(raised.value)


def no_thread(*_, **__):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("lora", [None, [1], {"a": 1}, {1: torch.ones(1)}, "text"])
def test_what_is_connected_and_no_lora(nodes, tiny_flux, lora):
    from lora_locksmith.nodes import merge, save

    with pytest.raises(LocksmithError, match="LORA_MODEL"):
        nodes[0]["apply"](lora, model=tiny_flux())
    with pytest.raises(LocksmithError, match=r"LORA_MODEL|no LoRA to save"):
        save.SaveLoRA.execute("the connected lora", "x", lora=lora, model=tiny_flux())
    with pytest.raises(LocksmithError, match=r"LORA_MODEL|no LoRA to merge"):
        merge.MergeLoRAs.execute("[]", {"method": "sum"}, connected={"lora_0": lora})


def test_a_file_that_is_gone_since_the_run_was_queued(nodes, tiny_flux):
    for name in ("load", "stack", "inspect", "save", "merge"):
        with pytest.raises(LocksmithError, match="not in the loras folders"):
            nodes[0][name](model=tiny_flux())
