"""What weights say of each layer and block: energies and cosines, against dense fp64 deltas."""

import json
import math
import shutil

import pytest
import torch
from lora_locksmith.files.header import LoraFileError
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


def test_what_is_not_finite_in_one_file_hides_nothing_else(pair, weights, tmp_path):
    broken, tensors = tmp_path / "broken.safetensors", load_file(pair[0])
    tensors[f"{PROJ}.lora_up.weight"][0, 0] = math.nan
    save_file(tensors, broken, {"ss_network_module": "networks.lora_flux"})
    found = compared_weights(compare_files(broken, pair[1]))
    assert [(one["file"], one["module"]) for one in found["left_out"]] == [("a", PROJ)]
    whole, lost = layer(weights, "double_blocks", 1, "img_attn.proj"), weights["norm_a"] ** 2
    alone = layer(found, "double_blocks", 1, "img_attn.proj")
    assert (alone["energy_a"], alone["cosine"]) == (None, None)
    assert alone["energy_b"] == whole["energy_b"]
    assert found["norm_a"] == pytest.approx(math.sqrt(lost - whole["energy_a"]))
    assert found["norm_b"] == weights["norm_b"]
    for side in "ab":
        shares = [block[f"energy_{side}"] for block in found["blocks"]]
        assert math.fsum(shares) == pytest.approx(found[f"norm_{side}"] ** 2)
    inner = weights["cosine"] * weights["norm_a"] * weights["norm_b"]
    inner -= whole["cosine"] * math.sqrt(whole["energy_a"] * whole["energy_b"])
    both = found["norm_a"] * math.sqrt(found["norm_b"] ** 2 - whole["energy_b"])
    assert found["cosine"] == pytest.approx(inner / both)


def test_what_needs_the_model_is_not_known_and_not_nothing(pair, tmp_path):
    turned, tensors = tmp_path / "turned.safetensors", load_file(pair[0])
    tensors[f"{PROJ}.dora_scale"] = torch.ones(3072, 1)
    save_file(tensors, turned, {"ss_network_module": "networks.lora_flux"})
    comparison = compare_files(turned, pair[1])
    found = compared_weights(comparison)
    alone = layer(found, "double_blocks", 1, "img_attn.proj")
    assert alone["energy_a"] is None and alone["energy_b"] > 0 and alone["cosine"] is None
    assert layer(measured_weights(comparison.first), "double_blocks", 1, "img_attn.proj") == {
        **alone,
        "energy_b": 0,
    }
    only_b = [row["energy_b"] for row in found["layers"] if row["energy_a"] == 0]
    assert found["energy_only_b"] == pytest.approx(math.fsum(only_b))
    told = comparison.markdown(found)
    assert f"- Not measured, and in none of the numbers: 1 adapter\n  - A: `{PROJ}`: " in told
    assert "\u672a\u6d4b\u91cf" in comparison.markdown(found, language="zh")
    rows = [line for line in told.splitlines() if "double_blocks.1.img_attn.proj" in line]
    assert any("| not known |" in row for row in rows)


def test_a_file_that_is_written_to_meanwhile_is_measured_by_nobody(pair, tmp_path):
    path = tmp_path / "changing.safetensors"
    shutil.copy(pair[0], path)

    def write(done, total):
        if done == 1:
            with open(path, "ab") as file:
                file.write(b"more")

    with pytest.raises(LoraFileError, match="another file than a moment ago"):
        measured_weights(inspect_file(path), progress=write)
    shutil.copy(pair[0], path)
    with pytest.raises(LoraFileError, match="another file than a moment ago"):
        compared_weights(compare_files(pair[1], path), progress=write)


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
