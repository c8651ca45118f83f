"""Loading and applying, against the stock loader on a FLUX.1 of full size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .files import flux_modules, lora_shapes, write_noise
from .measuring import BYTES, Bench, Row, measurement

STOCK = "the stock loader"
RANK = 16
BLOCK_ATTENTION = tuple(
    f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")
)


@measurement(
    Row(
        "load",
        "Load: file on disk to patches on a model, the model new",
        STOCK,
        "ours",
        "stock",
        0.37,
        0.8,
        True,
    ),
    Row(
        "load, model known",
        "The same, model known from an earlier LoRA",
        STOCK,
        "ours, model known",
        "stock",
        0.2,
        0.5,
        True,
    ),
    rounds=15,
    short_rounds=5,
)
def load(bench: Bench):
    path = write_noise(bench.folder / "lora.safetensors", lora_shapes(flux_modules(), RANK))
    runs = {name: loader(name, path) for name in ("stock", "ours", "ours, model known")}
    for run in runs.values():
        assert sum(map(len, run().patches.values())) == len(flux_modules())
    return bench.take_turns(runs)


@measurement(
    Row(
        "load again",
        "The same file on the same model again, as where its strength was changed",
        STOCK,
        "ours, file known",
        "stock",
        0.2,
        0.4,
    ),
    rounds=15,
    short_rounds=5,
)
def load_again(bench: Bench):
    path = write_noise(bench.folder / "lora.safetensors", lora_shapes(flux_modules(), RANK))
    runs = {name: loader(name, path) for name in ("stock", "ours, file known")}
    for run in runs.values():
        run()
    return bench.take_turns(runs)


def loader(name: str, path: str | Path) -> Callable[[], object]:
    """A loader of the file; each but the one that knows it starts from the disk."""
    import comfy_models

    comfy = _comfy()
    import torch
    from lora_locksmith.nodes import host

    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(comfy_models.network("flux1_dev"), cpu, cpu)

    def ours():
        if name != "ours, file known":
            host.forget(files=True, models=name == "ours")
        return host.load_and_fix(patcher, None, path)[0]

    return partial(by_stock, patcher, path) if name == "stock" else ours


def _comfy():
    """ComfyUI's package; in a process of peak.py it is not imported yet."""
    import sys

    import conftest  # noqa: F401 - the pack under its name
    from devtools import comfyui
    from tiny_models import import_comfy

    if "comfy.sd" not in sys.modules:
        import_comfy(comfyui.comfyui_at_hand())
    import comfy.model_patcher
    import comfy.sd
    import comfy.utils

    return comfy


def by_stock(patcher, path: str | Path, bypass: bool = False):
    comfy = _comfy()
    tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    if bypass:
        return comfy.sd.load_bypass_lora_for_models(patcher, None, tensors, 1.0, 1.0)[0]
    return comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 1.0, lora_metadata=metadata)[
        0
    ]


@measurement(
    Row(
        "check at load",
        "Look for NaN, infinity and zeros in a 300 MB file",
        "loading it, the model new",
        "look",
        "load",
        0.015,
        0.03,
    ),
    rounds=31,
    short_rounds=11,
)
def check_at_load(bench: Bench):
    """A share of what it is part of: at most 3 %. In seconds of this thread alone, as another one's
    turn is longer than the look.
    """
    import gc
    import time

    from lora_locksmith.files.header import read_header
    from lora_locksmith.lora.soundness import SAMPLED, look_at_file

    path = write_noise(bench.folder / "lora.safetensors", lora_shapes(flux_modules(), 28))
    assert path.stat().st_size > 300_000_000
    header = read_header(path)
    assert look_at_file(path, header) == (SAMPLED, True)
    runs = {"look": partial(look_at_file, path, header), "load": loader("ours", path)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(bench.rounds):
        for name, run in runs.items():
            gc.collect()  # the garbage of the other one
            start = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - start)
    return seconds


@measurement(
    Row(
        "memory of a load",
        "Memory a load needs at its peak",
        STOCK,
        "ours",
        "stock",
        0.06,
        1.0,
        True,
    ),
    rounds=3,
    short_rounds=1,
    unit=BYTES,
)
def load_memory(bench: Bench):
    path = write_noise(bench.folder / "lora.safetensors", lora_shapes(flux_modules(), RANK))
    return bench.peaks("loading", {name: ("loader", name, path) for name in ("stock", "ours")})


def block_patcher():
    """A ModelPatcher over a FLUX.1 of the published widths with one double block, bf16, random
    weights in its image attention.
    """
    import comfy_models
    import torch

    comfy = _comfy()
    from comfy.supported_models import Flux

    config = Flux(comfy_models.FLUX | {"depth": 1, "depth_single_blocks": 0})
    config.set_inference_dtype(torch.bfloat16, None)
    cpu = torch.device("cpu")
    model = config.get_model({}, device=cpu)
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.diffusion_model.state_dict().items():
        if ".img_attn." in name:
            weight.normal_(std=0.02, generator=generator)
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


@measurement(
    Row(
        "apply",
        "Applying: the patched weights of a block's attention, plain LoRA",
        STOCK,
        "ours",
        "stock",
        1.0,
        1.4,
    ),
    Row(
        "apply, DoRA",
        "The same, DoRA",
        f"{STOCK}, plain LoRA",
        "ours, DoRA",
        "stock",
        1.4,
        5.0,
    ),
    rounds=9,
    short_rounds=3,
)
def apply(bench: Bench):
    import torch
    from lora_locksmith.nodes import host

    shapes = lora_shapes(
        {name: shape for name, shape in flux_modules().items() if name in BLOCK_ATTENTION}, RANK
    )
    magnitudes = {
        f"transformer.{name}.lora_magnitude_vector": flux_modules()[name][:1]
        for name in BLOCK_ATTENTION
    }
    plain = write_noise(bench.folder / "plain.safetensors", shapes)
    dora = write_noise(bench.folder / "dora.safetensors", shapes | magnitudes)
    patcher = block_patcher()
    patched = {"stock": by_stock(patcher, plain)}
    patched |= {
        name: host.load_and_fix(patcher, None, path)[0]
        for name, path in (("ours", plain), ("ours, DoRA", dora))
    }
    assert all(
        sum(map(len, one.patches.values())) == len(BLOCK_ATTENTION) for one in patched.values()
    )
    stock, ours = patched_weights(patched["stock"]), patched_weights(patched["ours"])
    assert all(torch.equal(stock[key], ours[key]) for key in stock)
    return bench.take_turns({name: partial(patched_weights, one) for name, one in patched.items()})


def patched_weights(patched) -> dict[str, object]:
    """Every patched weight as the host puts it onto the device: in fp32, then rounded to the
    model's dtype.
    """
    return {
        key: patched.patch_weight_to_device(key, patched.load_device, return_weight=True)
        for key in patched.patches
    }


@measurement(
    Row(
        "bypass",
        "Bypass: a block's attention layers, adapters beside them",
        "the stock bypass",
        "ours",
        "stock bypass",
        1.0,
        2.0,
    ),
    Row("bypass, patched", "The same", "layers with patched weights", "ours", "patched", 1.1, 3.0),
    rounds=15,
    short_rounds=5,
)
def bypass(bench: Bench):
    """The forward passes of two whole layers over 256 tokens, by native names, as the stock bypass
    loses split ones.
    """
    import torch
    from lora_locksmith.nodes import host

    layers = {
        "double_blocks.0.img_attn.qkv": (9216, 3072),
        "double_blocks.0.img_attn.proj": (3072, 3072),
    }
    path = write_noise(
        bench.folder / "whole.safetensors", lora_shapes(layers, RANK, "diffusion_model.")
    )
    ways = {
        "patched": lambda patcher: host.load_and_fix(patcher, None, path)[0],
        "ours": lambda patcher: host.load_and_fix(patcher, None, path, bypass=True)[0],
        "stock bypass": lambda patcher: by_stock(patcher, path, bypass=True),
    }
    tokens = torch.randn(256, 3072, generator=torch.Generator().manual_seed(3)).bfloat16()
    runs = {}
    for name, way in ways.items():
        patched = way(block_patcher())  # of its own, as a model has one state at a time
        patched.patch_model(patched.load_device)
        runs[name] = partial(forward, patched, tuple(layers), tokens)
    outputs = {name: run() for name, run in runs.items()}
    for name in ("ours", "stock bypass"):
        assert (outputs[name] - outputs["patched"]).norm() < 0.02 * outputs["patched"].norm(), name
    return bench.take_turns(runs)


def forward(patched, layers: tuple[str, ...], tokens):
    import torch

    with torch.no_grad():
        return torch.cat(
            [patched.model.diffusion_model.get_submodule(layer)(tokens) for layer in layers], dim=1
        )
