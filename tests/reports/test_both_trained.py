"""What two files train is laid over each other, and where blocks of a kind have other ranks, each
tells its own.
"""

import pytest
from hollow_files import write_hollow
from lora_locksmith.report.compare import compare_files
from lora_locksmith.report.inspection import inspect_file
from reports.small_files import flux_lora
from shelves import wan

MLP = "img_mlp.0"


@pytest.fixture
def write(tmp_path):
    return lambda name, shapes: write_hollow(tmp_path / f"{name}.safetensors", shapes)


def kinds_of(networks, blocks="double_blocks"):
    (network,) = networks
    (group,) = (group for group in network["blocks"] if group["name"] == blocks)
    return {kind["name"]: kind for kind in group["kinds"]}, group


def test_both_files_have_a_row_where_either_trains(write):
    shapes = flux_lora(4, blocks=3)
    a = write("a", {name: shape for name, shape in shapes.items() if "norm1" not in name})
    b = write("b", {name: shape for name, shape in flux_lora(8).items() if "ff." not in name})
    networks = compare_files(a, b).as_dict()["networks"]
    kinds, group = kinds_of(networks)
    assert group["count"] == 19 and kinds.keys() == {MLP, "txt_mlp.0", "img_mod.lin"}
    assert kinds[MLP]["trained"] == ["222" + "0" * 16, "0" * 19]
    assert kinds["txt_mlp.0"]["trained"] == ["222" + "0" * 16, "2" * 19]
    assert kinds["txt_mlp.0"]["ranks"] == [[4], [8]]
    assert kinds["img_mod.lin"]["trained"] == ["0" * 19, "2" * 19]
    assert kinds["img_mod.lin"]["ranks"] == [[], [8]]
    assert kinds[MLP]["words"] == "image feed-forward: input"
    assert [group["name"] for group in networks[0]["blocks"]] == ["double_blocks"]


def test_files_for_different_models_are_not_laid_over_each_other(write):
    found = compare_files(write("a", flux_lora()), write("b", wan(4))).as_dict()
    assert found["one_model"] is False and found["networks"] == []


def test_each_block_tells_its_ranks_only_where_they_differ(write):
    shapes = flux_lora(4, blocks=3)
    wider = flux_lora(16, blocks=2)
    shapes |= {name: shape for name, shape in wider.items() if ".1.ff.net" in name}
    path = write("a", {name: shape for name, shape in shapes.items() if ".2.norm1" not in name})
    kinds, _ = kinds_of([inspect_file(path).report.trained[0].as_dict()])
    assert kinds[MLP]["ranks"] == [4, 16]
    assert kinds[MLP]["block_ranks"] == [[4], [16], [4], *[[]] * 16]
    assert "block_ranks" not in kinds["txt_mlp.0"] and kinds["txt_mlp.0"]["ranks"] == [4]
    assert "block_ranks" not in kinds["img_mod.lin"]
    both, _ = kinds_of(compare_files(path, write("b", flux_lora(2))).as_dict()["networks"])
    assert both[MLP]["block_ranks"] == [[[4], [16], [4], *[[]] * 16], []]
