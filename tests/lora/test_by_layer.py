"""What weights say of each layer and block: energies and cosines, against dense fp64 deltas."""

import json
import math

import pytest
import torch
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.lora.by_layer import compared_weights, measured_weights
from lora_locksmith.report.compare import compare_files
from lora_locksmith.report.inspection import inspect_file
from pairs import write_pair
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = 1e-6
PROJ = "lora_unet_double_blocks_1_img_attn_proj"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    paths = folder / "a.safetensors", folder / "b.safetensors"
    write_pair(*paths, double=2, single=2)
    return paths


@pytest.fixture(scope="module")
def weights(pair):
    return compared_weights(compare_files(*pair))


def dense(path, module):
    tensors = load_file(path)
    up, down = (tensors[f"{module}.lora_{side}.weight"].double() for side in ("up", "down"))
    return up @ down


def layer(weights, blocks, number, kind):
    (found,) = (
        row
        for row in weights["layers"]
        if (row["blocks"], row["number"], row["kind"]) == (blocks, number, kind)
    )
    return found


def test_a_layer_has_the_energies_and_the_cosine_of_its_dense_changes(pair, weights):
    a, b = (dense(path, PROJ) for path in pair)
    found = layer(weights, "double_blocks", 1, "img_attn.proj")
    assert found["component"] == DENOISER
    assert found["energy_a"] == pytest.approx(a.square().sum().item(), rel=CLOSE)
    assert found["energy_b"] == pytest.approx(b.square().sum().item(), rel=CLOSE)
    cosine = torch.cosine_similarity(a.flatten(), b.flatten(), 0).item()
    assert found["cosine"] == pytest.approx(cosine, abs=1e-9)


def test_what_one_file_alone_changes_has_no_cosine(weights):
    alone = layer(weights, "double_blocks", 1, "img_mlp.0")
    assert alone["energy_a"] > 0 and alone["energy_b"] == 0 and alone["cosine"] is None
    alone = layer(weights, "double_blocks", 1, "img_mod.lin")
    assert alone["energy_a"] == 0 and alone["energy_b"] > 0 and alone["cosine"] is None
    encoder = [row for row in weights["blocks"] if row["component"] == "clip_l"]
    assert {row["blocks"] for row in encoder} == {"text_model.encoder.layers"}
    assert [row["energy_b"] for row in encoder] == [0] * 4


def test_a_block_is_the_sum_of_its_layers(weights):
    for block in weights["blocks"]:
        place = {name: block[name] for name in ("component", "blocks", "number")}
        within = [row for row in weights["layers"] if place.items() <= row.items()]
        for side in ("energy_a", "energy_b"):
            assert block[side] == pytest.approx(math.fsum(row[side] for row in within))
        inner = sum(
            row["cosine"] * math.sqrt(row["energy_a"] * row["energy_b"])
            for row in within
            if row["cosine"] is not None
        )
        whole = math.sqrt(block["energy_a"] * block["energy_b"])
        assert (block["cosine"] is None) == (whole == 0)
        assert not whole or block["cosine"] == pytest.approx(inner / whole)
    total = math.fsum(block["energy_a"] for block in weights["blocks"])
    assert total == pytest.approx(weights["norm_a"] ** 2)
    names = [(row["blocks"], row["number"]) for row in weights["blocks"][:4]]
    assert names == [
        ("double_blocks", 0),
        ("double_blocks", 1),
        ("single_blocks", 0),
        ("single_blocks", 1),
    ]


def test_one_file_is_measured_as_in_a_comparison(pair, weights):
    alone = measured_weights(inspect_file(pair[0]))
    assert alone["norm_a"] == pytest.approx(weights["norm_a"]) and alone["norm_b"] == 0
    theirs = {
        (row["component"], row["blocks"], row["number"], row["kind"]): row["energy_a"]
        for row in weights["layers"]
        if row["energy_a"]
    }
    ours = {
        (row["component"], row["blocks"], row["number"], row["kind"]): row["energy_a"]
        for row in alone["layers"]
    }
    assert ours == pytest.approx(theirs)
    assert {row["energy_b"] for row in alone["layers"]} == {0}
    assert {row["cosine"] for row in alone["layers"]} == {None}


def test_a_bias_counts_to_its_layer_and_what_is_not_finite_to_none(tmp_path):
    tensors = {
        f"{PROJ}.lora_up.weight": torch.zeros(3072, 1),
        f"{PROJ}.lora_down.weight": torch.zeros(1, 3072),
        "diffusion_model.double_blocks.1.img_attn.proj.diff_b": torch.full((3072,), 0.5),
        "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.full((3072, 1), math.inf),
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(1, 3072),
        "lora_unet_double_blocks_0_img_mlp_0.lora_up.weight": torch.ones(12288, 1),
        "lora_unet_double_blocks_0_img_mlp_0.lora_down.weight": torch.ones(1, 3072),
    }
    save_file(tensors, tmp_path / "odd.safetensors")
    weights = measured_weights(inspect_file(tmp_path / "odd.safetensors"))
    found = layer(weights, "double_blocks", 1, "img_attn.proj")
    assert found["energy_a"] == pytest.approx(3072 / 4)
    assert layer(weights, "double_blocks", 0, "img_attn.proj")["energy_a"] is None
    json.dumps(weights, allow_nan=False)


def test_progress_is_told_and_can_end_the_work(pair):
    class Enough(Exception):
        pass

    told = []

    def progress(done, total):
        told.append((done, total))
        if done == 3:
            raise Enough

    with pytest.raises(Enough):
        measured_weights(inspect_file(pair[0]), progress=progress)
    assert [done for done, _ in told] == [0, 1, 2, 3]
    assert len({total for _, total in told}) == 1 and told[0][1] > 3
