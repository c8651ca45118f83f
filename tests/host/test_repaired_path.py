"""Repaired LoRA Path in the real ComfyUI: what it gives is read rightly by others' code, is made
once and kept, and what cannot be said is refused.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from many_kinds import plain_kinds, turning_kinds
from other_readers import on_flux, products
from safetensors.torch import load_file, save_file
from tiny_models import (
    attention_modules,
    diffusers_lora,
    encoder_lora,
    kohya_lora,
    lora_state_dict,
    simpletuner_broken_lora,
)

HIDDEN = 128
FLUX, WAN, ANY, DIFFUSERS = "Nunchaku FLUX.1", "WanVideoWrapper", "any (native names)", "diffusers"


@pytest.fixture
def kept(comfy, tmp_path_factory):
    """Where repaired files are: in a user directory of the test's own."""
    import folder_paths

    before, folder = folder_paths.get_user_directory(), tmp_path_factory.mktemp("user")
    folder_paths.set_user_directory(str(folder))
    yield folder
    folder_paths.set_user_directory(before)


@pytest.fixture
def node(loras, kept):
    from lora_locksmith.nodes.repaired_path import RepairedLoRAPath

    return RepairedLoRAPath


@pytest.fixture
def give(node):
    """give(file name, reader, ...) -> path, name, WANVIDLORA, report."""
    return lambda name, reader, **inputs: node.execute(name, reader, **inputs).args


def made(kept: Path) -> list[Path]:
    return sorted(path for path in kept.rglob("*") if path.is_file())


# What the readers read


def one_of_three(alpha=2.0):
    """q of one block, k and v of another, a feed-forward's second layer, a block's proj_out."""
    double, single = "transformer.transformer_blocks", "transformer.single_transformer_blocks"
    modules = {
        f"{double}.0.attn.to_q": (HIDDEN, HIDDEN),
        f"{double}.1.attn.add_k_proj": (HIDDEN, HIDDEN),
        f"{double}.1.attn.add_v_proj": (HIDDEN, HIDDEN),
        f"{double}.1.ff.net.0.proj": (4 * HIDDEN, HIDDEN),
        f"{double}.0.ff_context.net.2": (HIDDEN, 4 * HIDDEN),
        f"{single}.1.proj_out": (HIDDEN, 5 * HIDDEN),
        f"{double}.0.norm1.linear": (6 * HIDDEN, HIDDEN),
        "transformer.norm_out.linear": (2 * HIDDEN, HIDDEN),
        "transformer.proj_out": (64, HIDDEN),
    }
    tensors = lora_state_dict(modules, ".lora_A.weight", ".lora_B.weight", ".alpha")
    return {
        name: torch.tensor(alpha) if name.endswith("alpha") else tensor
        for name, tensor in tensors.items()
    }


def with_biases():
    """Biases beside some factors, which their alpha of half the rank halves too."""
    tensors = diffusers_lora(alpha=".alpha")
    tensors = {
        name: tensor / 2 if name.endswith("alpha") else tensor for name, tensor in tensors.items()
    }
    ups = [name for name in tensors if name.endswith("lora_B.weight")][::3]
    return tensors | {
        name.replace("weight", "bias"): torch.randn(tensors[name].shape[0]) for name in ups
    }


FLUX_FILES = {
    "a broken prefix": simpletuner_broken_lora,
    "kohya's names, text encoder": encoder_lora,
    "adapters of several kinds": plain_kinds,
    "one of three": one_of_three,
    "biases": with_biases,
    "diffusers' names": diffusers_lora,
}


def by_diffusers(path) -> dict[str, torch.Tensor]:
    """As nunchaku's to_diffusers asks diffusers, strength folded in."""
    from diffusers.loaders import FluxLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    tensors, alphas = FluxLoraLoaderMixin.lora_state_dict(load_file(path), return_alphas=True)
    assert not alphas
    return convert_unet_state_dict_to_peft(tensors)


def truth_of(patcher, file, host, patched) -> dict[str, torch.Tensor]:
    """weight -> what Load and Fix LoRA changes of it."""
    before = patcher.model.state_dict()
    after = patched(host.load_and_fix(patcher, None, file)[0])
    return {key: weight - before[key].float() for key, weight in after.items()}


def assert_same(deltas, truth, tolerance=1e-5):
    assert deltas.keys() == truth.keys()
    for key, delta in deltas.items():
        assert (delta - truth[key]).norm() <= tolerance * truth[key].norm(), key


@pytest.mark.parametrize("file", FLUX_FILES)
def test_diffusers_reads_for_nunchaku_what_load_and_fix_loads(
    file, give, loras, tiny_flux, host, patched
):
    save_file(FLUX_FILES[file](), loras / "a.safetensors")
    path, _, _, report = give("a.safetensors", FLUX)
    truth = truth_of(tiny_flux(), loras / "a.safetensors", host, patched)
    assert_same(on_flux(products(by_diffusers(path)), tiny_flux()), truth)
    assert ("text encoders are left out" in report) == ("encoder" in file)
    assert ("zeros" in report) == (file in ("one of three", "adapters of several kinds"))


def test_what_nunchaku_looks_up_together_is_there(give, loras):
    save_file(one_of_three(), loras / "a.safetensors")
    modules = {name.rpartition(".lora_")[0] for name in load_file(give("a.safetensors", FLUX)[0])}
    groups = (("attn.to_q", "attn.to_k", "attn.to_v"), ("ff.net.0.proj", "ff.net.2"))
    groups += (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), ("proj_mlp", "proj_out"))
    for block in ("transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.1"):
        for group in groups:
            there = [f"transformer.{block}.{name}" in modules for name in group]
            assert len(set(there)) == 1, (block, group)
    assert len(modules) == 9 + 6


@pytest.fixture(scope="module")
def tiny_wan(comfy):
    """make() -> a ModelPatcher over a Wan of two blocks."""

    def make():
        import comfy.model_detection
        import comfy.model_patcher
        import comfy.ops
        from comfy.ldm.wan.model import WanModel
        from comfy_models import wan
        from tiny_models import meta_state_dict, random_state_dict

        config = wan("t2v", 256, 512, 2)
        config.pop("image_model")
        shapes = meta_state_dict(
            lambda: WanModel(**config, operations=comfy.ops.disable_weight_init)
        )
        weights = random_state_dict(shapes, 5, torch.float32)
        found = comfy.model_detection.model_config_from_unet(weights, "")
        found.set_inference_dtype(torch.float32, None)
        model = found.get_model(weights, "")
        model.load_model_weights(dict(weights), "")
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model.float(), load_device=cpu, offload_device=cpu)

    return make


def wan_lora(start="transformer.", alpha=2.0):
    """diffusers' names, with an alpha that is not the rank."""
    modules = {
        f"{start}blocks.{block}.{name}": (256, 256)
        for block in (0, 1)
        for name in ("attn1.to_q", "attn1.to_out.0", "attn2.to_k")
    }
    modules |= {f"{start}blocks.1.ffn.net.0.proj": (512, 256), f"{start}proj_out": (64, 256)}
    tensors = lora_state_dict(modules, ".lora_A.weight", ".lora_B.weight", ".alpha")
    return {
        name: torch.tensor(alpha) if name.endswith("alpha") else tensor
        for name, tensor in tensors.items()
    }


def lokr_wan():
    """LoKr of musubi's names on one layer."""
    name = "lora_unet_blocks_0_self_attn_v"
    generator = torch.Generator().manual_seed(3)
    return {
        f"{name}.lokr_w1": torch.randn(4, 4, generator=generator),
        f"{name}.lokr_w2": torch.randn(64, 64, generator=generator),
        f"{name}.alpha": torch.tensor(1.0),
    } | wan_lora()


@pytest.mark.parametrize("lora", [wan_lora, lokr_wan])
def test_the_hosts_own_functions_read_for_wanvideowrapper_what_load_and_fix_loads(
    lora, give, loras, tiny_wan, host, patched, by_stock_nodes
):
    save_file(lora(), loras / "a.safetensors")
    path, _, _, _ = give("a.safetensors", WAN)
    assert {name.partition(".")[0] for name in load_file(path)} == {"diffusion_model"}
    before = tiny_wan()
    truth = truth_of(before, loras / "a.safetensors", host, patched)
    stock = patched(by_stock_nodes(tiny_wan(), path, 1.0))
    assert_same({key: new - before.model.state_dict()[key] for key, new in stock.items()}, truth)


def test_diffusers_converts_what_wanvideowrapper_is_given(give, loras, tiny_wan, host, patched):
    """diffusers' own converter of Wan's names, the other way round."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers

    source = {name: tensor for name, tensor in wan_lora().items() if ".proj_out." not in name}
    save_file(source, loras / "a.safetensors")
    path = give("a.safetensors", WAN)[0]
    ours = products(_convert_non_diffusers_wan_lora_to_diffusers(load_file(path)))
    scaled = {
        name: tensor / 2 if name.endswith("lora_A.weight") else tensor  # alpha 2, rank 4
        for name, tensor in source.items()
        if not name.endswith("alpha")
    }
    assert_same(ours, products(scaled))


# What is given as it is


@pytest.mark.parametrize(
    ("reader", "lora"),
    [(FLUX, diffusers_lora), (FLUX, kohya_lora), (DIFFUSERS, diffusers_lora), (ANY, kohya_lora)],
)
def test_a_file_that_is_read_as_it_is_is_given_itself(reader, lora, give, loras, kept):
    folder = loras / "my loras" / "\u98ce\u683c"
    folder.mkdir(parents=True)
    save_file(lora(), folder / "a b.safetensors")
    name = os.path.join("my loras", "\u98ce\u683c", "a b.safetensors")
    path, given, _, report = give(name, reader)
    assert (path, given) == (str(folder / "a b.safetensors"), name)
    assert "as it is" in report and not made(kept)


def test_a_strength_that_stands_in_the_header_alone_is_no_file_to_give_as_it_is(give, loras):
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"]).to_dict()
    text = '{"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.target_modules": ["x"]}'
    assert config["lora_alpha"] == 8
    save_file(diffusers_lora(), loras / "a.safetensors", {"lora_adapter_metadata": text})
    path = give("a.safetensors", FLUX)[0]
    before, after = load_file(loras / "a.safetensors"), load_file(path)
    ups = [name for name in before if name.endswith("lora_B.weight")]
    assert ups and all(torch.equal(after[name], before[name] * 2) for name in ups)


def test_keys_that_wanvideowrapper_takes_for_something_else_are_renamed(give, loras):
    name = "base_model.model.blocks.0.cross_attn.k"
    modules = {name: (256, 256), "base_model.model.blocks.1.ffn.0": (512, 256)}
    save_file(lora_state_dict(modules, ".lora_A.weight", ".lora_B.weight"), loras / "a.safetensors")
    tensors = load_file(give("a.safetensors", WAN)[0])
    assert "diffusion_model.blocks.0.cross_attn.k.lora_down.weight" in tensors
    assert not any(key.startswith("base_model") for key in tensors)


# The folder


def test_a_second_run_writes_nothing_and_a_changed_file_is_written_anew(give, loras, kept):
    save_file(simpletuner_broken_lora(), loras / "a.safetensors")
    first, _, _, _ = give("a.safetensors", FLUX)
    (file,) = made(kept)
    before = file.stat().st_ino
    again, _, _, report = give("a.safetensors", FLUX)
    assert first == again == str(file) and file.stat().st_ino == before
    assert "by an earlier run" in report
    save_file(simpletuner_broken_lora(seed=12), loras / "a.safetensors")
    other = give("a.safetensors", FLUX)[0]
    assert other != first and len(made(kept)) == 2
    assert not torch.equal(*(next(iter(load_file(path).values())) for path in (first, other)))


def test_the_host_finds_it_by_its_name_and_lists_it_nowhere(give, loras):
    import folder_paths

    (loras / "a b").mkdir()
    save_file(simpletuner_broken_lora(), loras / "a b" / "\u6d4b\u8bd5 1.5.safetensors")
    path, name, _, _ = give(os.path.join("a b", "\u6d4b\u8bd5 1.5.safetensors"), FLUX)
    assert folder_paths.get_full_path_or_raise("loras", name) == path
    assert "\u6d4b\u8bd5 1.5" in Path(path).name
    folder_paths.filename_list_cache.pop("loras", None)
    assert folder_paths.get_filename_list("loras") == [
        os.path.join("a b", "\u6d4b\u8bd5 1.5.safetensors")
    ]


def test_two_runs_at_once_give_one_whole_file(give, loras, kept):
    save_file(simpletuner_broken_lora(), loras / "a.safetensors")
    start, paths, faults = threading.Barrier(3), [], []

    def run():
        start.wait()
        try:
            paths.append(give("a.safetensors", FLUX)[0])
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and len(set(paths)) == 1 and [str(path) for path in made(kept)] == [paths[0]]
    assert len(load_file(paths[0])) == 44


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_what_is_damaged_in_the_folder_is_made_again(damage, give, loras, kept):
    save_file(simpletuner_broken_lora(), loras / "a.safetensors")
    path = Path(give("a.safetensors", FLUX)[0])
    whole = path.read_bytes()
    if damage == "other":
        save_file(diffusers_lora(), path)
    else:
        path.write_bytes(whole[: len(whole) // 2 if damage == "cut" else 0])
    assert give("a.safetensors", FLUX)[0] == str(path) and path.read_bytes() == whole


def test_the_node_runs_again_where_its_file_is_gone(node, loras, kept):
    save_file(simpletuner_broken_lora(), loras / "a.safetensors")
    wish = {"lora_name": "a.safetensors", "reader": FLUX}
    before = node.fingerprint_inputs(**wish)
    node.execute("a.safetensors", FLUX)
    assert node.fingerprint_inputs(**wish) == before
    made(kept)[0].unlink()
    assert node.fingerprint_inputs(**wish) != before


def test_old_files_go_and_those_just_given_stay(give, loras, kept):
    from lora_locksmith.nodes import repaired

    save_file(simpletuner_broken_lora(), loras / "a.safetensors")
    given = Path(give("a.safetensors", FLUX)[0])
    os.utime(given, (1, 1))
    old = [given.with_name(f"{number}.safetensors") for number in range(4)]
    for number, path in enumerate(old):
        path.write_bytes(b"x" * 10)
        os.utime(path, (100 + number, 100 + number))
    beside = given.with_name("note.txt")
    beside.write_text("mine")
    repaired.sweep(given.parent, max_files=2)
    assert set(made(kept)) == {given, beside, *old[2:]}
    repaired.sweep(given.parent, max_bytes=15)
    assert set(made(kept)) == {given, beside, old[3]}


def test_a_folder_that_cannot_be_written_is_named(give, loras, tmp_path_factory):
    import folder_paths

    place = tmp_path_factory.mktemp("x") / "file"
    place.write_text("no folder")
    folder_paths.set_user_directory(str(place))
    save_file(simpletuner_broken_lora(), loras / "a.safetensors")
    with pytest.raises(RuntimeError, match=r"cannot hold the repaired file.*--user-directory"):
        give("a.safetensors", FLUX)
    assert place.read_text() == "no folder"


@pytest.mark.parametrize("name", ["con", "..", " . ", "a\u202eb", "x" * 240, "q?*<>|"])
def test_hostile_names_become_names(name, comfy):
    from lora_locksmith.files.atomic import is_file_name
    from lora_locksmith.nodes.repaired import MAX_STEM, _stem

    assert is_file_name(_stem(name)) and len(_stem(name).encode()) <= MAX_STEM
    assert "\u202e" not in _stem(name)


# What is refused


@pytest.mark.parametrize(
    ("reader", "lora", "said"),
    [
        (FLUX, turning_kinds, "Nunchaku FLUX.1 has no name for DoRA magnitudes"),
        (WAN, diffusers_lora, "WanVideoWrapper reads LoRAs for Wan only; this one is for FLUX.1"),
        (FLUX, wan_lora, "reads LoRAs for FLUX.1 only; this one is for Wan"),
    ],
)
def test_what_a_reader_cannot_be_given_is_refused(reader, lora, said, give, loras, kept):
    save_file(lora(), loras / "a.safetensors")
    with pytest.raises(RuntimeError) as fault:
        give("a.safetensors", reader)
    assert said in str(fault.value) and "Load and Fix LoRA" in str(fault.value)
    assert "a.safetensors" in str(fault.value) and not made(kept)


def loha_wan():
    """LoHa on one layer, which no factors of a small rank are."""
    generator, name = torch.Generator().manual_seed(4), "lora_unet_blocks_1_ffn_0"
    tensors = {f"{name}.alpha": torch.tensor(24.0)}
    for half in "12":
        tensors[f"{name}.hada_w{half}_a"] = torch.randn(512, 24, generator=generator) * 0.1
        tensors[f"{name}.hada_w{half}_b"] = torch.randn(24, 256, generator=generator) * 0.1
    return tensors


def test_what_is_no_product_of_factors_is_a_full_matrix_if_that_is_not_too_large(
    give, loras, tiny_wan, host, patched, by_stock_nodes, monkeypatch
):
    from lora_locksmith.lora.rewrite import for_reader

    save_file(loha_wan(), loras / "a.safetensors")
    path, _, _, report = give("a.safetensors", WAN)
    assert list(load_file(path)) == ["diffusion_model.blocks.1.ffn.0.diff"]
    assert "full matri" in report
    before = tiny_wan()
    truth = truth_of(before, loras / "a.safetensors", host, patched)
    stock = patched(by_stock_nodes(tiny_wan(), path, 1.0))
    assert_same({key: new - before.model.state_dict()[key] for key, new in stock.items()}, truth)
    for name in ("MAX_FULL_BYTES", "MAX_GROWTH"):
        monkeypatch.setattr(for_reader, name, 0.5)
    with pytest.raises(RuntimeError, match="as full matrices the file would have"):
        give("a.safetensors", WAN)


def test_a_file_of_no_model_that_is_known_is_refused(give, loras):
    tensors = lora_state_dict({"somewhere.else": (8, 8)}, ".lora_A.weight", ".lora_B.weight")
    save_file(tensors, loras / "a.safetensors")
    with pytest.raises(RuntimeError, match="most keys of this one have no place there"):
        give("a.safetensors", FLUX)
    with pytest.raises(RuntimeError, match="could not identify the base model"):
        give("a.safetensors", ANY)


def test_names_that_would_differ_for_another_model_that_fits_are_refused(give, loras):
    """q and k of FLUX.1 and of Qwen-Image have the same names in diffusers, and others in ComfyUI;
    a reader of one model settles it.
    """
    start = "transformer.base_model.model.transformer_blocks"
    modules = {f"{start}.{n}.attn.{to}": (3072, 3072) for n in range(2) for to in ("to_q", "to_k")}
    tensors = lora_state_dict(modules, ".lora.down.weight", ".lora.up.weight", rank=2)
    save_file(tensors, loras / "a.safetensors")
    with pytest.raises(RuntimeError, match="the keys would differ for"):
        give("a.safetensors", ANY)
    for reader in (FLUX, "Nunchaku Qwen-Image"):
        names = load_file(give("a.safetensors", reader)[0])
        assert len(names) == 12 and any("to_v" in name for name in names)


def test_a_file_for_text_encoders_alone_is_refused(give, loras):
    tensors = {name: tensor for name, tensor in encoder_lora().items() if "_te1_" in name}
    save_file(tensors, loras / "a.safetensors")
    with pytest.raises(RuntimeError, match=r"a\.safetensors"):
        give("a.safetensors", FLUX)


def test_keys_without_a_place_are_refused_or_left_out_as_asked(give, loras):
    lora = simpletuner_broken_lora() | {"transformer.nowhere.lora_A.weight": torch.randn(4, 128)}
    save_file(lora, loras / "a.safetensors")
    with pytest.raises(RuntimeError, match=r"nowhere.*on_unmatched"):
        give("a.safetensors", FLUX)
    path, _, _, report = give("a.safetensors", FLUX, on_unmatched="report")
    assert len(load_file(path)) == 44 and "transformer.nowhere.lora_A.weight" in report


def test_a_reader_that_is_none_is_told_with_those_there_are(give, loras):
    save_file(diffusers_lora(), loras / "a.safetensors")
    with pytest.raises(RuntimeError, match=r"Somebody.*WanVideoWrapper"):
        give("a.safetensors", "Somebody")


@pytest.mark.parametrize("content", [b"", b"not a file", b"\xff" * 64])
def test_a_broken_file_is_named(content, give, loras, kept):
    (loras / "a.safetensors").write_bytes(content)
    with pytest.raises(RuntimeError, match=r"a\.safetensors"):
        give("a.safetensors", FLUX)
    assert not made(kept)


def test_numbers_that_are_none_are_refused(give, loras, kept):
    lora = simpletuner_broken_lora()
    next(iter(lora.values()))[0, 0] = float("nan")
    save_file(lora, loras / "a.safetensors")
    with pytest.raises(RuntimeError, match="NaN"):
        give("a.safetensors", FLUX)
    assert not made(kept)


# The list for WanVideoWrapper


def test_the_list_is_as_wanvideowrapper_makes_it(give, loras):
    (loras / "sub").mkdir()
    save_file(wan_lora(), loras / "sub" / "a.b.safetensors")
    before = [{"path": "x", "strength": 1.0, "name": "x", "blocks": {}}]
    chosen = {"selected_blocks": {"blocks.0.": True}, "layer_filter": ["ffn"]}
    path, name, loras_given, _ = give(
        os.path.join("sub", "a.b.safetensors"),
        WAN,
        strength=0.123456,
        prev_lora=before,
        blocks=chosen,
        merge_loras=False,
        low_mem_load=True,
    )
    assert (
        len(before) == 1
        and loras_given[0] is before[0]
        and loras_given[1]
        == {
            "path": path,
            "strength": 0.1235,
            "name": os.path.splitext(name)[0],
            "blocks": {"blocks.0.": True},
            "layer_filter": ["ffn"],
            "low_mem_load": False,
            "merge_loras": False,
        }
    )
    path = os.path.join("sub", "a.b.safetensors")
    assert give(path, WAN, strength=0.0, prev_lora=before)[2] == before
    assert give(path, WAN, strength=[0.5, 1.0])[2][0]["strength"] == [0.5, 1.0]
    assert give(path, WAN)[2][0]["blocks"] == {}


def test_attention_of_every_block_is_there(give, loras):
    """The tests' own file has what it says: 22 modules."""
    save_file(simpletuner_broken_lora(), loras / "a.safetensors")
    assert len(attention_modules()) * 2 == len(load_file(give("a.safetensors", FLUX)[0]))
