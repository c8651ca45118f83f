"""Bypass: adapters beside the layers do what they do to the weights, which stay as they are, alone
and in any company.
"""

from __future__ import annotations

import gc
import json

import pytest
import torch
from many_kinds import (
    BASES,
    dense,
    deriving_kinds,
    other_kinds,
    plain_kinds,
    storage,
    turning_kinds,
)
from safetensors.torch import save_file
from test_bases import sampled, weights

CPU = torch.device("cpu")
FILES = {
    "plain": plain_kinds,
    "turning": turning_kinds,
    "deriving": deriving_kinds,
    "other": other_kinds,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """file(kind, seed) -> the path of a LoRA file with these kinds of adapters."""
    folder = tmp_path_factory.mktemp("loras")

    def make(kind, **seed):
        path = folder / f"{kind}{seed.get('seed', '')}.safetensors"
        if not path.exists():
            save_file(FILES[kind](**seed), path)
        return path

    return make


@pytest.fixture
def run(comfy):
    """run(patcher) -> a step of the model, loaded by the host's own model management; nothing stays
    loaded afterwards.
    """
    import comfy.model_management

    def load_and_sample(patcher):
        comfy.model_management.load_models_gpu([patcher])
        return sampled(patcher)

    yield load_and_sample
    comfy.model_management.unload_all_models()


def close(one, other, tolerance=1e-4):
    return (one - other).norm() <= tolerance * other.norm()


def hung_on(patcher):
    """Layers of the model that something of ours acts beside; the stock bypass leaves a layer its
    own forward as an attribute.
    """
    from lora_locksmith.nodes.beside import beside_of

    return sum(
        len(module._forward_hooks) + (beside_of(module) is not None)
        for module in patcher.model.modules()
    )


@pytest.mark.parametrize(
    "kind, strength",
    [
        ("plain", 1.0),
        ("plain", -0.7),
        ("turning", 1.0),
        ("turning", 0.5),
        ("deriving", 0.5),
        ("other", 1.0),
    ],
)
def test_the_same_as_patching(host, base, file, run, kind, strength):
    model = base()
    plain = run(model)
    before = {name: storage(weight) for name, weight in model.model.state_dict().items()}
    patched = run(host.load_and_fix(model, None, file(kind), strength)[0])
    beside = host.load_and_fix(model, None, file(kind), strength, bypass=True)[0]
    assert close(run(beside), patched)
    assert not close(patched, plain, 1e-2)
    if kind != "other":
        assert not beside.patches
        assert all(
            torch.equal(*before[name], *storage(weight))
            for name, weight in model.model.state_dict().items()
        )
    assert torch.equal(run(model), plain)
    assert hung_on(model) == 0


def test_the_report_names_what_changes_the_weights_all_the_same(host, base, file):
    for kind, note in (("plain", False), ("turning", False), ("deriving", False), ("other", True)):
        patcher, _, report = host.load_and_fix(base(), None, file(kind), bypass=True)
        assert report.unplaced() == []
        assert any(line.startswith("Bypass: ") for line in report.notes()) == note
    assert "1 diff" in str(report)
    assert set(patcher.patches) == set(host.load_and_fix(base(), None, file("other"))[0].patches)


@pytest.mark.parametrize(
    "kind", [kind for kind in BASES if kind not in ("fp8_e5m2", "float8_e5m2", "mxfp8")]
)
def test_every_base_keeps_its_weights_and_gets_the_whole_adapter(host, base, file, kind):
    """Each layer gives what fp32 mathematics over its own stored weight gives; no rounding of the
    sum, as patching has it.
    """
    import comfy.lora

    model = base(kind)
    for name in ("plain", "turning", "deriving"):
        patches = host.load_and_fix(model, None, file(name))[0].patches
        beside = host.load_and_fix(model, None, file(name), bypass=True)[0]
        stored = {
            key: dense(weight)
            for key, weight in weights(model, patches).items()
            if key.endswith(".weight")
        }
        layers = {key: model.model.get_submodule(key.removesuffix(".weight")) for key in stored}
        inputs = {key: torch.randn(2, 3, weight.shape[1]) for key, weight in stored.items()}
        bare = {key: layer(inputs[key]) for key, layer in layers.items()}
        beside.patch_model(CPU)
        try:
            for key, layer in layers.items():
                change = (
                    comfy.lora.calculate_weight(patches[key], stored[key].clone(), key)
                    - stored[key]
                )
                wanted = torch.nn.functional.linear(inputs[key], change)
                # The host's int8 layers round their inputs too, turned ones as well, and what turns
                # outputs turns that error with them.
                tolerance = 3e-2 if kind == "int8_tensorwise" and name != "plain" else 1e-3
                assert close(layer(inputs[key]) - bare[key], wanted, tolerance), key
        finally:
            beside.unpatch_model(CPU)


def test_low_vram(host, base, file):
    model = base("bf16")
    beside = host.load_and_fix(model, None, file("turning"), bypass=True)[0]
    beside = host.load_and_fix(beside, None, file("other"))[0]
    beside.patch_model(CPU)
    whole = sampled(beside)
    beside.unpatch_model(CPU)
    beside.patch_model(CPU, lowvram_model_memory=1)
    offloaded = sampled(beside)
    beside.unpatch_model(CPU)
    assert close(offloaded, whole, 2e-2)


@pytest.fixture
def stock(comfy):
    import comfy.sd
    import comfy.utils

    def load(patcher, path, beside):
        way = comfy.sd.load_bypass_lora_for_models if beside else comfy.sd.load_lora_for_models
        return way(patcher, None, comfy.utils.load_torch_file(str(path), safe_load=True), 1.0, 0.0)[
            0
        ]

    return load


@pytest.fixture
def ways(host, stock):
    """Each way to load a LoRA onto a patcher."""
    return {
        "ours": lambda patcher, path: host.load_and_fix(patcher, None, path, bypass=True)[0],
        "ours patched": lambda patcher, path: host.load_and_fix(patcher, None, path)[0],
        "stock": lambda patcher, path: stock(patcher, path, beside=True),
        "stock patched": lambda patcher, path: stock(patcher, path, beside=False),
    }


STACKS = [
    ("ours", "ours", "ours"),
    ("ours patched", "ours"),
    ("stock", "ours"),
    ("ours", "stock", "ours"),
    ("ours", "stock patched"),
]


@pytest.fixture(scope="module")
def whole_loras(tmp_path_factory):
    """Plain LoRAs on whole native modules, which the stock bypass reads too."""
    from many_kinds import factors

    folder = tmp_path_factory.mktemp("whole")
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        tensors = factors(generator, "diffusion_model.double_blocks.0.img_attn.qkv", 384, 128)
        tensors |= factors(generator, "diffusion_model.single_blocks.0.linear1", 896, 128)
        save_file(tensors, folder / f"{seed}.safetensors")
    return [folder / f"{seed}.safetensors" for seed in range(3)]


@pytest.mark.parametrize("stack", STACKS, ids="+".join)
def test_stacks_add_up(base, ways, whole_loras, run, stack):
    model = base()
    plain = run(model)
    wanted, found = model, model
    for way, path in zip(stack, whole_loras, strict=False):
        wanted, found = ways["ours patched"](wanted, path), ways[way](found, path)
    wanted = run(wanted)
    for _ in range(2):
        assert close(run(found), wanted)
        assert torch.equal(run(model), plain)
    assert hung_on(model) == 0


def test_split_targets_that_the_stock_bypass_loses(host, base, file, run, stock, tmp_path):
    split = {
        key: tensor
        for key, tensor in plain_kinds().items()
        if ".attn.to_q" in key or ".attn.to_k" in key
    }
    save_file(split, tmp_path / "split.safetensors")
    model = base()
    plain, patched = (
        run(model),
        run(host.load_and_fix(model, None, tmp_path / "split.safetensors")[0]),
    )
    assert close(
        run(host.load_and_fix(model, None, tmp_path / "split.safetensors", bypass=True)[0]), patched
    )
    assert torch.equal(run(stock(model, tmp_path / "split.safetensors", beside=True)), plain)


def test_a_model_that_is_loaded_stays_untouched_by_later_nodes(host, base, run, ways, whole_loras):
    """Clones of a loaded model say they are injected; what they carry must not reach the model
    before they are loaded.
    """
    model = base()
    plain = run(model)
    one = ways["ours"](model, whole_loras[0])
    with_one = run(one)
    two = ways["ours"](one, whole_loras[1])
    three = ways["stock patched"](two, whole_loras[2])
    unused = three.clone()
    assert torch.equal(run(one), with_one)
    assert not close(run(three), with_one, 1e-2)
    del unused, three
    gc.collect()
    assert torch.equal(run(one), with_one)
    assert torch.equal(run(model), plain)


def test_strength_zero_hangs_nothing(host, base, file):
    assert not host.load_and_fix(base(), None, file("plain"), 0.0, bypass=True)[0].injections


def test_a_copy_of_the_model_gets_hooks_of_its_own(host, base, file, run):
    """For several GPUs the host puts the same injections on another model."""
    model = base()
    beside = host.load_and_fix(model, None, file("plain"), bypass=True)[0]
    wanted = run(beside)
    twin = beside.deepclone_multigpu()
    assert twin.model is not model.model
    assert torch.equal(run(twin), wanted)
    assert hung_on(model) == 0 and hung_on(twin) > 0


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "kind", ["lora", "tucker", "loha", "lokr", "dora", "dora per input", "oft", "ia3"]
)
def test_convolutions(host, comfy, dimensions, groups, kind):
    import comfy.lora
    import comfy.model_patcher
    import comfy.ops
    from lora_locksmith.nodes.bypass import add_bypass_hooks

    torch.manual_seed(1)
    convolution = getattr(comfy.ops.disable_weight_init, f"Conv{dimensions}d")(
        8, 12, 3, stride=2, padding=1, groups=groups
    )
    for parameter in convolution.parameters():
        torch.nn.init.normal_(parameter)
    kernel = convolution.weight.shape[1:]
    adapter = adapter_of(kind, (12, *kernel))
    model = torch.nn.Module()
    model.conv = convolution.requires_grad_(False)
    patcher = comfy.model_patcher.ModelPatcher(model, CPU, CPU)
    left, _ = add_bypass_hooks(patcher, [{"conv.weight": adapter}], 0.6, host.logical_shape)
    assert bool(left) == (groups == 2)
    for layer in left:
        patcher.add_patches(layer, 0.6)
    wanted = comfy.lora.calculate_weight(
        [(0.6, adapter, 1.0, None, None)], convolution.weight.clone(), "conv.weight"
    )
    patcher.patch_model(CPU)
    x = torch.randn(2, 8, *[7] * dimensions)
    result = model.conv(x)
    patcher.unpatch_model(CPU)
    assert torch.allclose(result, convolution._conv_forward(x, wanted, convolution.bias), atol=1e-4)


def adapter_of(kind, shape):
    from comfy.weight_adapter.loha import LoHaAdapter
    from comfy.weight_adapter.lokr import LoKrAdapter
    from comfy.weight_adapter.lora import LoRAAdapter
    from lora_locksmith.adapters.spec import AdapterSpec
    from lora_locksmith.nodes.patches import LocksmithAdapter

    out, inner, *kernel = shape
    ones = [1] * len(kernel)
    up, down = torch.randn(out, 3, *ones), torch.randn(3, inner, *kernel)
    if kind == "lora":
        return LoRAAdapter(set(), (up, down, 2.0, None, None, None))
    if kind == "tucker":
        spec, down, core = (
            AdapterSpec("lora", 2.0),
            torch.randn(3, inner, *ones),
            torch.randn(3, 3, *kernel),
        )
        return LocksmithAdapter(set(), (spec, ("up", "down", "mid"), (up, down, core)))
    if kind == "loha":
        columns = torch.Size((inner, *kernel)).numel()
        return LoHaAdapter(
            set(),
            (
                torch.randn(out, 2),
                torch.randn(2, columns),
                1.0,
                torch.randn(out, 2),
                torch.randn(2, columns),
                None,
                None,
                None,
            ),
        )
    if kind == "lokr":
        return LoKrAdapter(
            set(), (torch.randn(4, 2), torch.randn(3, inner // 2, *kernel), None, *[None] * 6)
        )
    if kind == "ia3":
        return LocksmithAdapter(
            set(), (AdapterSpec("ia3"), ("ia3_weight",), (torch.randn(1, inner, *ones),))
        )
    if kind.startswith("dora"):
        tensors = (up, down, torch.rand(*((out, 1) if kind == "dora" else (1, inner)), *ones) + 0.5)
        return LocksmithAdapter(
            set(), (AdapterSpec("lora", 2.0), ("up", "down", "dora_scale"), tensors)
        )
    return LocksmithAdapter(
        set(), (AdapterSpec("oft"), ("oft_blocks",), (torch.randn(3, 4, 4) * 0.2,))
    )


def test_a_text_encoder(host, comfy, tmp_path):
    clip = tiny_clip()
    layer = "text_model.encoder.layers.1"
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for module, outputs, inputs in (
        ("self_attn.q_proj", 64, 64),
        ("self_attn.out_proj", 64, 64),
        ("mlp.fc1", 128, 64),
    ):
        name = f"lora_te1_{layer}.{module}".replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, inputs, generator=generator)
        tensors[f"{name}.lora_up.weight"] = torch.randn(outputs, 4, generator=generator)
    save_file(tensors, tmp_path / "clip.safetensors")
    encode = lambda one: one.encode_from_tokens(one.tokenize("a red fox"))  # noqa: E731
    plain = encode(clip)
    patched = host.load_and_fix(None, clip, tmp_path / "clip.safetensors", 0.0, 0.5)[1]
    beside = host.load_and_fix(None, clip, tmp_path / "clip.safetensors", 0.0, 0.5, bypass=True)[1]
    wanted = encode(patched)
    assert patched.patcher.patches and not beside.patcher.patches
    # The encoder is fp16, to which patching rounds the sum.
    assert close(encode(beside), wanted, 2e-3) and not close(wanted, plain, 1e-2)
    assert torch.equal(encode(clip), plain)


@pytest.mark.parametrize("bypass", [False, True])
def test_rows_of_tokens_of_a_text_encoder(host, tmp_path, bypass):
    """PEFT's trainable tokens, with their settings as diffusers packs them: the words they stand
    for mean something else.
    """
    clip, path = tiny_clip(), tmp_path / "tokens.safetensors"
    tokens = [int(one[0]) for one in clip.tokenize("red fox")["l"][0]][1:3]
    rows = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    told = json.dumps({"text_encoder.trainable_token_indices": {"token_embedding": tokens}})
    key = "text_encoder.text_model.embeddings.token_embedding.token_adapter.trainable_tokens_delta"
    save_file({key: rows}, path, {"lora_adapter_metadata": told})
    encode = lambda one: one.encode_from_tokens(one.tokenize("a red fox"))  # noqa: E731
    plain = encode(clip)
    weight = (
        clip.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight.data
    )
    before = weight[tokens].clone()
    weight[tokens] = torch.lerp(before.float(), rows, 0.5).to(weight.dtype)
    wanted = encode(clip)
    weight[tokens] = before
    loaded, report = host.load_and_fix(None, clip, path, 0.0, 0.5, bypass=bypass)[1:]
    assert report.as_dict()["keys"]["placed"] == 1
    assert close(encode(loaded), wanted, 2e-3) and not close(wanted, plain, 1e-2)
    assert torch.equal(encode(clip), plain)


def tiny_clip():
    """A CLIP-L of two narrow layers, as ComfyUI's own loader makes one."""
    import comfy.clip_model
    import comfy.ops
    import comfy.sd
    from tiny_models import meta_state_dict, random_state_dict

    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
        "model_type": "clip_text_model",
        "vocab_size": 49408,
    }
    shapes = meta_state_dict(
        lambda: comfy.clip_model.CLIPTextModel(
            config, torch.float32, "meta", comfy.ops.disable_weight_init
        )
    )
    shapes = {name: like for name, like in shapes.items() if "position_ids" not in name}
    weights = random_state_dict(shapes, seed=5, dtype=torch.float32)
    weights = {
        name: weight * 8 if "embedding" in name else weight for name, weight in weights.items()
    }
    # With the positions in the file, the host would take the configuration of a CLIP of usual size.
    positions = weights.pop("text_model.embeddings.position_embedding.weight")
    options = {"clip_l_model_config": config}
    clip = comfy.sd.load_text_encoder_state_dicts(
        [weights], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION, model_options=options
    )
    clip.cond_stage_model.clip_l.transformer.text_model.embeddings.position_embedding.weight.data.copy_(
        positions
    )
    return clip
