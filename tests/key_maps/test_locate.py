"""What stands before a module's name is peeled off and told, and other readings of a name are tried
only where it leads nowhere.
"""

import pytest
from lora_locksmith.key_maps.dialect import DENOISER, ENCODER
from lora_locksmith.planning.resolve import Location, alias_names, locate, network_named, peeled
from lora_locksmith.planning.target_model import TargetModel, denoiser_network, encoder_networks

QKV = "double_blocks.0.img_attn.qkv"
DENOISERS = ("img_in", QKV, "twin", "a.processor.b", "a.b", "c.d")
ENCODERS = ("twin", "alone")


@pytest.fixture(scope="module")
def target_model():
    denoiser = denoiser_network({f"diffusion_model.{name}.weight": (4, 4) for name in DENOISERS})
    return TargetModel(
        [
            denoiser,
            *encoder_networks({f"clip_l.transformer.{name}.weight": (4, 4) for name in ENCODERS}),
        ]
    )


def weights(location: Location) -> list[str]:
    return [candidate.slices[0][0] for candidate in location.candidates]


def test_what_is_peeled_off_and_what_is_left(target_model):
    found = locate(target_model, f"transformer.base_model.model.{QKV}", [])
    assert (found.prefix, found.name, found.rule) == (
        "transformer.base_model.model.",
        QKV,
        "name and shape",
    )
    assert weights(found) == [f"diffusion_model.{QKV}.weight"]


def test_a_name_that_leads_nowhere_is_told_without_its_wrappers(target_model):
    assert locate(target_model, "transformer.base_model.model.nothing", []) == (
        "transformer.base_model.model.",
        "nothing",
        (),
        "",
    )
    assert locate(target_model, "nothing", []) == ("", "nothing", (), "")


def test_wrappers_that_led_somewhere_are_remembered_and_those_that_did_not_are_none(target_model):
    recent = []
    locate(target_model, "transformer.nothing", recent)
    assert recent == []
    locate(target_model, f"transformer.module.{QKV}", recent)
    locate(target_model, "img_in", recent)
    assert recent == [("transformer.module.", (DENOISER,)), ("", None)]
    others = [(f"other{number}.", None) for number in range(7)]
    locate(target_model, "img_in", others)
    assert len(others) == 8
    locate(target_model, "transformer.img_in", others)
    assert len(others) == 8


def test_a_remembered_wrapper_is_tried_first_and_only_where_it_stands_and_leads_somewhere(
    target_model,
):
    remembered = [("acme.", None), ("lora_", None), ("text_encoder.", ("clip_l",))]
    assert locate(target_model, "acme.img_in", list(remembered))[:2] == ("acme.", "img_in")
    assert locate(target_model, "img_in", list(remembered))[:2] == ("", "img_in")
    assert locate(target_model, "lora_unet_img_in", list(remembered))[:2] == (
        "lora_unet_",
        "img_in",
    )
    assert weights(locate(target_model, "text_encoder.twin", list(remembered))) == [
        "clip_l.transformer.twin.weight"
    ]


def test_what_names_no_network_does_not_make_forgotten_which_was_named(target_model):
    """Both networks have the module: the prefix outside says which is meant, and PEFT's inside
    says nothing.
    """
    assert weights(locate(target_model, "text_encoder.base_model.model.twin", [])) == [
        "clip_l.transformer.twin.weight"
    ]
    assert weights(locate(target_model, "transformer.base_model.model.twin", [])) == [
        "diffusion_model.twin.weight"
    ]
    assert weights(locate(target_model, "base_model.model.alone", [])) == [
        "clip_l.transformer.alone.weight"
    ]
    assert not locate(target_model, "transformer.base_model.model.alone", []).candidates


def test_wrappers_around_wrappers(target_model):
    """Each way to peel is gone once; else twelve of them would have thousands of ways."""
    assert locate(target_model, "base_model.model." * 12 + "img_in", [])[:2] == (
        "base_model.model." * 12,
        "img_in",
    )
    assert locate(target_model, "_orig_mod." * 36 + "img_in", [])[:2] == (
        "_orig_mod." * 36,
        "img_in",
    )


def test_wrappers_without_end_are_given_up(target_model):
    assert locate(target_model, "model." * 63 + "img_in", [])[:2] == ("model." * 63, "img_in")
    assert not locate(target_model, "model." * 64 + "img_in", []).candidates
    assert len(list(peeled(target_model, "dit." * 90 + "img_in"))) == 64


def long(length: int) -> str:
    """The name of a module of so many characters: doubled separators are one."""
    first, last = "double_blocks", "0_img_attn_qkv"
    return first + "_" * (length - len(first) - len(last)) + last


def test_the_longest_name_that_is_looked_at(target_model):
    assert weights(locate(target_model, long(400), [])) == [f"diffusion_model.{QKV}.weight"]
    assert locate(target_model, long(401), []) == ("", long(401), (), "")
    wrapped = "lora_unet_" + long(390)
    assert [(prefix.text, rest) for prefix, rest in peeled(target_model, wrapped)] == [
        ("lora_unet_", long(390))
    ]
    assert list(peeled(target_model, "lora_unet_" + long(391))) == []


def test_the_wrappers_in_front_of_a_name_each_the_longest(target_model):
    found = [
        (prefix.text, rest)
        for prefix, rest in peeled(target_model, "module.transformer.base_model.model.x.y")
    ]
    assert found == [
        ("module.", "transformer.base_model.model.x.y"),
        ("transformer.base_model.model.", "x.y"),
    ]
    assert list(peeled(target_model, "x.y")) == []


@pytest.mark.parametrize(
    ("module", "network"),
    [
        ("transformer.base_model.model.x", DENOISER),
        ("lora_unet_x", DENOISER),
        ("base_model.model.transformer.x", DENOISER),
        ("lora_te1_x", ENCODER),
        ("text_encoder.base_model.model.x", ENCODER),
        ("clip_l.transformer.x", ENCODER),
        ("base_model.model.x", None),
        ("x", None),
    ],
)
def test_the_network_that_a_wrapper_names(target_model, module, network):
    assert network_named(target_model, module) == network


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("a._orig_mod.b", ["a.b"]),
        ("a__orig_mod_b", ["a_b"]),
        ("a.my_orig_mods.b", []),
        ("a.processor.b._orig_mod.c", ["a.processor.b.c", "a.b._orig_mod.c", "a.b.c"]),
        ("sformer_blocks.0.x", ["transformer_blocks.0.x"]),
        ("transformer.sformer_blocks.0.x", ["transformer.transformer_blocks.0.x"]),
        (".sformer_blocks.0.x", [".transformer_blocks.0.x"]),
        ("lora_unet_ext_embedder", ["lora_unet_context_embedder"]),
        (
            "transformer_blocks.0.x",
            [],
        ),  # `former_blocks.` stands in it, but not at the beginning of a word
        ("tsformer_blocks.0.x", []),
        ("ks.0.locks.1", ["blocks.0.locks.1"]),
        ("attn.to_out", ["attn.to_out.0"]),
        ("attn.to_out.x", []),
        ("attn._orig_mod.to_out", ["attn.to_out", "attn._orig_mod.to_out.0", "attn.to_out.0"]),
    ],
)
def test_other_readings_of_a_name(target_model, module, others):
    assert sorted(alias_names(target_model, module)) == sorted(others)


def test_other_readings_are_tried_only_where_the_name_leads_nowhere(target_model):
    assert locate(target_model, "a.processor.b", [])[1::2] == ("a.processor.b", "name and shape")
    recent = []
    found = locate(target_model, "transformer.c._orig_mod.processor.d", recent)
    assert (found.prefix, found.name, found.rule) == (
        "transformer.",
        "c.d",
        "read as transformer.c.d",
    )
    assert recent == []
    assert locate(target_model, "transformer.c._orig_mod.e", []) == (
        "transformer.",
        "c._orig_mod.e",
        (),
        "",
    )
