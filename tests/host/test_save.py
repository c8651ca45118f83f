"""Save LoRA in the real ComfyUI: a file or a LORA_MODEL into the loras folder, in another tool's
names.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import kohya_lora, simpletuner_broken_lora


@pytest.fixture
def node(comfy):
    from lora_locksmith.nodes.save import SaveLoRA

    return SaveLoRA


def native_lora():
    """A LORA_MODEL as TrainLoraNode makes it."""
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    return {
        f"{name}.lora_up.weight": torch.randn(384, 4),
        f"{name}.lora_down.weight": torch.randn(4, 128),
        f"{name}.alpha": torch.tensor(2.0),
    }


def test_a_file_is_converted_into_the_loras_folder(node, loras, tiny_flux):
    save_file(simpletuner_broken_lora(), loras / "broken.safetensors")
    assert (
        node.validate_inputs("broken.safetensors") is True
        and node.validate_inputs("none.safetensors") is not True
    )
    path, report = node.execute("broken.safetensors", "sub/fixed", "kohya", model=tiny_flux()).args
    assert path == str(loras / "sub" / "fixed.safetensors")
    assert all(key.startswith("lora_unet_") for key in load_file(path))
    assert "compared" in report
    with pytest.raises(RuntimeError, match="overwrite"):
        node.execute("broken.safetensors", "sub/fixed.safetensors", "kohya", model=tiny_flux())
    assert (
        node.execute(
            "broken.safetensors", "sub/fixed", "kohya", overwrite=True, model=tiny_flux()
        ).args[0]
        == path
    )
    # Without a model its own names tell it, in a size that nobody published.
    other = node.execute("broken.safetensors", "other", "kohya").args[0]
    assert load_file(other).keys() == load_file(path).keys()


def test_a_connected_lora_is_saved_and_read_back_the_same(node, loras, tiny_flux, host, patched):
    lora, model = native_lora(), tiny_flux()
    path = node.execute("the connected lora", "mine", "diffusers", lora=lora, model=model).args[0]
    after = patched(host.load_and_fix(model, None, path)[0])
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    delta = lora[f"{name}.lora_up.weight"] @ lora[f"{name}.lora_down.weight"] * 0.5
    assert torch.allclose(
        after[f"{name}.weight"] - model.model.state_dict()[f"{name}.weight"].float(),
        delta,
        atol=1e-4,
    )
    assert set(load_file(path)) == {
        f"transformer.transformer_blocks.0.attn.{part}.lora_{side}.weight"
        for part in ("to_q", "to_k", "to_v")
        for side in "AB"
    }


def test_the_node_is_made_as_the_host_demands(node, loras):
    save_file(kohya_lora(), loras / "a.safetensors")
    schema = node.GET_SCHEMA()
    assert schema.node_id == "LocksmithSaveLoRA" and schema.is_output_node
    assert "a.safetensors" in next(item for item in schema.inputs if item.id == "lora_name").options
    assert node.fingerprint_inputs("a.safetensors") != node.fingerprint_inputs("the connected lora")


def test_what_was_saved_and_is_gone_is_saved_again_and_once(node, loras, tiny_flux):
    def seen():
        return node.fingerprint_inputs("the connected lora", "gone")

    never = seen()
    path = Path(
        node.execute("the connected lora", "gone", lora=native_lora(), model=tiny_flux()).args[0]
    )
    assert seen() == never, "the next run takes it from the cache"
    path.unlink()
    assert (lost := seen()) != never and seen() == lost
    node.execute("the connected lora", "gone", lora=native_lora(), model=tiny_flux())
    assert seen() == lost


@pytest.mark.parametrize("name", ["../out", "", "sub/", "/etc/passwd", "a\x00b"])
def test_no_name_leads_out_of_the_loras_folder(node, loras, tiny_flux, name):
    with pytest.raises(RuntimeError, match="loras folder"):
        node.execute("the connected lora", name, lora=native_lora(), model=tiny_flux())
    assert not list(loras.rglob("*.safetensors"))


def test_errors_say_what_to_do(node, loras, tiny_flux):
    with pytest.raises(RuntimeError, match="Connect a LORA_MODEL"):
        node.execute("the connected lora", "a")
    rotation = {"diffusion_model.double_blocks.0.img_mlp.0.oft_blocks": torch.zeros(16, 32, 32)}
    with pytest.raises(RuntimeError, match="OFT"):
        node.execute("the connected lora", "a", "diffusers", lora=rotation, model=tiny_flux())


def test_a_name_that_another_node_makes_is_looked_at_when_it_is_known(comfy):
    from lora_locksmith.nodes.inspect import InspectLoRAKeys
    from lora_locksmith.nodes.load_and_fix import LoadAndFixLoRA
    from lora_locksmith.nodes.save import SaveLoRA

    for node in (LoadAndFixLoRA, InspectLoRAKeys, SaveLoRA):
        assert node.validate_inputs() is True
        assert node.fingerprint_inputs(lora_name=None) != node.fingerprint_inputs(lora_name=None), (
            "it might be another file now"
        )
        assert "is not in the loras folders" in node.validate_inputs("none.safetensors")


def test_text_encoders_are_saved_where_only_the_model_is_connected(node, loras, tiny_flux):
    name = "lora_te1_text_model_encoder_layers_1_mlp_fc1"
    pair = {
        f"{name}.lora_down.weight": torch.randn(2, 768),
        f"{name}.lora_up.weight": torch.randn(3072, 2),
    }
    encoder = pair | {f"{name}.alpha": torch.ones(())}
    save_file(kohya_lora() | encoder, loras / "both.safetensors")
    path = node.execute("both.safetensors", "out", "comfyui", model=tiny_flux()).args[0]
    made = load_file(path)
    assert (
        len([key for key in made if key.startswith("text_encoders.clip_l.")]) == 3
        and len(made) == len(kohya_lora()) + 3
    )


def test_nan_is_not_saved_and_named(node, loras, tiny_flux):
    tensors = kohya_lora()
    key = next(key for key in tensors if key.endswith("lora_up.weight"))
    tensors[key] = tensors[key].index_fill(0, torch.tensor([0]), float("nan"))
    save_file(tensors, loras / "nan.safetensors")
    with pytest.raises(RuntimeError, match=f"{key} holds NaN"):
        node.execute("nan.safetensors", "out", "diffusers", model=tiny_flux())
    assert not (loras / "out.safetensors").exists()
