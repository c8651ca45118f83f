"""The pack as the real server sees it: it loads without a complaint, and its node is declared as it
should be.
"""

import json
import re
import sys
from pathlib import Path

import comfy_server
import demo
import pytest

LOCALES = demo.EXAMPLE.parent.parent / "locales"
EXAMPLES = sorted(demo.EXAMPLE.parent.glob("*.json"))


def test_server_loads_the_pack_without_a_complaint(server):
    assert re.search(r"\d seconds: .*lora-locksmith", server.startup_log), (
        "the server does not list the pack as loaded"
    )
    assert not comfy_server.complaints_about_the_pack(server.startup_log)


def test_loader_has_the_stock_inputs_first_and_only_optional_ones_beyond(object_info):
    ours, stock = object_info[demo.OUR_LOADER], object_info[demo.STOCK_LOADER]
    order = [
        name for group in ("required", "optional") for name in ours["input_order"].get(group, [])
    ]
    stock_order = stock["input_order"]["required"]
    assert [name for name in order if name in stock_order and name != "clip"] == [
        name for name in stock_order if name != "clip"
    ]
    assert set(ours["input_order"]["required"]) == set(stock_order) - {"clip"}
    assert set(ours["input_order"]["optional"]) == {
        "clip",
        "on_unmatched",
        "mode",
        "layer_weights",
    }


def test_loader_has_the_stock_outputs_first(object_info):
    outputs = object_info[demo.OUR_LOADER]["output"]
    assert outputs[:2] == object_info[demo.STOCK_LOADER]["output"]
    assert outputs == ["MODEL", "CLIP", "STRING", "STRING", "STRING", "LORA_MODEL"]


def test_strengths_have_the_stock_ranges(object_info):
    ours, stock = (
        object_info[demo.OUR_LOADER]["input"]["required"],
        object_info[demo.STOCK_LOADER]["input"]["required"],
    )
    for name in ("strength_model", "strength_clip"):
        kind, options = ours[name]
        assert kind == "FLOAT"
        assert {key: options[key] for key in ("default", "min", "max", "step")} == {
            key: stock[name][1][key] for key in ("default", "min", "max", "step")
        }


def test_loader_offers_the_files_in_the_loras_folder(object_info):
    def files(loader):
        kind, options = object_info[loader]["input"]["required"]["lora_name"]
        return kind if isinstance(kind, list) else options["options"]

    assert demo.BROKEN_LORA in files(demo.OUR_LOADER)
    assert files(demo.OUR_LOADER) == files(demo.STOCK_LOADER)


def test_loader_is_no_output_node(object_info):
    assert object_info[demo.OUR_LOADER]["output_node"] is False


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_workflow_is_offered_by_the_server(server, path):
    assert path.stem in server.get("/workflow_templates")["lora-locksmith"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_workflow_uses_only_nodes_of_the_host_and_of_this_pack(object_info, path):
    front_end_only = {"MarkdownNote"}
    types = {node["type"] for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
    assert types - front_end_only <= set(object_info)


def test_every_node_input_and_output_is_translated(object_info):
    english, chinese = (
        json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
        for language in ("en", "zh")
    )
    ours = {
        name: node
        for name, node in object_info.items()
        if node["python_module"].endswith("lora-locksmith")
    }
    assert english == {
        name: {key: node[key] for key in ("display_name", "description")}
        for name, node in ours.items()
    }
    inputs = {
        name: {each for group in ("required", "optional") for each in node["input"].get(group, {})}
        for name, node in ours.items()
    }
    assert {name: set(node["inputs"]) for name, node in chinese.items()} == inputs
    assert all(
        texts.keys() == {"name", "tooltip"}
        for node in chinese.values()
        for texts in node["inputs"].values()
    )
    hints = {
        name: {str(slot) for slot, hint in enumerate(node["output_tooltips"]) if hint}
        for name, node in ours.items()
    }
    assert {
        name: {slot for slot, texts in node["outputs"].items() if texts["tooltip"]}
        for name, node in chinese.items()
    } == hints


def test_what_the_host_complains_of_is_no_complaint_about_the_pack_around_it(tmp_path):
    own, comfyui = (
        tmp_path / "custom_nodes" / "lora-locksmith",
        tmp_path / "lora-locksmith" / ".dev" / "ComfyUI",
    )
    log = tmp_path / "server.log"
    log.write_text(
        f"Cannot import {comfyui / 'nodes_glsl.py'}: no OpenGL\nCannot import {own}: no torch\n",
        encoding="utf-8",
    )
    told = comfy_server.Server(Path(sys.executable), comfyui, tmp_path, log).log_text()
    assert comfy_server.complaints_about_the_pack(told) == [f"Cannot import {own}: no torch"]
