"""What is written in another dialect, judged by those who read it: the stock loader, diffusers,
PEFT, and our own plan.
"""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lora_locksmith.adapters.spec import AdapterError
from lora_locksmith.files.hashes import file_hashes
from lora_locksmith.files.header import adapter_config_beside, read_header
from lora_locksmith.lora.from_plan import spec_of
from lora_locksmith.lora.io.lora_model import Native, native_tensors
from lora_locksmith.lora.io.mapped import map_tensors
from lora_locksmith.lora.io.writer import write_as, write_lora
from lora_locksmith.lora.math.apply import patched_weight
from lora_locksmith.lora.math.low_rank import Factors, Kronecker
from lora_locksmith.lora.not_finite import NotFinite
from lora_locksmith.lora.rewrite.convert import convert
from lora_locksmith.lora.rewrite.rename import Refused, writable
from lora_locksmith.lora.rewrite.verify import VerificationError, check_same
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network
from safetensors.torch import load_file, save_file
from trainers import EVERYTHING, trained_by_peft, weights_by_peft
from truth import as_native, unet_twin

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
H = 128
PREFIX = "diffusion_model."
ROOT = Path(__file__).resolve().parents[2]


def target_model_of(native):
    weights = native.model.state_dict()
    return TargetModel(
        [
            denoiser_network(
                {
                    name: tuple(weight.shape)
                    for name, weight in weights.items()
                    if name.startswith(PREFIX)
                }
            )
        ]
    )


@pytest.fixture(scope="module")
def target_model(both):
    return target_model_of(both.native)


@pytest.fixture(scope="module")
def both_unets(comfy):
    return unet_twin()


@pytest.fixture
def planned(target_model):
    return lambda tensors, metadata=None, config=None: make_plan(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        metadata or {},
        target_model,
        config_beside=config,
    )


@pytest.fixture(scope="module")
def stock(comfy):
    """stock(native, path) -> the model's weights under the file, by the stock loader alone; demands
    that it reads every key.
    """
    import comfy.lora
    import comfy.sd
    import comfy.utils

    def load(native, path):
        tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
        loaded = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(native.model, {}))
        read = {key for patch in loaded.values() for key in getattr(patch, "loaded_keys", ())}
        assert {
            key
            for key in tensors
            if not key.endswith((".alpha", ".diff", ".diff_b", ".dora_scale"))
        } <= read
        patcher = comfy.sd.load_lora_for_models(native, None, tensors, 1.0, 0)[0]
        weights = {name: weight.clone() for name, weight in native.model.state_dict().items()}
        for key in patcher.patches:
            weights[key] = comfy.lora.calculate_weight(
                patcher.patches[key], weights[key].float(), key
            )
        return weights

    return load


def assert_same(actual, expected, tolerance=1e-5):
    for name, weight in expected.items():
        error = (actual[name].double() - weight.double()).norm() / (weight.double().norm() + 1e-6)
        assert error < tolerance, f"{name}: {error:.1e}"


def read(path, target_model, config=None):
    header = read_header(path)
    return (
        make_plan(header.tensors, header.metadata, target_model, config_beside=config),
        map_tensors(path, header),
        header,
    )


def lora(module, out, inner, rank=4, alpha=None, ends=("lora_down.weight", "lora_up.weight")):
    made = {
        f"{module}.{ends[0]}": torch.randn(rank, inner) * 0.2,
        f"{module}.{ends[1]}": torch.randn(out, rank) * 0.2,
    }
    return made | ({} if alpha is None else {f"{module}.alpha": torch.tensor(float(alpha))})


def kohya_flux(alpha=2):
    """A LoRA on fused and on whole modules, and on two of which one's diffusers name ends with the
    other's.
    """
    made = {}
    for module, out, inner in (
        ("double_blocks_0_img_attn_qkv", 3 * H, H),
        ("double_blocks_1_txt_attn_qkv", 3 * H, H),
        ("double_blocks_0_img_mlp_0", 4 * H, H),
        ("single_blocks_0_linear1", 7 * H, H),
        ("single_blocks_1_linear2", H, 5 * H),
        ("final_layer_linear", 64, H),
        ("final_layer_adaLN_modulation_1", 2 * H, H),
    ):
        made |= lora(f"lora_unet_{module}", out, inner, 4, alpha)
    return made


PEFT_SETTINGS = {
    "alpha": {"r": 4, "lora_alpha": 10},
    "rslora": {"r": 4, "lora_alpha": 10, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 10,
        "rank_pattern": {"attn.to_q": 2},
        "alpha_pattern": {"attn.to_k": 3, "proj_out": 7},
    },
    "bias": {"r": 4, "lora_alpha": 10, "lora_bias": True},
}


@pytest.mark.parametrize("dialect", ["comfyui", "kohya"])
@pytest.mark.parametrize("settings", PEFT_SETTINGS.values(), ids=PEFT_SETTINGS)
def test_the_stock_loader_makes_of_it_what_peft_trained(
    both, target_model, stock, tmp_path, settings, dialect
):
    from peft import LoraConfig

    model = trained_by_peft(both.twin, LoraConfig(target_modules=EVERYTHING, **settings))
    model.save_pretrained(tmp_path)
    source = tmp_path / "adapter_model.safetensors"
    plan, tensors, _ = read(source, target_model, adapter_config_beside(source))
    (tmp_path / "new").mkdir()
    written = write_as(plan, tensors, tmp_path / "new" / "lora.safetensors", dialect)
    assert written.computed and written.difference < 1e-6
    assert_same(stock(both.native, written.path), as_native(both, weights_by_peft(model)))


@pytest.mark.parametrize("dialect", ["diffusers", "simpletuner"])
def test_diffusers_loads_it_whole_and_the_same(both, planned, stock, tmp_path, dialect, caplog):
    tensors = kohya_flux()
    save_file(tensors, tmp_path / "kohya.safetensors")
    expected = stock(both.native, tmp_path / "kohya.safetensors")
    written = write_as(planned(tensors), tensors, tmp_path / "new.safetensors", dialect)
    twin = copy.deepcopy(both.twin)
    twin.load_lora_adapter(str(tmp_path), weight_name="new.safetensors", prefix="transformer")
    assert not [
        record
        for record in caplog.records
        if "missing" in record.message or "unexpected" in record.message
    ]
    held = {name for name, _ in twin.named_parameters() if ".lora_" in name}
    assert len(held) == len(load_file(written.path))
    twin.fuse_lora()
    twin.unload_lora()
    assert_same(as_native(both, twin.state_dict()), expected)


def test_the_pipeline_of_diffusers_loads_it(both, planned, tmp_path):
    from diffusers import FluxPipeline

    tensors = kohya_flux()
    write_as(planned(tensors), tensors, tmp_path / "new.safetensors", "diffusers")
    state_dict, metadata = FluxPipeline.lora_state_dict(
        tmp_path, weight_name="new.safetensors", return_lora_metadata=True
    )
    assert len(state_dict) == len(load_file(tmp_path / "new.safetensors"))
    assert metadata["transformer.r"] == 4 and metadata["transformer.lora_alpha"] == 2


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_loads_it_with_no_key_missing_and_none_too_many(both, planned, tmp_path, kind):
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    tensors = kohya_flux()
    if kind == "dora":
        for key in [key for key in tensors if key.endswith("lora_up.weight")]:
            tensors[key.replace("lora_up.weight", "dora_scale")] = (
                torch.rand(tensors[key].shape[0], 1) + 0.5
            )
    plan = planned(tensors)
    written = write_as(plan, tensors, tmp_path / "new.safetensors", "peft")
    assert written.path == tmp_path / "new" / "adapter_model.safetensors"
    model = get_peft_model(
        copy.deepcopy(both.twin), LoraConfig.from_pretrained(written.path.parent)
    )
    result = set_peft_model_state_dict(model, load_file(written.path))
    assert not result.unexpected_keys and not [key for key in result.missing_keys if "lora_" in key]
    expected = {name: weight.clone() for name, weight in both.native.model.state_dict().items()}
    for adapter in plan.adapters:
        roles = {role: tensors[key] for role, key in adapter.roles.items()}
        weight = adapter.target.slices[0][0]
        expected[weight] = patched_weight(spec_of(adapter, roles), roles, expected[weight], 1.0)
    assert_same(as_native(both, model.merge_and_unload().state_dict()), expected)


def test_convolutions_reach_the_unet_of_diffusers(both_unets, stock, tmp_path):
    tensors = lora("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", 32, 32, 4, 2)
    for name, (out, inner, size) in {
        "input_blocks_1_0_in_layers_2": (32, 32, 3),
        "input_blocks_4_0_skip_connection": (64, 32, 1),
    }.items():
        down, up = torch.randn(4, inner, size, size) * 0.2, torch.randn(out, 4, 1, 1) * 0.2
        tensors |= {
            f"lora_unet_{name}.lora_down.weight": down,
            f"lora_unet_{name}.lora_up.weight": up,
        }
    tucker = "lora_unet_input_blocks_2_0_in_layers_2"
    tensors |= {
        f"{tucker}.lora_down.weight": torch.randn(4, 32, 1, 1) * 0.4,
        f"{tucker}.lora_mid.weight": torch.randn(4, 4, 3, 3) * 0.4,
        f"{tucker}.lora_up.weight": torch.randn(32, 4, 1, 1) * 0.4,
    }
    save_file(tensors, tmp_path / "kohya.safetensors")
    expected = stock(both_unets.native, tmp_path / "kohya.safetensors")
    plan, mapped, _ = read(tmp_path / "kohya.safetensors", target_model_of(both_unets.native))
    write_as(plan, mapped, tmp_path / "new.safetensors", "diffusers")
    twin = copy.deepcopy(both_unets.twin)
    twin.load_lora_adapter(str(tmp_path), weight_name="new.safetensors", prefix="unet")
    twin.fuse_lora()
    twin.unload_lora()
    assert_same(as_native(both_unets, twin.state_dict()), expected)
    kohya = convert(plan, mapped, "kohya").specs
    assert "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight" in kohya
    assert "lora_unet_down_blocks_0_resnets_1_conv1.lora_mid.weight" in kohya


def test_split_and_fused_again_it_is_the_file_it_was(target_model, planned, tmp_path):
    tensors = kohya_flux()
    write_as(planned(tensors), tensors, tmp_path / "split.safetensors", "diffusers")
    plan, mapped, _ = read(tmp_path / "split.safetensors", target_model)
    again = convert(plan, mapped, "kohya").tensors()
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_fused_blocks_lose_their_ranks_again(target_model, planned, tmp_path):
    ends, tensors = ("lora_A.weight", "lora_B.weight"), {}
    for rank, name in ((2, "to_q"), (4, "to_k"), (3, "to_v")):
        tensors |= lora(f"transformer.transformer_blocks.0.attn.{name}", H, H, rank, ends=ends)
    write_as(planned(tensors), tensors, tmp_path / "fused.safetensors", "kohya")
    plan, mapped, header = read(tmp_path / "fused.safetensors", target_model)
    assert header.tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"].shape == (
        3 * H,
        9,
    )
    again = convert(plan, mapped, "diffusers").tensors()
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_unequal_alphas_and_a_part_that_is_missing(both, planned, stock, tmp_path):
    module = "lora_transformer_single_transformer_blocks_0"
    tensors = (
        lora(f"{module}_attn_to_q", H, H, 4, 3)
        | lora(f"{module}_attn_to_v", H, H, 8, 1)
        | lora(f"{module}_proj_mlp", 4 * H, H, 2, 5)
    )
    save_file(tensors, tmp_path / "split.safetensors")
    written = write_as(planned(tensors), tensors, tmp_path / "fused.safetensors", "comfyui")
    assert len(load_file(written.path)) == 3
    assert_same(
        stock(both.native, written.path), stock(both.native, tmp_path / "split.safetensors"), 1e-6
    )


def test_kinds_that_only_change_their_names_keep_every_bit(planned):
    module = "lora_unet_double_blocks_0_img_mlp_0"
    files = {
        "lokr": {
            "lokr_w1": torch.randn(8, 4),
            "lokr_w2_a": torch.randn(64, 4),
            "lokr_w2_b": torch.randn(4, 32),
            "alpha": torch.ones(()),
        },
        "loha": {
            f"hada_w{half}_{side}": torch.randn(*((4 * H, 3) if side == "a" else (3, H)))
            for half in "12"
            for side in "ab"
        },
        "oft": {"oft_blocks": torch.randn(16, 32, 32), "alpha": torch.tensor(0.1)},
        "glora": {
            "a1.weight": torch.randn(H, 4),
            "a2.weight": torch.randn(4, H),
            "b1.weight": torch.randn(4 * H, 4),
            "b2.weight": torch.randn(4, H),
        },
        "full": {"diff": torch.randn(4 * H, H), "diff_b": torch.randn(4 * H)},
    }
    for kind, roles in files.items():
        tensors = {f"{module}.{role}": tensor for role, tensor in roles.items()}
        made = convert(planned(tensors), tensors, "comfyui").tensors()
        told = {"loha": 3.0, "glora": 4.0}  # alpha = rank, which LyCORIS' reader demands
        roles |= {"alpha": torch.tensor(told[kind])} if kind in told else {}
        expected = {
            f"diffusion_model.double_blocks.0.img_mlp.0.{role}": tensor
            for role, tensor in roles.items()
        }
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("kind", ["lokr", "loha"])
def test_products_are_cut_or_multiplied_out_exactly(planned, target_model, tmp_path, kind):
    if kind == "lokr":
        roles = {
            "lokr_w1": torch.randn(12, 4),
            "lokr_w2_a": torch.randn(32, 2),
            "lokr_w2_b": torch.randn(2, 32),
            "alpha": torch.tensor(4.0),
        }
    else:
        roles = {
            f"hada_w{half}_{side}": torch.randn(*((3 * H, 3) if side == "a" else (3, H)))
            for half in "12"
            for side in "ab"
        }
    tensors = {
        f"lora_unet_double_blocks_0_img_attn_qkv.{role}": tensor for role, tensor in roles.items()
    }
    plan = planned(tensors)
    for dialect in ("lycoris", "diffusers"):
        written = write_as(plan, tensors, tmp_path / f"{dialect}.safetensors", dialect)
        made = load_file(written.path)
        assert written.difference < 1e-5
        assert any(".lora_" in key for key in made) == (dialect == "diffusers")
        assert sum("to_k" in key for key in made) == (
            (4 if kind == "lokr" else 5) if dialect == "lycoris" else 2
        )


def test_two_adapters_on_one_module_become_one_sum(both, planned, stock, tmp_path):
    name = "transformer.transformer_blocks.0.attn.to_out.0"
    tensors = {
        f"{name}.lora_{side}.{adapter}.weight": (
            torch.randn(*((3, H) if side == "A" else (H, 3))) * 0.2
        )
        for adapter in ("one", "two")
        for side in "AB"
    }
    plan = planned(tensors)
    assert len(plan.adapters) == 2
    written = write_as(plan, tensors, tmp_path / "sum.safetensors", "comfyui")
    weight = "diffusion_model.double_blocks.0.img_attn.proj.weight"
    expected = sum(
        tensors[f"{name}.lora_B.{adapter}.weight"] @ tensors[f"{name}.lora_A.{adapter}.weight"]
        for adapter in ("one", "two")
    )
    change = stock(both.native, written.path)[weight] - both.native.model.state_dict()[weight]
    assert torch.allclose(change, expected, atol=1e-5)


def test_full_products_that_are_fused_become_full_matrices(both, planned, stock, tmp_path):
    tensors = {}
    for part in ("to_q", "to_v"):
        module = f"lycoris_transformer_blocks_0_attn_{part}"
        tensors |= {
            f"{module}.lokr_w1": torch.randn(8, 8),
            f"{module}.lokr_w2": torch.randn(16, 16),
        }
    written = write_as(planned(tensors), tensors, tmp_path / "full.safetensors", "comfyui")
    assert (written.renamed, written.computed, written.full) == (0, 0, 1)
    weight = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    change = stock(both.native, written.path)[weight] - both.native.model.state_dict()[weight]
    modules = [f"lycoris_transformer_blocks_0_attn_{part}" for part in ("to_q", "to_v")]
    expected = [
        torch.kron(tensors[f"{module}.lokr_w1"], tensors[f"{module}.lokr_w2"]) for module in modules
    ]
    assert torch.allclose(
        change, torch.cat((expected[0], torch.zeros(H, H), expected[1])), atol=1e-4
    )


@pytest.mark.parametrize("missing", [False, True])
def test_magnitudes_are_fused_with_their_rows_or_refused(planned, target_model, tmp_path, missing):
    tensors = {}
    for part in ("to_q", "to_k", "to_v"):
        module = f"transformer.transformer_blocks.0.attn.{part}"
        tensors |= lora(module, H, H, 4, ends=("lora_A.weight", "lora_B.weight"))
        tensors[f"{module}.lora_magnitude_vector"] = torch.rand(H) + 0.5
    if missing:
        del tensors["transformer.transformer_blocks.0.attn.to_k.lora_magnitude_vector"]
        with pytest.raises(Refused, match="magnitudes"):
            write_as(planned(tensors), tensors, tmp_path / "new.safetensors", "kohya")
        return
    made = load_file(
        write_as(planned(tensors), tensors, tmp_path / "new.safetensors", "kohya").path
    )
    joined = torch.cat(
        [
            tensors[f"transformer.transformer_blocks.0.attn.{part}.lora_magnitude_vector"]
            for part in ("to_q", "to_k", "to_v")
        ]
    )
    assert torch.equal(made["lora_unet_double_blocks_0_img_attn_qkv.dora_scale"], joined[:, None])
    made["lora_unet_double_blocks_0_img_attn_qkv.dora_scale"][200] *= 1.01
    again = make_plan({key: tuple(tensor.shape) for key, tensor in made.items()}, {}, target_model)
    with pytest.raises(VerificationError, match="magnitudes differ"):
        check_same(planned(tensors), tensors.__getitem__, again, made.__getitem__)


HOSTILE = {
    "alpha is a matrix": {"alpha": (2, 2)},
    "ranks differ": {"lora_up.weight": (3 * H, 5)},
    "empty": {"lora_down.weight": (0, H)},
    "vectors": {"lora_down.weight": (4,), "lora_up.weight": (4,)},
}


@pytest.mark.parametrize("shapes", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("dialect", ["diffusers", "comfyui"])
def test_tensors_that_do_not_fit_are_refused_and_never_raise_anything_else(
    planned, tmp_path, shapes, dialect
):
    shapes = {"lora_down.weight": (4, H), "lora_up.weight": (3 * H, 4)} | shapes
    tensors = {
        f"lora_unet_double_blocks_0_img_attn_qkv.{role}": torch.randn(shape)
        for role, shape in shapes.items()
    }
    with pytest.raises((Refused, VerificationError)):
        write_as(planned(tensors), tensors, tmp_path / "new.safetensors", dialect)
    assert not list(tmp_path.iterdir())


REFUSED = {
    "magnitudes of another size": (
        {"lora_down.weight": (4, H), "lora_up.weight": (4 * H, 4), "dora_scale": (7, 1)},
        "diffusers",
        "per input",
    ),
    "rotation": ({"oft_blocks": (16, 32, 32)}, "diffusers", "OFT"),
    "full difference": ({"diff": (4 * H, H)}, "peft", "diff"),
    "full LoKr": ({"lokr_w1": (8, 8), "lokr_w2": (64, 16)}, "diffusers", "lokr"),
    "DoRA per input": (
        {"lora_down.weight": (4, H), "lora_up.weight": (4 * H, 4), "dora_scale": (1, H)},
        "diffusers",
        "per input",
    ),
    "unknown module": (
        {
            "lora_down.weight": (4, H),
            "lora_up.weight": (4 * H, 4),
            "nowhere.lora_up.weight": (4, 4),
        },
        "comfyui",
        "no place",
    ),
}


@pytest.mark.parametrize(("shapes", "dialect", "word"), REFUSED.values(), ids=REFUSED)
def test_what_a_dialect_cannot_say_is_refused_before_anything_is_written(
    planned, tmp_path, shapes, dialect, word
):
    tensors = {
        f"lora_unet_double_blocks_0_img_mlp_0.{role}": torch.randn(shape)
        for role, shape in shapes.items()
    }
    with pytest.raises(Refused, match=word):
        write_as(planned(tensors), tensors, tmp_path / "new.safetensors", dialect)
    assert not list(tmp_path.iterdir())


def test_a_dialect_nobody_knows(planned):
    with pytest.raises(Refused, match="kohya"):
        convert(planned(kohya_flux()), kohya_flux(), "esperanto")


@pytest.mark.parametrize("dialect", writable())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dialect_in_every_dtype(planned, tmp_path, dialect, dtype):
    tensors = kohya_flux()
    written = write_as(
        planned(tensors), tensors, tmp_path / "new.safetensors", dialect, dtype=dtype
    )
    assert {
        tensor.dtype for key, tensor in load_file(written.path).items() if not key.endswith("alpha")
    } == {dtype}
    assert (written.difference == 0) == (
        dtype == torch.float32 and dialect != "ai_toolkit"
    ) or written.difference < 1e-2


def test_a_file_that_does_not_do_the_same_is_not_verified(planned, target_model, tmp_path):
    tensors = kohya_flux()
    plan = planned(tensors)
    good = write_as(plan, tensors, tmp_path / "new.safetensors", "diffusers").path
    for change in (
        lambda made, key: made[key].mul_(1.001),
        lambda made, key: made.pop(key.replace("lora_B", "lora_A")) is made.pop(key),
    ):
        made = load_file(good)
        change(made, "transformer.transformer_blocks.0.attn.to_k.lora_B.weight")
        again = make_plan(
            {key: tuple(tensor.shape) for key, tensor in made.items()},
            read_header(good).metadata,
            target_model,
        )
        with pytest.raises(VerificationError, match=r"double_blocks\.0\.img_attn\.qkv"):
            check_same(plan, tensors.__getitem__, again, made.__getitem__)
    made = load_file(good)
    again = make_plan({key: tuple(tensor.shape) for key, tensor in made.items()}, {}, target_model)
    with pytest.raises(VerificationError, match="differs"):  # the same tensors without their alphas
        check_same(plan, tensors.__getitem__, again, made.__getitem__)


def test_numbers_that_are_none_are_refused_by_name(planned, tmp_path):
    tensors = kohya_flux()
    tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"][5, 1] = float("nan")
    for dialect in ("diffusers", "comfyui"):
        with pytest.raises(NotFinite, match=r"img_attn_qkv\.lora_up\.weight holds NaN"):
            write_as(planned(tensors), tensors, tmp_path / "new.safetensors", dialect)
    assert not list(tmp_path.iterdir())


def test_metadata_are_kept_and_what_would_be_wrong_is_not(planned, tmp_path):
    tensors = kohya_flux()
    source = {
        "ss_tag_frequency": '{"a": {"cat \\u00e9": 3}}',
        "ss_network_dim": "64",
        "ss_network_alpha": "1",
        "sshs_model_hash": "beef",
        "sshs_legacy_hash": "beef",
        "modelspec.hash_sha256": "0xbeef",
        "lora_adapter_metadata": "{}",
        "odd": "\ud800",
    }
    written = write_as(
        planned(tensors, source),
        tensors,
        tmp_path / "new.safetensors",
        "diffusers",
        provenance={"locksmith.source": "a"},
    )
    metadata, hashes = read_header(written.path).metadata, file_hashes(written.path)
    assert metadata["ss_tag_frequency"] == source["ss_tag_frequency"]
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2")
    assert (
        metadata["sshs_model_hash"] == hashes.sshs_model_hash
        and metadata["modelspec.hash_sha256"] == "0x" + hashes.sshs_model_hash
    )
    assert "sshs_legacy_hash" not in metadata
    assert metadata["locksmith.dialect"] == "diffusers" and metadata["locksmith.source"] == "a"
    assert json.loads(metadata["lora_adapter_metadata"])["transformer.lora_alpha"] == 2


def test_an_sd_scripts_split_qkv_file_is_corrected_once(planned, target_model, tmp_path):
    tensors = lora("lora_unet_double_blocks_0_img_attn_qkv", 3 * H, H, 12, 4)
    metadata = {
        "ss_network_args": '{"split_qkv": "True", "verbose": "1"}',
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
    }
    written = write_as(planned(tensors, metadata), tensors, tmp_path / "new.safetensors", "comfyui")
    assert load_file(written.path)["diffusion_model.double_blocks.0.img_attn.qkv.alpha"] == 12
    assert json.loads(read_header(written.path).metadata["ss_network_args"]) == {"verbose": "1"}


def test_a_file_is_never_replaced_unless_told_and_never_by_half(tmp_path):
    path = write_lora(
        tmp_path / "a.safetensors", {"x.lora_up.weight": torch.ones(3, 1)}, {"a": "b"}
    )
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        write_lora(path, {"y": torch.zeros(2)})

    def wrong(temporary):
        assert torch.equal(load_file(temporary)["y"], torch.zeros(2))
        raise VerificationError("no")

    with pytest.raises(VerificationError):
        write_lora(path, {"y": torch.zeros(2)}, overwrite=True, check=wrong)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    write_lora(path, {"y": torch.zeros(2)}, overwrite=True)
    assert set(load_file(path)) == {"y"}


def test_tensors_of_any_dtype_and_size_are_read_back_by_safetensors(tmp_path):
    tensors = {
        "odd": torch.randn(3).to(torch.bfloat16),
        "alpha": torch.tensor(2.0),
        "half": torch.randn(2, 3).half(),
        "none": torch.zeros(0, 4),
        "fp8": torch.randn(5).to(torch.float8_e4m3fn),
        "turned": torch.randn(3, 5).T,
        "yes": torch.tensor([True, False]),
    }
    again = load_file(write_lora(tmp_path / "a.safetensors", tensors, {"key": "\ud800"}))
    assert again.keys() == tensors.keys()
    assert all(
        again[key].dtype == tensor.dtype and torch.equal(again[key].float(), tensor.float())
        for key, tensor in tensors.items()
    )


KILLED = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("lora_locksmith", {root!r} + "/__init__.py", submodule_search_locations=[{root!r}])
sys.modules["lora_locksmith"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from lora_locksmith.lora.io.writer import write_lora
tensors = {{f"{{number}}.lora_up.weight": torch.ones(512, 512) for number in range(32)}}
print("ready", flush=True)
while True:
    write_lora({path!r}, tensors, overwrite=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill like that")
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = write_lora(tmp_path / "a.safetensors", {"old": torch.ones(3)})
    script = KILLED.format(root=str(ROOT), path=str(path))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ),
    ) as writer:
        assert writer.stdout.readline() == "ready\n"
        for _ in range(200):
            if len(list(tmp_path.iterdir())) > 1:  # in the midst of it
                break
            time.sleep(0.005)
        writer.kill()
    assert len(load_file(path)) in (1, 32)
    assert len(list(tmp_path.iterdir())) <= 2


def test_native_deltas_are_what_the_stock_loader_adds(both, stock, tmp_path):
    up, down = torch.randn(3 * H, 4), torch.randn(4, H)
    pair = Kronecker(
        Factors(None, torch.randn(8, 4)), Factors(torch.randn(64, 2), torch.randn(2, 32))
    )
    items = [
        Native("diffusion_model.double_blocks.0.img_attn.qkv.weight", Factors(up, down)),
        Native("diffusion_model.double_blocks.0.img_mlp.0.weight", pair, shape=(4 * H, H)),
        Native("diffusion_model.double_blocks.0.img_mlp.0.weight", torch.randn(4 * H), "bias"),
        Native("diffusion_model.double_blocks.1.img_mlp.2.weight", torch.randn(H, 4 * H)),
    ]
    before = both.native.model.state_dict()
    write_lora(tmp_path / "a.safetensors", native_tensors(items))
    after = stock(both.native, tmp_path / "a.safetensors")
    for item in items:
        name = (
            item.weight if item.parameter == "weight" else item.weight.replace(".weight", ".bias")
        )
        dense = item.delta if isinstance(item.delta, torch.Tensor) else item.delta.dense()
        assert torch.allclose(after[name] - before[name], dense, atol=1e-5)
    with pytest.raises(AdapterError, match="img_attn"):
        native_tensors([items[0], items[0]])
    conv = native_tensors(
        [
            Native(
                "diffusion_model.a.weight",
                Factors(torch.randn(6, 2), torch.randn(2, 36)),
                shape=(6, 4, 3, 3),
            )
        ]
    )
    assert [tuple(tensor.shape) for tensor in conv.values()] == [(6, 2, 1, 1), (2, 4, 3, 3)]
    encoder = native_tensors([Native("clip_l.transformer.text_model.a.weight", Factors(up, down))])
    assert next(iter(encoder)).startswith("text_encoders.clip_l.transformer.text_model.a.lora_up")
