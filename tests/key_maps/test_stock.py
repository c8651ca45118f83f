"""What the stock loader would place, told without ComfyUI: cases checked by hand against
comfy/lora.py.
"""

from __future__ import annotations

import pytest
from lora_locksmith.identify.stock_loader import stock_placed, stock_table
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network

WEIGHTS = {
    "diffusion_model.img_in.weight": (8, 4),
    "diffusion_model.vector_in.in_layer.weight": (8, 4),
    "diffusion_model.double_blocks.0.img_attn.qkv.weight": (24, 8),
    "diffusion_model.double_blocks.0.img_mod.lin.weight": (48, 8),
    "diffusion_model.single_blocks.0.linear1.weight": (56, 8),
    "diffusion_model.single_blocks.0.linear2.weight": (8, 40),
    "diffusion_model.final_layer.linear.weight": (4, 8),
}
UP, DOWN = ".lora_up.weight", ".lora_down.weight"


@pytest.fixture(scope="module")
def target_model():
    found = TargetModel([denoiser_network(WEIGHTS)])
    assert found.family.name == "flux1"
    return found


def placed(target_model, *keys, **shapes):
    return stock_placed(
        make_plan(
            {key: shapes.get(key.rpartition(".")[2], (1, 1)) for key in keys}, {}, target_model
        )
    )


@pytest.mark.parametrize(
    ("module", "read"),
    [
        ("diffusion_model.img_in", True),
        ("lora_unet_double_blocks_0_img_attn_qkv", True),
        ("transformer.transformer_blocks.0.attn.to_q", True),
        ("transformer_blocks.0.attn.to_q", True),
        ("lycoris_single_transformer_blocks_0_proj_out", True),
        ("diffusion_model.single_blocks.0.linear1_qkv", True),
        ("transformer.base_model.model.transformer_blocks.0.attn.to_q", False),
        ("lora_unet_transformer_blocks_0_attn_to_q", False),
        ("transformer.transformer_blocks.1.attn.to_q", False),
        ("transformer.transformer_blocks.0.attn.to_qkv", False),
        ("img_in", False),
    ],
)
def test_names(target_model, module, read):
    assert placed(target_model, module + UP, module + DOWN) == (
        {module + UP, module + DOWN} if read else set()
    )


@pytest.mark.parametrize(
    ("endings", "read"),
    [
        ((".lora_B.weight", ".lora_A.weight", ".lora_magnitude_vector"), 2),
        ((".lora_B.default.weight", ".lora_A.default.weight"), 2),
        ((".lora_B.mine.weight", ".lora_A.mine.weight"), 0),
        ((UP, DOWN, ".lora_B.weight", ".lora_A.weight"), 2),
        ((UP, DOWN, ".lora_mid.weight", ".dora_scale", ".scalar"), 4),
        ((".lora_up", ".lora_down"), 0),
        ((UP,), 0),
        ((".diff", ".diff_b", ".w_norm", ".b_norm"), 3),
        ((".dora_scale",), 0),
    ],
)
def test_endings(target_model, endings, read):
    assert (
        len(placed(target_model, *("diffusion_model.img_in" + ending for ending in endings)))
        == read
    )


def test_one_broken_adapter_stops_the_stock_loader(target_model):
    whole = ("lora_unet_img_in" + UP, "lora_unet_img_in" + DOWN)
    assert placed(target_model, *whole, "lora_unet_final_layer_linear.alpha", alpha=()) == {
        *whole,
        "lora_unet_final_layer_linear.alpha",
    }
    assert placed(target_model, *whole, "lora_unet_final_layer_linear" + UP) == set()
    assert placed(target_model, *whole, "lora_unet_final_layer_linear.alpha", alpha=(3,)) == set()


def test_nonsense(target_model):
    keys = [
        "",
        ".",
        "..",
        ".alpha",
        "weight",
        ".lora_up.weight",
        "\ud800.lora_up.weight",
        "x" * 100_000 + UP,
        "." * 1000,
    ]
    assert placed(target_model, *keys) == set()


def test_nothing_wired():
    assert stock_placed(make_plan({"lora_unet_img_in.diff": (1,)}, {}, TargetModel())) == set()


@pytest.mark.parametrize(
    "text",
    [
        "  -  native  dotted\n",
        "model *\n  -  native  bold\n",
        "chapter one\n  x\n",
        "model *\n  - native dotted a\n",
    ],
)
def test_faults_in_the_table_are_named(tmp_path, text):
    (tmp_path / "stock.table").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"stock\.table, line"):
        stock_table.__wrapped__(tmp_path / "stock.table")


def test_every_list_the_table_speaks_of_is_there():
    table = stock_table()
    lists = {line.names.partition("/")[0] for key_map in table.maps for line in key_map.lines}
    assert lists - {"native", "slot", "other"} == table.lists.keys()
