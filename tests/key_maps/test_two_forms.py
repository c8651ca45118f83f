"""Qwen-Image 2.1, whose gate and value ComfyUI has fused or apart, in every dialect; and YuE2 in the
names of Hugging Face. No ComfyUI under test has either: their trees are drawn from the tables.
"""

from __future__ import annotations

import every_name
import pytest
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.key_maps.table import families
from lora_locksmith.planning.plan import PLACED, make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network
from model_files import inspected, pair

WIDTH, INNER = 4096, 12288
BLOCK = "transformer_blocks.1.img_mlp"
WEIGHT = f"diffusion_model.{BLOCK}"
GATE, VALUE = (0, INNER), (INNER, INNER)  # first row and number of rows of the fused weight
FILES = {"fused": {"gate_up": 2 * INNER}, "apart": {"gate_layer": INNER, "proj": INNER}}
# (model, file) -> (weight, its rows, the file's rows); None: all
PLACES = {
    ("fused", "fused"): [("gate_up", None, None)],
    ("fused", "apart"): [("gate_up", GATE, None), ("gate_up", VALUE, None)],
    ("apart", "fused"): [("gate_layer", None, GATE), ("proj", None, VALUE)],
    ("apart", "apart"): [("gate_layer", None, None), ("proj", None, None)],
}
QWEN3 = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (1024, 2048),
    "self_attn.v_proj": (1024, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (6144, 2048),
    "mlp.up_proj": (6144, 2048),
    "mlp.down_proj": (2048, 6144),
}


def model_of(form: str) -> TargetModel:
    weights = dict(every_name.drawn(families()["qwen_image_21"], "").networks[DENOISER].weights)
    if form == "apart":
        for name in [name for name in weights if name.endswith("gate_up.weight")]:
            del weights[name]
            for half in FILES["apart"]:
                weights[name.replace("gate_up", half)] = (INNER, WIDTH)
    return TargetModel([denoiser_network(weights)])


def rows(found):
    return found and (found.start, found.length)


@pytest.mark.parametrize("dialect", dialects().values(), ids=dialects())
@pytest.mark.parametrize(("model", "file"), PLACES)
def test_gate_and_value_land_on_their_rows(model, file, dialect):
    target_model = model_of(model)
    assert target_model.family.title == "Qwen-Image 2.1"
    start = every_name.prefix_for(target_model, target_model.networks[DENOISER], dialect)
    shapes = {}
    for layer, out in FILES[file].items():
        name = f"{BLOCK}.{layer}"
        name = name.replace(".", "_") if dialect.form == "flat" else name
        shapes |= every_name.keys_of(dialect, start + name, (out, WIDTH))
    plan = make_plan(shapes, {}, target_model)
    assert {outcome.category for outcome in plan.outcomes.values()} == {PLACED}
    landed = [
        (weight, rows(at), rows(source))
        for adapter in plan.adapters
        for weight, at, source in adapter.target.slices
    ]
    assert landed == [(f"{WEIGHT}.{layer}.weight", *both) for layer, *both in PLACES[model, file]]


@pytest.mark.parametrize("start", ["", "diffusion_model.", "base_model.model.", "transformer."])
@pytest.mark.parametrize("part", ["", "self_attn", "mlp"])
def test_yue2_in_the_names_of_hugging_face_is_called_so(start, part):
    """Qwen3-1.7B has the same layers in as many blocks, and is no model of ComfyUI's."""
    shapes = {}
    for block in range(28):
        for layer, (out, inner) in QWEN3.items():
            if layer.startswith(part):
                shapes |= pair(f"{start}model.layers.{block}.{layer}", out, (inner,))
    told = inspected(shapes)
    assert told.guess.could_be == ("yue2", "language_model")
    assert told.guess.title.startswith("YuE2 or Language model")
    assert inspected(shapes, {"modelspec.architecture": "yue2/lora"}).guess.title == "YuE2"
    assert told.report.modules["placed"] == len(shapes) // 2
