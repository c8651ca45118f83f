"""A model's target model from its file's header: the same names and shapes as ComfyUI's own model, whatever
the file's names are.

Equal without exception: every weight, bias and bare parameter. Only ComfyUI's scalars outside a
text encoder's network (logit_scale) are in neither.
"""

from __future__ import annotations

import json
import random
import time
from math import prod

import comfy_models
import pytest
from hollow_files import write_hollow
from lora_locksmith.files.header import LoraFileError
from lora_locksmith.identify.checkpoint import target_model_of_checkpoint
from lora_locksmith.key_maps.table import families, flatten, parse_table, slices
from lora_locksmith.key_maps.user_maps import UserMaps
from lora_locksmith.messages import translate
from lora_locksmith.planning.target_model import denoiser_network, encoder_networks

PREFIXES = (
    "",
    "model.diffusion_model.",
    "diffusion_model.",
    "net.",
    "model.",
    "transformer.",
    "module._orig_mod.",
)


def local(model):
    """ComfyUI's own names and shapes of a model, without diffusion_model."""
    return {
        name.removeprefix("diffusion_model."): shape
        for name, shape in comfy_models.shapes(model).items()
    }


def with_prefix(prefix, tensors):
    return {prefix + name: shape for name, shape in tensors.items()}


def denoiser_of(path):
    return target_model_of_checkpoint(path).target_model.networks["denoiser"]


def spelled(family, tensors, alternative=0):
    """A native network under another spelling of its table: diffusers' is the first."""
    renamed = {}
    for name, shape in tensors.items():
        module, suffix = next(
            (name.removesuffix(end), end)
            for end in (".weight", ".bias", ".scale", "")
            if name.endswith(end)
        )
        main = next(
            tensors[module + end]
            for end in (".weight", ".scale", "", ".bias")
            if module + end in tensors
        )
        natives = (
            match.row
            for match in family.find(flatten(module))
            if match.alternative < 0 and match.row.alternatives
        )
        row = next((row for row in natives if slices(row, -1, 0, (main,)) is not None), None)
        words = (
            zip(
                flatten(row.native[0].replace("{}", "0free0")).split("_"),
                flatten(module).split("_"),
                strict=True,
            )
            if row
            else ()
        )
        names = (
            family.spellings(
                row, alternative, [number for word, number in words if word == "0free0"]
            )
            if row
            else (module,)
        )
        for part, spelling in enumerate(names):
            rows = slices(row, alternative, part, (main,))[0].rows if len(names) > 1 else None
            renamed[spelling + suffix] = (rows[1], *shape[1:]) if rows else shape
    return renamed


@pytest.fixture
def file(tmp_path):
    return lambda tensors, name="model.safetensors", metadata=None: write_hollow(
        tmp_path / name, tensors, metadata
    )


FUSED_WHEN_LOADED = {"qwen_image_21_apart": "qwen_image_21"}


@pytest.mark.parametrize("model", comfy_models.MODELS)
def test_every_model_comes_out_as_comfyui_has_it(comfy, file, model):
    try:
        expected = comfy_models.shapes(FUSED_WHEN_LOADED.get(model, model))
    except comfy_models.NotInThisComfyUI as fault:
        pytest.skip(str(fault))
    live = denoiser_network(expected)
    found = denoiser_of(file(with_prefix("model.diffusion_model.", local(model))))
    assert dict(found.weights) == dict(expected)
    assert found.modules == live.modules
    assert found.family is live.family is families()[comfy_models.MODELS[model].family]


FIRST_OF_FAMILY = {kind.family: model for model, kind in reversed(comfy_models.MODELS.items())}


@pytest.mark.parametrize("family", FIRST_OF_FAMILY)
def test_every_familys_other_names(comfy, file, family):
    model = FIRST_OF_FAMILY[family]
    try:
        tensors = spelled(families()[family], local(model))
    except comfy_models.NotInThisComfyUI as fault:
        pytest.skip(str(fault))
    found = denoiser_of(file(tensors))
    assert dict(found.weights) == dict(comfy_models.shapes(model))
    assert found.family is families()[family]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("model", ["flux1_dev", "sd15", "hidream_o1"])
def test_whatever_stands_before_the_names(comfy, file, model, prefix):
    assert dict(denoiser_of(file(with_prefix(prefix, local(model)))).weights) == dict(
        comfy_models.shapes(model)
    )


UNET_XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3 = {
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 192,
}
DIFFUSERS = {
    "sd15": ("UNet2DConditionModel", {"cross_attention_dim": 768}),
    "sd21": (
        "UNet2DConditionModel",
        {
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
            "attention_head_dim": (5, 10, 20, 20),
        },
    ),
    "sdxl": ("UNet2DConditionModel", {**UNET_XL, "transformer_layers_per_block": (1, 2, 10)}),
    "koala_700m": (
        "UNet2DConditionModel",
        {
            **UNET_XL,
            "layers_per_block": 1,
            "transformer_layers_per_block": (1, 2, 5),
            "mid_block_type": None,
        },
    ),
    "sd3_medium": (
        "SD3Transformer2DModel",
        {**SD3, "num_layers": 24, "caption_projection_dim": 1536},
    ),
    "flux1_dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux2_dev": ("Flux2Transformer2DModel", {}),
    "chroma": ("ChromaTransformer2DModel", {}),
    "qwen_image": ("QwenImageTransformer2DModel", {}),
    "z_image": ("ZImageTransformer2DModel", {}),
    "lumina2": ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        {"num_single_dit_layers": 32, "pos_embed_max_size": 9216},
    ),
    "hunyuan_video": ("HunyuanVideoTransformer3DModel", {}),
    "wan21_t2v_1_3b": (
        "WanTransformer3DModel",
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    "wan21_i2v_14b": (
        "WanTransformer3DModel",
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    ),
    "ltxv_2b": ("LTXVideoTransformer3DModel", {}),
    "mochi": ("MochiTransformer3DModel", {}),
}


@pytest.fixture(scope="module")
def diffusers_shapes():
    """shapes(model) -> names and shapes of diffusers' own network of the model, built on the meta
    device.
    """
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    known = {}

    def shapes(model):
        if model not in known:
            kind, config = DIFFUSERS[model]
            if not hasattr(diffusers, kind):
                pytest.skip(f"this diffusers has no {kind}")
            with torch.device("meta"):
                network = getattr(diffusers, kind)(**config)
            known[model] = {
                name: tuple(value.shape) for name, value in network.state_dict().items()
            }
        return known[model]

    return shapes


@pytest.mark.parametrize("model", DIFFUSERS)
def test_diffusers_own_networks(comfy, file, diffusers_shapes, model):
    checkpoint = target_model_of_checkpoint(file(diffusers_shapes(model)))
    assert dict(checkpoint.target_model.networks["denoiser"].weights) == dict(
        comfy_models.shapes(model)
    )
    assert checkpoint.notes == []


@pytest.mark.parametrize("model", ["flux1_dev", "sd3_medium", "auraflow", "z_image"])
def test_as_comfyui_itself_converts_diffusers_files(comfy, file, diffusers_shapes, model):
    torch = pytest.importorskip("torch")
    from comfy.model_detection import convert_diffusers_mmdit

    tensors = diffusers_shapes(model)
    converted = convert_diffusers_mmdit(
        {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
    )
    expected = {f"diffusion_model.{name}": tuple(value.shape) for name, value in converted.items()}
    found = {
        name.replace("_norm.scale", "_norm.weight"): shape for name, shape in expected.items()
    }  # its next step for FLUX
    if model == "sd3_medium":
        found = {
            name: shape for name, shape in found.items() if not name.endswith("pos_embed")
        }  # comes from another map there
    weights = denoiser_of(file(tensors)).weights
    assert len(found) > 300 and {name: weights.get(name) for name in found} == found


def test_a_file_comfyui_loads_has_the_very_modules(comfy, tmp_path, tiny_models_folder, both):
    from comfy.sd import load_diffusion_model, load_diffusion_model_state_dict
    from lora_locksmith.nodes.host import target_model_of
    from safetensors.torch import save_file
    from tiny_models import FLUX

    released = tiny_models_folder / "diffusion_models" / FLUX
    loaded = target_model_of(load_diffusion_model(str(released)), None)
    assert dict(denoiser_of(released).weights) == dict(loaded.networks["denoiser"].weights)

    # Copies: the host turns what it loads in place.
    twin = {name: value.clone().contiguous() for name, value in both.twin.state_dict().items()}
    save_file(twin, tmp_path / "twin.safetensors")
    loaded = target_model_of(load_diffusion_model_state_dict(dict(twin)), None)
    assert dict(denoiser_of(tmp_path / "twin.safetensors").weights) == dict(
        loaded.networks["denoiser"].weights
    )


TENCENT = (
    ("txt_in.t_embedder.in_layer.", "txt_in.t_embedder.mlp.0."),
    ("txt_in.t_embedder.out_layer.", "txt_in.t_embedder.mlp.2."),
    ("txt_in.c_embedder.in_layer.", "txt_in.c_embedder.linear_1."),
    ("txt_in.c_embedder.out_layer.", "txt_in.c_embedder.linear_2."),
    ("time_in.in_layer.", "time_in.mlp.0."),
    ("time_in.out_layer.", "time_in.mlp.2."),
    ("guidance_in.in_layer.", "guidance_in.mlp.0."),
    ("guidance_in.out_layer.", "guidance_in.mlp.2."),
    ("_mod.lin.", "_mod.linear."),
    (".modulation.lin.", ".modulation.linear."),
    ("_attn.qkv.", "_attn_qkv."),
    ("_attn.proj.", "_attn_proj."),
    ("_attn.norm.query_norm.", "_attn_q_norm."),
    ("_attn.norm.key_norm.", "_attn_k_norm."),
    (".norm.query_norm.", ".q_norm."),
    (".norm.key_norm.", ".k_norm."),
    ("_mlp.0.", "_mlp.fc1."),
    ("_mlp.2.", "_mlp.fc2."),
)


def test_tencents_names_which_comfyui_renames(comfy, file):
    from comfy.supported_models import HunyuanVideo

    tensors = {}
    for name, shape in local("hunyuan_video").items():
        for native, original in TENCENT if "refiner" not in name else ():
            name = name.replace(native, original)
        tensors[name] = shape
    assert len(tensors.keys() - local("hunyuan_video").keys()) > 600
    assert HunyuanVideo({}).process_unet_state_dict(dict(tensors)) == local("hunyuan_video")
    assert dict(denoiser_of(file(tensors)).weights) == dict(comfy_models.shapes("hunyuan_video"))


CLIP_NAMES = (
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("text_projection.weight", "text_projection"),
)


def inside(encoder, slot):
    start = f"{slot}.transformer."
    return {
        name[len(start) :]: shape
        for name, shape in comfy_models.encoder_shapes(encoder).items()
        if name.startswith(start)
    }


def openclip(encoder, slot):
    tensors = {"logit_scale": ()}
    for name, shape in inside(encoder, slot).items():
        for native, original in CLIP_NAMES:
            name = name.replace(native, original)
        if ".self_attn.q_proj." in name:
            tensors[name.replace(".self_attn.q_proj.", ".attn.in_proj_")] = (
                3 * shape[0],
                *shape[1:],
            )
        elif ".self_attn." not in name:
            tensors[name] = shape
    return tensors


def openai(encoder):
    """CLIP-L as checkpoints have it: with its positions, without the projection ComfyUI makes."""
    tensors = {
        name: shape
        for name, shape in inside(encoder, "clip_l").items()
        if "text_projection" not in name
    }
    return {**tensors, "text_model.embeddings.position_ids": ("I64", 1, 77)}


def sd15_encoders():
    bare = {name.replace("text_model.", ""): shape for name, shape in openai("sd15").items()}
    return with_prefix("cond_stage_model.transformer.", bare)


def sdxl_encoders():
    large = with_prefix("conditioner.embedders.1.model.", openclip("sdxl", "clip_g"))
    return {**with_prefix("conditioner.embedders.0.transformer.", openai("sdxl")), **large}


def all_slots(encoder):
    return {
        **with_prefix("text_encoders.", comfy_models.encoder_shapes(encoder)),
        "text_encoders.llama.spiece_model": ("U8", 9),
    }


CHECKPOINTS = {
    "sd15": ("sd15", sd15_encoders),
    "sd21": ("sd21", lambda: with_prefix("cond_stage_model.model.", openclip("sd21", "clip_h"))),
    "sdxl": ("sdxl", sdxl_encoders),
    **{
        model: (encoder, lambda encoder=encoder: all_slots(encoder))
        for model, encoder in (
            ("flux1_dev", "flux1"),
            ("hunyuan_video", "hunyuan_video"),
            ("hunyuandit", "hunyuandit"),
            ("z_image", "z_image"),
        )
    },
}


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_text_encoders_of_a_checkpoint(comfy, file, model):
    encoder, tensors = CHECKPOINTS[model]
    vae = {"first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3)}
    found = target_model_of_checkpoint(
        file({**with_prefix("model.diffusion_model.", local(model)), **tensors(), **vae})
    )
    expected = {
        network.name: network for network in encoder_networks(comfy_models.encoder_shapes(encoder))
    }
    assert set(found.target_model.slots) == set(expected)
    for slot, network in expected.items():
        assert dict(found.target_model.networks[slot].weights) == dict(network.weights)
        assert found.target_model.networks[slot].prefix == network.prefix
        assert found.target_model.networks[slot].family is network.family
    assert found.target_model.family.name == comfy_models.MODELS[model].family
    if model == "sdxl":
        assert found.notes == [
            "the text encoder in this checkpoint has OpenCLIP's names and was read as CLIP-G"
        ]


def matrices(tensors):
    return {
        name
        for name, shape in tensors.items()
        if name.endswith(".weight") and len(shape) == 2 and min(shape) > 1
    }


def test_scaled_fp8_has_tensors_that_are_no_modules(comfy, file):
    tensors = with_prefix("model.diffusion_model.", local("flux1_dev"))
    scaled = {
        name: ("F8_E4M3", *shape) if name in matrices(tensors) else shape
        for name, shape in tensors.items()
    }
    for old, new in ((".scale_weight", ".scale_input"), (".weight_scale", ".input_scale")):
        extras = {
            name.removesuffix(".weight") + end: ("F32", 1)
            for name in matrices(tensors)
            for end in (old, new)
        }
        checkpoint = target_model_of_checkpoint(
            file({**scaled, **extras, "model.diffusion_model.scaled_fp8": ("F8_E4M3", 2)})
        )
        assert dict(checkpoint.target_model.networks["denoiser"].weights) == dict(
            comfy_models.shapes("flux1_dev")
        )
        assert checkpoint.notes == ["quantized: scaled fp8"]


@pytest.mark.parametrize("stated", [True, False])
def test_nvfp4_packs_two_values_in_a_byte(comfy, file, stated):
    tensors = local("z_image")
    layers = [
        name.removesuffix(".weight") for name in matrices(tensors) if name.startswith("layers.")
    ]
    packed = {
        f"{layer}.weight": ("U8", tensors[f"{layer}.weight"][0], tensors[f"{layer}.weight"][1] // 2)
        for layer in layers
    }
    scales = {f"{layer}.weight_scale": ("F8_E4M3", 8, 8) for layer in layers}
    if not stated:
        scales |= {f"{layer}.weight_scale_2": ("F32",) for layer in layers} | {
            f"{layer}.comfy_quant": ("U8", 19) for layer in layers
        }
    metadata = (
        {
            "_quantization_metadata": json.dumps(
                {"layers": {layer: {"format": "nvfp4"} for layer in layers}}
            )
        }
        if stated
        else None
    )
    checkpoint = target_model_of_checkpoint(
        file({**tensors, **packed, **scales}, metadata=metadata)
    )
    assert dict(checkpoint.target_model.networks["denoiser"].weights) == dict(
        comfy_models.shapes("z_image")
    )
    assert checkpoint.notes == ["quantized: nvfp4"]


def nf4(tensors):
    packed = {}
    for name, shape in tensors.items():
        if name not in matrices(tensors):
            packed[name] = shape
            continue
        packed[name] = ("U8", prod(shape) // 2, 1)
        packed[f"{name}.absmax"] = ("F32", 7)
        packed[f"{name}.quant_map"] = ("F32", 16)
        packed[f"{name}.quant_state.bitsandbytes__nf4"] = ("U8", 80)
    return packed


@pytest.mark.parametrize("model", ["flux1_dev", "qwen_image", "wan21_t2v_14b"])
def test_nf4_shapes_follow_from_the_number_of_values(comfy, file, diffusers_shapes, model):
    """The header has the number of packed values only; biases, norms and the table's sizes leave
    one shape.
    """
    networks = [local(model), *([diffusers_shapes(model)] if model in DIFFUSERS else [])]
    for tensors in networks:
        checkpoint = target_model_of_checkpoint(file(nf4(tensors)))
        assert dict(checkpoint.target_model.networks["denoiser"].weights) == dict(
            comfy_models.shapes(model)
        )
        assert checkpoint.notes == ["quantized: nf4"]


def test_a_shape_that_cannot_be_told_is_said_to_be_unknown(comfy, file):
    tensors = {
        name: shape
        for name, shape in local("flux2_klein_4b").items()
        if not name.startswith("final_layer")
    }
    tensors["final_layer.linear.weight"] = ("U8", 128 * 3072 // 2, 1)
    tensors["final_layer.linear.weight.quant_state.bitsandbytes__nf4"] = ("U8", 80)
    for name in list(tensors):
        if name.endswith("double_blocks.0.img_attn.qkv.weight"):
            tensors |= {name: ("U8", 5, 1), f"{name}.quant_state.bitsandbytes__nf4": ("U8", 80)}
    checkpoint = target_model_of_checkpoint(file(tensors))
    weights = checkpoint.target_model.networks["denoiser"].weights
    assert weights["diffusion_model.double_blocks.0.img_attn.qkv.weight"] == (0, 0)
    assert any("not known" in note for note in checkpoint.notes)


def shard(tmp_path, tensors, stem="diffusion_pytorch_model"):
    names = list(tensors)
    parts = [names[start::2] for start in (0, 1)]
    files = [f"{stem}-{number:05}-of-00002.safetensors" for number in (1, 2)]
    for part, name in zip(parts, files, strict=True):
        write_hollow(tmp_path / name, {key: tensors[key] for key in part})
    weight_map = {key: name for part, name in zip(parts, files, strict=True) for key in part}
    index = tmp_path / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index, tmp_path / files[1]


def test_shards_by_index_by_one_of_them_and_by_folder(comfy, tmp_path, diffusers_shapes):
    index, second = shard(tmp_path, diffusers_shapes("qwen_image"))
    for path in (index, second, tmp_path):
        assert dict(denoiser_of(path).weights) == dict(comfy_models.shapes("qwen_image"))
    index.unlink()
    assert dict(denoiser_of(tmp_path).weights) == dict(comfy_models.shapes("qwen_image"))
    second.unlink()
    with pytest.raises(LoraFileError, match="no such file"):
        target_model_of_checkpoint(tmp_path)


def test_a_diffusers_pipeline_with_its_text_encoders(comfy, tmp_path, diffusers_shapes):
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        (tmp_path / name).mkdir()
    shard(tmp_path / "transformer", diffusers_shapes("flux1_dev"))
    write_hollow(tmp_path / "text_encoder" / "model.safetensors", openai("flux1"))
    write_hollow(tmp_path / "text_encoder" / "model.fp16.safetensors", openai("flux1"))
    shard(tmp_path / "text_encoder_2", inside("flux1", "t5xxl"), "model")
    target_model = target_model_of_checkpoint(tmp_path).target_model
    assert dict(target_model.networks["denoiser"].weights) == dict(comfy_models.shapes("flux1_dev"))
    for network in encoder_networks(comfy_models.encoder_shapes("flux1")):
        assert dict(target_model.networks[network.name].weights) == dict(network.weights)


LORA = {
    f"diffusion_model.double_blocks.{n}.img_attn.qkv.lora_{side}.weight": shape
    for n in range(9)
    for side, shape in (("A", (16, 3072)), ("B", (9216, 16)))
}
KOHYA = {f"lora_unet_double_blocks_{n}_img_attn_qkv.lora_down.weight": (16, 3072) for n in range(9)}
VAE = {
    f"{half}.conv_{end}.weight": (128, 3, 3, 3)
    for half in ("encoder", "decoder")
    for end in ("in", "out")
}
REFUSED = {
    "it is a LoRA": (LORA, KOHYA),
    "it is a VAE": (VAE, with_prefix("first_stage_model.", VAE)),
    "it is a ControlNet": (
        {"controlnet_blocks.0.weight": (8, 8), "transformer_blocks.0.attn.to_q.weight": (8, 8)},
    ),
    "packed by SVDQuant": ({"transformer_blocks.0.attn.to_qkv.qweight": ("U8", 8, 8)},),
    "no diffusion model": (
        {},
        {
            "text_encoders.t5xxl.transformer.shared.weight": (8, 8),
            "vae.encoder.conv_in.weight": (8, 8, 3, 3),
        },
    ),
    "no table knows": (
        {"layer.weight": (8, 8)},
        {"": (), "x" * 10_000: (1,), "\u00e9.weight": (2, 2), "." * 99: (3,)},
    ),
}


@pytest.mark.parametrize(
    ("fault", "number"), [(fault, n) for fault, files in REFUSED.items() for n in range(len(files))]
)
def test_what_is_no_model_is_refused_by_name(file, fault, number):
    with pytest.raises(LoraFileError, match=fault) as caught:
        target_model_of_checkpoint(file(REFUSED[fault][number]))
    for text in (caught.value.fault, caught.value.remedy):
        assert translate(text, "zh") != text


def test_a_text_encoder_and_a_part_of_a_model_are_refused(comfy, file):
    with pytest.raises(LoraFileError, match="it is a text encoder"):
        target_model_of_checkpoint(file(inside("flux1", "t5xxl")))
    part = {
        name: shape
        for name, shape in local("flux1_dev").items()
        if name.startswith("double_blocks.0.img_")
    }
    with pytest.raises(LoraFileError, match=r"only .* of the parts of a FLUX"):
        target_model_of_checkpoint(file(part))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("empty.safetensors", b"", "empty"),
        ("model.gguf", b"GGUF" + bytes(60), "GGUF"),
        ("model.ckpt", b"PK\x03\x04" + bytes(60), "PyTorch pickle"),
        ("m.safetensors.index.json", b"{", "not an index"),
        ("m.safetensors.index.json", b"[" * 100_000, "not an index"),
        ("m.safetensors.index.json", b'{"weight_map": {"a": "../b.safetensors"}}', "not an index"),
        ("m.safetensors.index.json", b'{"weight_map": {"a": 3}}', "not an index"),
        ("m.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}', "no such file"),
        ("m.safetensors.index.json", b'{"weight_map": {"a": "\\u0000"}}', "not an index"),
        ("m-00001-of-99999.safetensors", b"", "empty"),
        ("folder/readme.txt", b"", "no safetensors"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, fault):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(LoraFileError, match=fault):
        target_model_of_checkpoint(path.parent if "/" in name else path)


def test_a_model_no_table_knows_keeps_its_names_where_the_prefix_says_what_it_is(file):
    tensors = {f"model.diffusion_model.strange.{n}.layer.weight": (8, 4) for n in range(9)}
    checkpoint = target_model_of_checkpoint(file(tensors))
    assert checkpoint.target_model.networks["denoiser"].weights[
        "diffusion_model.strange.3.layer.weight"
    ] == (8, 4)
    assert checkpoint.title == "a model no table knows" and checkpoint.notes

    own = UserMaps(
        {
            "strange": parse_table(
                "strange", "@title Strange\n[strange.{} = odd.{}]\nlayer 2h h = thing"
            )
        },
        {},
    )
    checkpoint = target_model_of_checkpoint(
        file({f"odd.{n}.thing.weight": (8, 4) for n in range(9)}), own
    )
    assert checkpoint.target_model.networks["denoiser"].weights[
        "diffusion_model.strange.3.layer.weight"
    ] == (8, 4)
    assert checkpoint.title == "Strange"


def test_one_tensor_over_several_native_modules_is_divided(comfy, file):
    """Fused by diffusers' fuse_qkv_projections, unequal shares included (grouped queries of Krea
    2).
    """
    for model, natives, fused in (
        ("qwen_image", ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.to_qkv"),
        ("krea2", ("attn.wq", "attn.wk", "attn.wv"), "attn.to_qkv"),
    ):
        tensors = {}
        for name, shape in local(model).items():
            native = next(
                (native for native in natives if f".{native}." in name and "blocks" in name), None
            )
            key = name.replace(native, fused) if native else name
            tensors[key] = (tensors[key][0] + shape[0], *shape[1:]) if key in tensors else shape
        assert len(tensors) < len(local(model))
        assert dict(denoiser_of(file(tensors)).weights) == dict(comfy_models.shapes(model))


def test_costs_little_and_is_bounded(comfy, file):
    path = file(local("flux1_dev"))
    target_model_of_checkpoint(path)
    fastest = min(_seconds(lambda: target_model_of_checkpoint(path)) for _ in range(5))
    hostile = file({f"{'a_1.' * 40}{n}.weight": (1,) for n in range(8_000)}, "hostile.safetensors")
    whole = _seconds(lambda: _refused(hostile))
    assert whole < 200 * fastest  # ten times the tensors, names twenty times as long


def _refused(path):
    with pytest.raises(LoraFileError):
        target_model_of_checkpoint(path)


def _seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def test_strange_sizes_and_names_never_raise_anything_else(comfy, file):
    chance = random.Random(5)
    for model in ("flux2_klein_4b", "stable_cascade_c", "z_image") * 4:
        tensors = with_prefix(
            chance.choice(["", "model.diffusion_model."]),
            spelled(families()[comfy_models.MODELS[model].family], local(model)),
        )
        tensors |= with_prefix("conditioner.embedders.1.model.", openclip("sdxl", "clip_g"))
        for name in chance.sample(sorted(tensors), len(tensors) // 3):
            shape = tensors.pop(name)
            odd = ((), (0,) * len(shape), (1,) * chance.randrange(9), ("U8", *shape), ("U8", 7, 1))
            tensors[
                name[: -chance.randrange(9) or None]
                + chance.choice(["", ".weight", "in_proj_weight", ".scale"])
            ] = chance.choice(odd)
            if chance.random() < 0.2:
                tensors[f"{name}.quant_state.bitsandbytes__nf4"] = ("U8", 3)
        metadata = {
            "_quantization_metadata": chance.choice(
                ['{"layers": [1]}', "[]", '{"layers": {"a": {"format": [1]}}}', "\ud800"]
            )
        }
        try:
            assert target_model_of_checkpoint(file(tensors, metadata=metadata)).title
        except LoraFileError as fault:
            assert fault.remedy


@pytest.mark.parametrize("model", ["stable_audio", "stable_audio_3"])
def test_what_comfyui_keeps_beside_the_diffusion_model(comfy, tmp_path, model):
    """Its names in the model's file are others than ComfyUI's."""
    stored = with_prefix("model.model.", local(model)) | comfy_models.MODELS[model].beside
    path = write_hollow(tmp_path / "model.safetensors", stored)
    own = {
        name: shape
        for name, shape in comfy_models.all_shapes(model).items()
        if name.startswith("seconds_")
    }
    weights = denoiser_of(path).weights
    assert own and {name: weights[name] for name in own} == own
