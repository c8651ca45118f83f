"""Qwen-Image 2.1, whose gate and value ComfyUI has fused or apart, in every dialect; and YuE2 in the
names of Hugging Face. No ComfyUI under test has either: their trees are drawn from the tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import every_name
import pytest
from hollow_files import write_hollow
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.key_maps.table import families
from lora_locksmith.planning.apart import taken_apart
from lora_locksmith.planning.names import prefix_for
from lora_locksmith.planning.plan import INCOMPLETE, NOT_WIRED, PLACED, SHAPE_CONFLICT, make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network, encoder_networks
from lora_locksmith.report.inspection import inspect_file
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


def in_parts(module: str, sizes: Sequence[int], inner: int) -> dict:
    """A fused layer as musubi-tuner saves one that it trained in parts."""
    shapes = {f"{module}.alpha": ()}
    for part, out in enumerate(sizes):
        shapes[f"{module}.lora_down.{part}.weight"] = (4, inner)
        shapes[f"{module}.lora_up.{part}.weight"] = (out, 4)
    return shapes


@pytest.mark.parametrize("model", FILES)
def test_parts_of_a_layer_land_as_layers_that_are_apart_do(model):
    shapes = in_parts(f"lora_unet_{BLOCK.replace('.', '_')}_gate_up", (INNER, INNER), WIDTH)
    plan = taken_apart(make_plan(shapes, {}, model_of(model)))
    landed = [
        (weight, rows(at), rows(source))
        for adapter in plan.adapters
        for weight, at, source in adapter.target.slices
    ]
    assert landed == [
        (f"{WEIGHT}.{layer}.weight", *both) for layer, *both in PLACES[model, "apart"]
    ]
    used = [[*map(shapes.get, adapter.roles.values())] for adapter in plan.adapters]
    assert used == [[(4, WIDTH), (INNER, 4), ()]] * 2
    assert {plan.outcomes[key].adapter for key in shapes if ".1." in key} == {1}


def test_a_part_may_reach_into_two_layers():
    half = INNER // 2
    shapes = in_parts(f"lora_unet_{BLOCK.replace('.', '_')}_gate_up", (half, INNER, half), WIDTH)
    plan = taken_apart(make_plan(shapes, {}, model_of("apart")))
    upper, lower = (0, half), (half, half)
    assert [
        [(weight, rows(at), rows(source)) for weight, at, source in adapter.target.slices]
        for adapter in plan.adapters
    ] == [
        [(f"{WEIGHT}.gate_layer.weight", upper, None)],
        [
            (f"{WEIGHT}.gate_layer.weight", lower, upper),
            (f"{WEIGHT}.proj.weight", upper, lower),
        ],
        [(f"{WEIGHT}.proj.weight", lower, None)],
    ]


FUSED_NAME = f"lora_unet_{BLOCK.replace('.', '_')}_gate_up"
LACKING = {
    ".0.weight": "it lacks lora_down.0 and lora_up.0; there are only: ",
    "_up.0.weight": "it lacks lora_up.0; there are only: ",
    "_down.1.weight": "it lacks lora_down.1; there are only: ",
    ".1.weight": f"its parts change {INNER} of the {2 * INNER} outputs: a part is missing",
}


@pytest.mark.parametrize("ending", LACKING)
def test_a_part_that_is_not_in_the_file_makes_no_other_model_of_it(tmp_path, ending):
    shapes = in_parts(FUSED_NAME, (INNER, INNER), WIDTH)
    left = {key: shape for key, shape in shapes.items() if not key.endswith(ending)}
    found = inspect_file(write_hollow(tmp_path / "x.safetensors", left), model_of("apart"))
    outcomes = set(found.plan.outcomes.values())
    assert {outcome.category for outcome in outcomes} == {INCOMPLETE}
    assert all(outcome.reason.startswith(LACKING[ending]) for outcome in outcomes)
    (told,) = [one for one in found.health if "incomplete adapter" in one.finding]
    assert "lack a tensor" in told.meaning and not found.report.mismatch
    assert "another size" not in found.report.remedy


def test_parts_of_another_model_are_not_called_incomplete():
    for sizes, width in (((INNER, INNER, INNER), WIDTH), ((INNER, INNER), WIDTH + 8)):
        plan = make_plan(in_parts(FUSED_NAME, sizes, width), {}, model_of("apart"))
        assert {outcome.category for outcome in plan.outcomes.values()} == {SHAPE_CONFLICT}


LAYER = "model.layers.0"
HEADS = {"q": (0, 2048), "k": (2048, 1024), "v": (3072, 1024)}
FUSED = {
    "self_attn.qkv_proj": (4096, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_up_proj": (12288, 2048),
    "mlp.down_proj": (2048, 6144),
}


def yue2(*networks: str) -> TargetModel:
    """YuE2's diffusion model ("MODEL"), its text encoder ("CLIP"), or both, as ComfyUI has them."""
    layers = {f"{LAYER}.{name}.weight": shape for name, shape in FUSED.items()}
    rest = {"model.norm.weight": (2048,), "model.embed_tokens.weight": (184704, 2048)}
    both = {
        "MODEL": [
            denoiser_network(
                {f"diffusion_model.{name}": shape for name, shape in layers.items()}
                | {"diffusion_model.vae2llm.weight": (2048, 64)}
            )
        ],
        "CLIP": encoder_networks(layers | rest),
    }
    return TargetModel([network for name in networks for network in both[name]])


def of_half(start: str, half: str, roles=("lora_A.weight", "lora_B.weight")) -> dict:
    """One layer in Hugging Face's names: half "nar_" is the acoustic one, "" the language model."""
    shapes = {}
    for layer, (out, inner) in QWEN3.items():
        shapes |= {
            f"{start}{half}{layer}.{roles[0]}": (4, inner),
            f"{start}{half}{layer}.{roles[1]}": (out, 4),
        }
    return shapes


def landings(shapes: dict, target_model: TargetModel) -> tuple[set, set]:
    """What becomes of the keys, and (weight, rows) of all that is placed."""
    plan = make_plan(shapes, {}, target_model)
    places = {
        (weight, rows(at)) for adapter in plan.adapters for weight, at, _ in adapter.target.slices
    }
    return {outcome.category for outcome in plan.outcomes.values()}, places


def places_in(prefix: str) -> set:
    attention = {(f"{prefix}{LAYER}.self_attn.qkv_proj.weight", span) for span in HEADS.values()}
    gates = {
        (f"{prefix}{LAYER}.mlp.gate_up_proj.weight", span) for span in [(0, 6144), (6144, 6144)]
    }
    whole = {
        (f"{prefix}{LAYER}.{name}.weight", None) for name in ("self_attn.o_proj", "mlp.down_proj")
    }
    return attention | gates | whole


STARTS = ["model.layers.0.", "layers.0.", "base_model.model.model.layers.0."]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("networks", [("MODEL",), ("MODEL", "CLIP")], ids="-".join)
def test_the_acoustic_half_of_yue2_is_told_by_its_own_names(networks, start):
    """Saganaki22/ComfyUI-YuE2-Trainer, FL-YuE2 and others."""
    told, places = landings(of_half(start, "nar_"), yue2(*networks))
    assert told == {PLACED} and places == places_in("diffusion_model.")


@pytest.mark.parametrize("start", STARTS)
def test_the_language_half_of_yue2_never_lands_on_the_acoustic_one(start):
    """Both have the same names and sizes in ComfyUI; in Hugging Face's model the plain ones are
    the language model's.
    """
    shapes = of_half(start, "")
    assert landings(shapes, yue2("MODEL")) == ({NOT_WIRED}, set())
    for networks in [("MODEL", "CLIP"), ("CLIP",)]:
        assert landings(shapes, yue2(*networks)) == ({PLACED}, places_in(""))


@pytest.mark.parametrize(
    ("start", "roles"),
    [
        ("layers.0.", ("A", "B")),  # YuE2-T8
        ("model.layers.0.", ("lora_A", "lora_B")),
        ("adapters.model-layers-0-", ("lora_down.weight", "lora_up.weight")),  # ntc-ai
    ],
)
def test_other_spellings_of_the_language_half_of_yue2(start, roles):
    shapes = of_half(start, "", roles)
    if "-" in start:
        shapes = {
            f"{start}{key[len(start) :].replace('.', '-', 1)}": shape
            for key, shape in shapes.items()
        }
    assert landings(shapes, yue2("MODEL", "CLIP")) == ({PLACED}, places_in(""))


@pytest.mark.parametrize(
    ("start", "network"),
    [
        (f"diffusion_model.{LAYER}.", "MODEL"),
        (f"text_encoders.{LAYER}.", "CLIP"),
        (f"transformer.nar.{LAYER}.", "MODEL"),
        ("lora_unet_nar_blocks_0_", "MODEL"),
    ],
)
def test_comfyui_s_names_of_yue2_tell_the_half(start, network):
    shapes = {}
    for name, (out, inner) in FUSED.items():
        shapes |= pair(start + (name if "." in start else name.replace(".", "_")), out, (inner,))
    prefix = "diffusion_model." if network == "MODEL" else ""
    expected = {(f"{prefix}{LAYER}.{name}.weight", None) for name in FUSED}
    for networks in [(network,), ("MODEL", "CLIP")]:
        assert landings(shapes, yue2(*networks)) == ({PLACED}, expected)
    other = "CLIP" if network == "MODEL" else "MODEL"
    assert landings(shapes, yue2(other)) == ({NOT_WIRED}, set())


@pytest.mark.parametrize("start", [f"transformer.ar.{LAYER}.", "lora_unet_ar_blocks_0_"])
def test_prefixes_that_mean_the_language_half_of_yue2(start):
    shapes = {}
    for name, (out, inner) in FUSED.items():
        shapes |= pair(start + (name if "." in start else name.replace(".", "_")), out, (inner,))
    assert landings(shapes, yue2("MODEL"))[0] == {NOT_WIRED}
    expected = {(f"{LAYER}.{name}.weight", None) for name in FUSED}
    assert landings(shapes, yue2("MODEL", "CLIP")) == ({PLACED}, expected)


@pytest.mark.parametrize("half", ["nar", "ar"])
def test_what_a_fork_of_musubi_tuner_saves_of_yue2(half):
    shapes, start = {}, f"lora_unet_{half}_blocks_0_"
    for name, (out, inner) in FUSED.items():
        module = start + name.replace(".", "_")
        if "qkv" in name or "gate" in name:
            sizes = (2048, 1024, 1024) if "qkv" in name else (6144, 6144)
            shapes |= in_parts(module, sizes, inner)
        else:
            shapes |= pair(module, out, (inner,))
    plan = make_plan(shapes, {}, yue2("MODEL", "CLIP"))
    assert {outcome.category for outcome in plan.outcomes.values()} == {PLACED}
    expected = places_in("diffusion_model." if half == "nar" else "")
    landed = {
        (weight, rows(at))
        for adapter in taken_apart(plan).adapters
        for weight, at, _ in adapter.target.slices
    }
    assert landed == expected


def test_what_is_written_for_yue2_s_text_encoder_is_read_there_again():
    target_model = yue2("MODEL", "CLIP")
    prefixes = {
        prefix_for(target_model, target_model.networks["model"], dialects()[name])
        for name in ("comfyui", "onetrainer_comfy")
    }
    assert prefixes == {"text_encoders.model."}  # as ComfyUI calls the encoder's own weights


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
    tells = start in ("diffusion_model.", "transformer.")
    assert told.report.modules["placed"] == (len(shapes) // 2 if tells else 0)
