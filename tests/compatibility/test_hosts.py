"""Every node and route at work on real servers of several ComfyUI releases, with nothing in their
logs to complain of.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import comfy_server
import demo
import pytest
import torch
from devtools import comfyui, steps
from reports.small_files import flux_lora, write_file
from safetensors.torch import load, load_file, save_file
from tiny_models import BROKEN_LORA, DIFFUSERS_LORA, FLUX, HIDDEN, KOHYA_LORA

NODES = {
    "LoadAndFixLoRA",
    "LoRAStack",
    "CreateHookLoRA",
    "CreateHookLoRAStack",
    "InspectLoRAKeys",
    "MergeLoRAs",
    "ExtractLoRA",
    "ApplyLoRA",
    "SaveLoRA",
}
DORA = "dora.safetensors"
MODEL, CLIP = ["model", 0], ["clip", 0]


def hosts_to_test() -> list[str]:
    try:
        return comfyui.hosts_to_test()
    except steps.Fault as fault:
        raise pytest.UsageError(str(fault)) from None


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    """The demo's picture smaller and in fewer steps: what is computed is the same, and sampling is
    most of these tests' time.
    """
    sizes = {"EmptySD3LatentImage": {0: 64, 1: 64}, "KSampler": {2: 2}}
    with pytest.MonkeyPatch.context() as patch:
        for kind, changes in sizes.items():
            values = [
                changes.get(place, value) for place, value in enumerate(demo.TINY_NODES[kind][1])
            ]
            patch.setitem(demo.TINY_NODES, kind, (kind, values))
        yield


@pytest.fixture(
    scope="module", params=[pytest.param(name, id=Path(name).name) for name in hosts_to_test()]
)
def host(request, tiny_models_folder, tmp_path_factory):
    """A server of one release, with the pack and the tiny models."""
    folder = comfyui.host_folder(request.param)
    if not comfyui.is_comfyui(folder):
        pytest.fail(
            f"There is no ComfyUI in {folder}. 'python dev.py test' gets it.", pytrace=False
        )
    base = comfy_server.prepare_base(tmp_path_factory.mktemp("host"), steps.ROOT)
    shutil.copytree(tiny_models_folder, base / "models", dirs_exist_ok=True)
    write_dora(base / "models" / "loras" / DORA)
    with comfy_server.Server(Path(sys.executable), folder, base, base / "server.log") as running:
        yield running


def write_dora(path: Path) -> None:
    """A LoRA of PEFT with a magnitude, which the pack's own adapter computes."""
    module, made = (
        "transformer.single_transformer_blocks.0.proj_mlp",
        torch.Generator().manual_seed(3),
    )
    shapes = {
        "lora_A.weight": (4, HIDDEN),
        "lora_B.weight": (4 * HIDDEN, 4),
        "lora_magnitude_vector": (4 * HIDDEN,),
    }
    save_file(
        {
            f"{module}.{role}": torch.randn(shape, generator=made) * 0.2 + 1
            for role, shape in shapes.items()
        },
        path,
    )


def rows(*names: str) -> str:
    return json.dumps([{"on": True, "name": name, "strength": 0.7} for name in names])


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def models(prompt: dict) -> dict:
    """The demo's two loaders of models, as nodes 'model' and 'clip'."""
    kinds = {"model": "UNETLoader", "clip": "CLIPLoader"}
    return {
        name: copy.deepcopy(next(spec for spec in prompt.values() if spec["class_type"] == kind))
        for name, kind in kinds.items()
    }


def sampled(host, loaders: dict, model: list, clip: list) -> torch.Tensor:
    """The latent of the demo's prompt with these nodes in its loader's place."""
    prompt = demo.without_loader(demo.demo_prompt(host.object_info()))
    ids = {spec["class_type"]: identifier for identifier, spec in prompt.items()}
    wires = {ids["UNETLoader"]: model, ids["CLIPLoader"]: clip}
    pictures = ("VAELoader", "VAEDecode", "SaveImage")
    kept = {
        identifier: spec
        for identifier, spec in prompt.items()
        if spec["class_type"] not in pictures
    }
    for spec in kept.values():
        spec["inputs"] |= {
            name: wires[value[0]]
            for name, value in spec["inputs"].items()
            if isinstance(value, list) and value[0] in wires
        }
    latent = node("SaveLatent", samples=[ids["KSampler"], 0], filename_prefix="hosts")
    entry = host.run(kept | models(prompt) | loaders | {"latent": latent})
    return load(host.fetch(entry["outputs"]["latent"]["latents"][0]))["latent_tensor"]


def ask(host, path: str, wish: dict | None = None) -> dict:
    body = None if wish is None else json.dumps(wish).encode()
    with urllib.request.urlopen(
        urllib.request.Request(host.url + path, body, {"Content-Type": "application/json"}),
        timeout=comfy_server.PATIENCE,
    ) as answer:
        return json.load(answer)


def test_the_pack_loads(host):
    assert re.search(r"\d seconds: .*lora-locksmith", host.startup_log)
    assert {f"Locksmith{name}" for name in NODES} <= host.object_info().keys()
    assert "registerReports()" in host.get_bytes("/extensions/lora-locksmith/index.js").decode()
    assert (
        "app.registerExtension"
        in host.get_bytes("/extensions/lora-locksmith/report/report.mjs").decode()
    )
    assert "LocksmithLoadAndFixLoRA" in ask(host, "/i18n")["zh"]["nodeDefs"]
    assert demo.EXAMPLE.stem in ask(host, "/workflow_templates")["lora-locksmith"]


def test_the_demo_keeps_its_promise(host):
    assert demo.run_demo(host).as_promised


def test_a_stack_of_patches_does_what_loaders_with_bypass_do(host):
    plain = sampled(host, {}, MODEL, CLIP)
    stack = node(
        "LocksmithLoRAStack", model=MODEL, clip=CLIP, loras=rows(BROKEN_LORA, DORA), mode="patch"
    )
    patched = sampled(host, {"stack": stack}, ["stack", 0], ["stack", 1])
    one = node(
        demo.OUR_LOADER,
        model=MODEL,
        clip=CLIP,
        lora_name=BROKEN_LORA,
        strength_model=0.7,
        strength_clip=0.7,
        mode="bypass",
    )
    two = node(
        demo.OUR_LOADER,
        model=["one", 0],
        clip=["one", 1],
        lora_name=DORA,
        strength_model=0.7,
        strength_clip=0.7,
        mode="bypass",
    )
    beside = sampled(host, {"one": one, "two": two}, ["two", 0], ["two", 1])
    change = (patched - plain).norm()
    assert patched.isfinite().all() and change > 0.01 * plain.norm()
    assert (beside - patched).norm() < 0.05 * change


def test_hooks_do_what_loaders_do(host):
    """With keyframes that change nothing, through Set CLIP Hooks."""
    plain = sampled(host, {}, MODEL, CLIP)
    stack = node(
        "LocksmithLoRAStack", model=MODEL, clip=CLIP, loras=rows(BROKEN_LORA, DORA), mode="patch"
    )
    patched = sampled(host, {"stack": stack}, ["stack", 0], ["stack", 1])
    nodes = {
        "first": node(
            "LocksmithCreateHookLoRA", lora_name=BROKEN_LORA, strength_model=0.7, strength_clip=0.7
        ),
        "second": node("LocksmithCreateHookLoRAStack", loras=rows(DORA), prev_hooks=["first", 0]),
        "frame": node("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0),
        "hooks": node("SetHookKeyframes", hooks=["second", 0], hook_kf=["frame", 0]),
        "encoder": node(
            "SetClipHooks", clip=CLIP, apply_to_conds=True, schedule_clip=False, hooks=["hooks", 0]
        ),
    }
    hooked = sampled(host, nodes, MODEL, ["encoder", 0])
    change = (patched - plain).norm()
    assert change > 0.01 * plain.norm()
    assert (hooked - patched).norm() < 1e-3 * change


def test_a_merge_is_inspected_applied_and_saved(host):
    settings = {
        "method": "sum",
        "rank": 0,
        "energy": 1.0,
        "dtype": "fp32",
        "seed": 0,
        "model": MODEL,
    }
    merge = node("LocksmithMergeLoRAs", loras=rows(DIFFUSERS_LORA, KOHYA_LORA), **settings)
    apply = node(
        "LocksmithApplyLoRA",
        model=MODEL,
        clip=CLIP,
        lora=["merge", 0],
        strength_model=1.0,
        strength_clip=1.0,
    )
    save = node(
        "LocksmithSaveLoRA",
        lora=["merge", 0],
        lora_name="the connected lora",
        filename="made/merged",
        dialect="kohya",
        dtype="as it is",
        overwrite=False,
        model=MODEL,
    )
    inspect = node(
        "LocksmithInspectLoRAKeys", lora_name=BROKEN_LORA, model=MODEL, clip=CLIP, weights="on"
    )
    shown = node("PreviewAny", source=["apply", 2])
    repaired = node(
        "LocksmithRepairedLoRAPath", lora_name=BROKEN_LORA, reader="Nunchaku FLUX.1", strength=1.0
    )
    stock = node("LoraLoaderModelOnly", model=MODEL, lora_name=["repaired", 1], strength_model=1.0)
    kept = node("LocksmithInspectLoRAKeys", lora_name=BROKEN_LORA, model=["stock", 0])
    loaders = models(demo.demo_prompt(host.object_info()))
    outputs = host.run(
        {
            **loaders,
            "merge": merge,
            "apply": apply,
            "save": save,
            "inspect": inspect,
            "shown": shown,
            "repaired": repaired,
            "stock": stock,
            "kept": kept,
        }
    )["outputs"]
    assert outputs["repaired"]["text"][0].startswith("Written for Nunchaku FLUX.1")
    assert json.loads(outputs["inspect"]["report_json"][0])["loads"]["keys"] == {
        "placed": 44,
        "total": 44,
    }
    assert re.match(r"(\d+) of \1 layers load", outputs["shown"]["text"][0])
    written = load_file(host.base / "models" / "loras" / "made" / "merged.safetensors")
    assert written and all(name.startswith("lora_unet_") for name in written)


def test_the_routes_answer(host):
    told = ask(
        host,
        "/lora_locksmith/file?"
        + urllib.parse.urlencode(
            {"name": BROKEN_LORA, "model_folder": "diffusion_models", "model": FLUX}
        ),
    )
    assert (told["fit"]["placed"], told["fit"]["total"]) == (22, 22)
    write_file(
        host.base / "models" / "loras" / "whole.safetensors",
        flux_lora(1, "transformer.base_model.model."),
    )
    saved = ask(
        host,
        "/lora_locksmith/save",
        {"name": "whole.safetensors", "dialect": "kohya", "filename": "mended"},
    )
    deadline = time.monotonic() + comfy_server.PATIENCE
    library = ask(host, "/lora_locksmith/library?refresh=1")
    while library["running"] and time.monotonic() < deadline:
        library = ask(host, "/lora_locksmith/library")
    assert {BROKEN_LORA, DORA, saved["file"]} <= {row["file"] for row in library["rows"]}


def test_the_log_complains_of_nothing(host):
    """The last test of each release. An old one may complain of its own at the start: it asks for
    other libraries than the newest.
    """
    log = host.log_text()
    assert not comfy_server.complaints_about_the_pack(log)
    assert not re.search(r'File ".*lora-locksmith', log)
    assert "Traceback" not in log.removeprefix(host.startup_log)
