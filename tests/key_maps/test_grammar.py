"""Keys are taken apart into module, adapter name and role, whoever spelled them."""

import subprocess
import sys
from pathlib import Path

import pytest
from lora_locksmith.key_maps.grammar import parse_key, role_spellings

SPELLED = {
    "lora_unet_x_to_q.lora_down.weight": ("lora_unet_x_to_q", "", "down"),
    "transformer.base_model.model.blocks.0.attn.to_k.lora.down.weight": ("transformer.base_model.model.blocks.0.attn.to_k", "", "down"),
    "unet.x.attn1.processor.to_q_lora.up.weight": ("unet.x.attn1.processor.to_q", "", "up"),
    "text_encoder.x.q_proj.lora_linear_layer.up.weight": ("text_encoder.x.q_proj", "", "up"),
    "base_model.model.x.lora_A.weight": ("base_model.model.x", "", "down"),
    "x.lora_A.default.weight": ("x", "default", "down"),
    "x.lora_A.default_0.default.weight": ("x", "default_0.default", "down"),
    "x.lora_B.my_style.bias": ("x", "my_style", "up_bias"),
    "x.lora_B": ("x", "", "up"),
    "x.lora_magnitude_vector": ("x", "", "magnitude"),
    "x.lora_magnitude_vector.weight": ("x", "", "magnitude"),
    "x.lora_magnitude_vector.default.weight": ("x", "default", "magnitude"),
    "x.magnitude": ("x", "", "magnitude"),
    "double_blocks.0.processor.qkv_lora1.down.weight": ("double_blocks.0.processor.qkv_lora1", "", "down"),
    "single_blocks.0.processor.qkv_lora.up.weight": ("single_blocks.0.processor.qkv", "", "up"),
    "blocks.0.mlp.down.lora_A.weight": ("blocks.0.mlp.down", "", "down"),
    "x.lokr_w1": ("x", "", "lokr_w1"),
    "x.lokr_w1_a.default": ("x", "default", "lokr_w1_a"),
    "x.oft_R.weight": ("x", "", "oft_R"),
    "oft_unet_x.oft_blocks.2": ("oft_unet_x", "", "oft_blocks.2"),
    "blocks.3.diff_m": ("blocks.3.modulation", "", "diff"),
    "blocks.3.norm3.diff_b": ("blocks.3.norm3", "", "diff_b"),
    "transformer.lora_alpha": ("transformer", "", "alpha"),
    "x.a1.weight": ("x", "", "a1"),
}


@pytest.mark.parametrize("key", SPELLED)
def test_spelling(key):
    parsed = parse_key(key)
    assert (parsed.module, parsed.adapter, parsed.role) == SPELLED[key]


@pytest.mark.parametrize(
    "key", ["", ".", "..", "weight", ".weight", "lora_A", "x", "x.y", "bundle_emb.token.vectors", "x." + "y" * 100_000]
)
def test_what_is_no_role_has_none_and_raises_nothing(key):
    assert parse_key(key).role in (None, "weight")


def test_every_spelling_of_the_table_is_read_as_its_role():
    for tail, (role, addition) in role_spellings().exact.items():
        parsed = parse_key(f"some.module.{tail}")
        assert parsed.role == role
        assert parsed.module == f"some.module{'.' + addition if addition else ''}"


def test_header_only_work_imports_no_torch():
    root = Path(__file__).resolve().parents[2]
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('pack', r'{root / '__init__.py'}', submodule_search_locations=[r'{root}'])\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['pack'] = module; spec.loader.exec_module(module)\n"
        "from pack.key_maps.plan import make_plan\nfrom pack.key_maps.report import Report\nfrom pack.key_maps.site import Site\n"
        "print(Report(make_plan({'lora_unet_single_blocks_0_linear1.lora_down.weight': (4, 8)}, {}, Site())).as_json())\n"
        "assert not {'torch', 'comfy', 'safetensors', 'numpy'} & sys.modules.keys(), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
