"""What Repaired LoRA Path gives, read by the reading code of the packs it is for.

LOCKSMITH_NUNCHAKU names a folder with nunchaku (github.com/nunchaku-tech/nunchaku), LOCKSMITH_WANVIDEO
one with ComfyUI-WanVideoWrapper (github.com/kijai/ComfyUI-WanVideoWrapper), LOCKSMITH_QWEN_LORA one with
ComfyUI-QwenImageLoraLoader (github.com/ussoewwin/ComfyUI-QwenImageLoraLoader); without them there is
nothing to try. Tried at 3a3cc3d, at 069ebf7 of ykk648's fork (2025-07-24), and at 6efac00: all deltas
are those of Load and Fix LoRA to 1e-5, in fp32, but nunchaku's packed factors, which are bf16.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from other_readers import functions, nunchaku, on_flux, package, products
from safetensors.torch import load_file, save_file
from test_repaired_path import (  # noqa: F401  # fixtures
    FLUX,
    FLUX_FILES,
    HIDDEN,
    WAN,
    assert_same,
    give,
    kept,
    lokr_wan,
    node,
    tiny_wan,
    truth_of,
    wan_lora,
)

NUNCHAKU, WANVIDEO, QWEN = (
    os.environ.get(f"LOCKSMITH_{name}", "") for name in ("NUNCHAKU", "WANVIDEO", "QWEN_LORA")
)
BF16 = 0.01  # two factors of bf16

without_nunchaku = pytest.mark.skipif(not NUNCHAKU, reason="LOCKSMITH_NUNCHAKU names no folder")
without_wanvideo = pytest.mark.skipif(not WANVIDEO, reason="LOCKSMITH_WANVIDEO names no folder")
without_qwen = pytest.mark.skipif(not QWEN, reason="LOCKSMITH_QWEN_LORA names no folder")


# Nunchaku


@without_nunchaku
@pytest.mark.parametrize("file", FLUX_FILES)
def test_nunchaku_composes_what_load_and_fix_loads(file, give, loras, tiny_flux, host, patched):  # noqa: F811
    compose, _ = nunchaku(Path(NUNCHAKU))
    save_file(FLUX_FILES[file](), loras / "a.safetensors")
    path = give("a.safetensors", FLUX)[0]
    composed = compose.compose_lora([(path, 1.0)])
    truth = truth_of(tiny_flux(), loras / "a.safetensors", host, patched)
    assert_same(on_flux(products(apart(composed)), tiny_flux()), truth)


def apart(composed):
    """q, k and v of what compose_lora has put into one."""
    single = {}
    for name, tensor in composed.items():
        fused = next((word for word in ("to_qkv", "add_qkv_proj") if f".{word}." in name), "")
        for place, part in enumerate("qkv" if fused else "-"):
            own = name.replace(fused, fused.replace("qkv", part)) if fused else name
            whole = not fused or "lora_A" in name
            single[own] = tensor if whole else tensor.narrow(0, place * HIDDEN, HIDDEN)
    return single


@without_nunchaku
@pytest.mark.parametrize("file", FLUX_FILES)
def test_nunchaku_packs_all_of_it(file, give, loras, tiny_flux, host, patched):  # noqa: F811
    """Its kernels' form of the factors, unpacked again."""
    compose, converter = nunchaku(Path(NUNCHAKU))
    save_file(FLUX_FILES[file](), loras / "a.safetensors")
    path = give("a.safetensors", FLUX)[0]
    packed = converter.to_nunchaku(compose.compose_lora([(path, 1.0)]), base_sd=quantised())
    truth = truth_of(tiny_flux(), loras / "a.safetensors", host, patched)
    assert_same(on_flux(unpacked(packed, converter), tiny_flux()), truth, BF16)


LAYERS = {
    "qkv_proj": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "qkv_proj_context": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "out_proj_context": ("attn.to_add_out",),
    "mlp_context_fc1": ("ff_context.net.0.proj",),
    "mlp_context_fc2": ("ff_context.net.2",),
}
DOUBLE = {"out_proj": "attn.to_out.0", "mlp_fc1": "ff.net.0.proj", "mlp_fc2": "ff.net.2"}
SPLITS = {"norm.linear": 3, "norm1.linear": 6, "norm1_context.linear": 6}


def quantised() -> dict[str, torch.Tensor]:
    """The names of a quantised model that the converter asks for: two blocks of each sort."""
    state = {f"transformer_blocks.{block}.x": torch.zeros(1) for block in range(2)}
    for block in range(2):
        start = f"single_transformer_blocks.{block}"
        state[f"{start}.out_proj.qweight"] = torch.zeros(1, HIDDEN // 2)
        state[f"{start}.mlp_fc2.qweight"] = torch.zeros(1, 2 * HIDDEN)
    return state


def unpacked(packed, converter) -> dict[str, torch.Tensor]:
    """weight or bias, by diffusers' names -> its delta."""
    deltas: dict[str, torch.Tensor] = {}
    halves: dict[str, list[torch.Tensor]] = {}
    for name, down in packed.items():
        if name.endswith(".lora_down"):
            layer = name.removesuffix(".lora_down")
            delta = product(layer, down, packed[f"{layer}.lora_up"], converter)
            block, _, local = layer.partition(".")[2].partition(".")
            start = f"{layer.partition('.')[0]}.{block}"
            if start.startswith("single") and local in ("out_proj", "mlp_fc2"):
                halves.setdefault(start, [None, None])[local == "mlp_fc2"] = delta
                continue
            single = {"mlp_fc1": "proj_mlp"} if start.startswith("single") else DOUBLE
            names = LAYERS.get(local) or (single.get(local, local),)
            for own, part in zip(names, delta.chunk(len(names)), strict=True):
                deltas[f"{start}.{own}.weight"] = part
    for start, pair in halves.items():
        deltas[f"{start}.proj_out.weight"] = torch.cat(pair, 1)
    rest = {f"transformer.{name}": tensor for name, tensor in packed.items() if ".lora_A" in name}
    rest |= {f"transformer.{name}": tensor for name, tensor in packed.items() if ".lora_B" in name}
    return deltas | products(rest) | biases(packed)


def product(layer, down, up, converter) -> torch.Tensor:
    splits = next((count for name, count in SPLITS.items() if layer.endswith(name)), 0)
    if splits:
        rows = up.shape[0]
        up = up.view(rows // splits, splits, -1).transpose(0, 1).reshape(rows, -1)
        return up.float() @ down.float()
    up, down = (
        converter.unpack_lowrank_weight(tensor, down=is_down)
        for tensor, is_down in ((up, False), (down, True))
    )
    return up.float() @ down.float()


def biases(packed) -> dict[str, torch.Tensor]:
    made = {}
    for name, vector in packed.items():
        if vector.ndim == 1 and name.endswith(".bias"):
            fused = next((word for word in ("to_qkv", "add_qkv_proj") if f".{word}." in name), "")
            parts = vector.chunk(3) if fused else (vector,)
            for part, piece in zip("qkv" if fused else "-", parts, strict=True):
                own = name.replace(fused, fused.replace("qkv", part)) if fused else name
                made[own] = piece.float()
    return made


@without_nunchaku
@pytest.mark.parametrize("file", ["a broken prefix", "adapters of several kinds", "one of three"])
def test_what_is_repaired_is_not_read_as_it_was(file, loras, tiny_flux, host, patched):
    """The tests' files are such that nunchaku fails on them, or loads less."""
    compose, converter = nunchaku(Path(NUNCHAKU))
    save_file(FLUX_FILES[file](), loras / "a.safetensors")
    truth = truth_of(tiny_flux(), loras / "a.safetensors", host, patched)
    with pytest.raises((KeyError, AssertionError, ValueError)):
        composed = compose.compose_lora([(str(loras / "a.safetensors"), 1.0)])
        packed = converter.to_nunchaku(composed, base_sd=quantised())
        assert_same(on_flux(unpacked(packed, converter), tiny_flux()), truth, BF16)


# WanVideoWrapper


@pytest.fixture
def wrapper(comfy):
    """Its functions that read a LoRA, on the real comfy."""
    import logging

    import comfy.lora
    import comfy.utils

    return functions(
        Path(WANVIDEO) / "nodes_model_loading.py",
        (
            "standardize_lora_key_format",
            "filter_state_dict_by_blocks",
            "model_lora_keys_unet",
            "add_patches",
            "load_lora_for_models_mod",
        ),
        torch=torch,
        comfy=comfy,
        uuid=__import__("uuid"),
        log=logging.getLogger("wrapper"),
    )


@without_wanvideo
@pytest.mark.parametrize("lora", [wan_lora, lokr_wan])
@pytest.mark.parametrize("merged", [True, False])
def test_wanvideowrapper_loads_what_load_and_fix_loads(
    lora,
    merged,
    give,  # noqa: F811
    loras,
    tiny_wan,  # noqa: F811
    host,
    patched,
    wrapper,
):
    import comfy.sd

    save_file(lora(), loras / "a.safetensors")
    entry = give("a.safetensors", WAN)[2][0]
    tensors = wrapper["standardize_lora_key_format"](load_file(entry["path"]))
    before = tiny_wan()
    if merged:
        patcher = comfy.sd.load_lora_for_models(before, None, tensors, entry["strength"], 0)[0]
    else:
        patcher = wrapper["load_lora_for_models_mod"](before, tensors, entry["strength"])
    weights = before.model.state_dict()
    deltas = {key: new - weights[key] for key, new in patched(patcher).items()}
    assert_same(deltas, truth_of(tiny_wan(), loras / "a.safetensors", host, patched))
    plain = [one[1] for patches in patcher.patches.values() for one in patches]
    assert all(type(one).__name__ == "LoRAAdapter" or one[0] == "diff" for one in plain)


@without_wanvideo
def test_wanvideowrappers_choice_of_blocks_sees_the_keys(give, loras, wrapper):  # noqa: F811
    save_file(wan_lora(), loras / "a.safetensors")
    tensors = wrapper["standardize_lora_key_format"](load_file(give("a.safetensors", WAN)[0]))
    rest = wrapper["filter_state_dict_by_blocks"](tensors, {"blocks.1.": True})
    assert {key.split(".")[2] for key in rest if ".blocks." in key} == {"1"}
    assert len(rest) < len(tensors)


# The community's loader for Nunchaku's Qwen-Image


def qwen_lora():
    """q and v of one block, of several ranks, and flat names with an alpha elsewhere."""
    start, generator = "transformer_blocks.0", torch.Generator().manual_seed(7)
    ranks = {f"{start}.attn.to_q": 4, f"{start}.attn.to_v": 6, f"{start}.attn.add_k_proj": 2}
    tensors = {}
    for module, rank in {**ranks, f"{start}.attn.to_out.0": 4}.items():
        flat = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{flat}.lora_down.weight"] = torch.randn(rank, 128, generator=generator)
        tensors[f"{flat}.lora_up.weight"] = torch.randn(128, rank, generator=generator)
        tensors[f"{flat}.alpha"] = torch.tensor(2.0)
    return tensors


@without_qwen
def test_the_qwen_image_loader_fuses_what_is_given(give, loras):  # noqa: F811
    package("nunchaku", Path(NUNCHAKU) / "nunchaku" if NUNCHAKU else Path(QWEN))
    sys.path.insert(0, QWEN)
    from nunchaku_code import lora_qwen

    save_file(qwen_lora(), loras / "a.safetensors")
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(give("a.safetensors", "Nunchaku Qwen-Image")[0]).items():
        _, base, part, side = lora_qwen._classify_and_map_key(key)
        groups.setdefault(base, {})[f"{part}_{side}" if part else side] = tensor
    start = "transformer_blocks.0.attn"
    assert groups.keys() == {f"{start}.{name}" for name in ("to_qkv", "add_qkv_proj", "to_out.0")}
    source, told = qwen_lora(), {}
    for base in ("to_qkv", "add_qkv_proj"):
        down, up, alpha = lora_qwen._fuse_qkv_lora(groups[f"{start}.{base}"])
        assert alpha is None
        told |= zip((f"{base}.{part}" for part in "qkv"), (up @ down).chunk(3), strict=True)
    names = {"to_qkv.q": "to_q", "to_qkv.v": "to_v", "add_qkv_proj.k": "add_k_proj"}
    for name, delta in told.items():
        flat = f"lora_unet_transformer_blocks_0_attn_{names.get(name)}"
        if name not in names:
            assert not delta.any()
            continue
        down, up = source[f"{flat}.lora_down.weight"], source[f"{flat}.lora_up.weight"]
        assert torch.allclose(delta, up @ down * 2 / down.shape[0], atol=1e-4)
