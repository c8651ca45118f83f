"""The table language: what rows mean, and a precise error for every way to get a table wrong."""

import pytest
from lora_locksmith.key_maps.table import (
    Slice,
    TableError,
    flatten,
    generalise,
    in_one_form,
    parse_table,
    slices,
    unify,
)
from lora_locksmith.planning.names import names_of
from lora_locksmith.planning.target_model import Network

FLUX_LIKE = """
@title Example
@sizes small: h=4 m=16
@encoder clip_l lora_te1_ text_encoder.
final.1                2h h   = ~norm_out.linear

[double.{} = blocks.{} | old_blocks.{}]
qkv                    3h h   = attn.to_q + attn.to_k + attn.to_v | attn.to_qkv
linear1                3h+m h = q:h + k:h + v:h + mlp:m
kv.q                   h h    = to_q
wq                     h h
wk                     k h
wq + wk                       = fused
"""


@pytest.fixture(scope="module")
def family():
    return parse_table("example", FLUX_LIKE)


def place(family, name, *shapes):
    match = family.find(flatten(name))[0]
    return match.native, slices(match.row, match.alternative, match.part, shapes)


def test_parts_of_a_fused_weight(family):
    assert place(family, "blocks.7.attn.to_k", (12, 4)) == (
        ("double.7.qkv",),
        (Slice(0, (4, 4), None),),
    )
    assert place(family, "old_blocks_7_attn_to_v", (12, 4)) == (
        ("double.7.qkv",),
        (Slice(0, (8, 4), None),),
    )
    assert place(family, "blocks.7.attn.to_qkv", (12, 4)) == (
        ("double.7.qkv",),
        (Slice(0, None, None),),
    )


def test_unequal_parts(family):
    assert place(family, "blocks.0.mlp", (28, 4)) == (
        ("double.0.linear1",),
        (Slice(0, (12, 16), None),),
    )


def test_one_name_for_several_weights(family):
    native, placed = place(family, "blocks.2.fused", (4, 4), (2, 4))
    assert native == ("double.2.wq", "double.2.wk")
    assert placed == (Slice(0, None, (0, 4)), Slice(1, None, (4, 2)))


def test_shapes_that_do_not_fit_the_row(family):
    assert place(family, "blocks.0.attn.to_q", (13, 4))[1] is None
    assert place(family, "blocks.0.attn.to_q", (12, 4, 1))[1] is None


def test_swapped_halves_and_the_rest(family):
    match = family.find("norm_out_linear")[0]
    assert match.row.alternatives[match.alternative].swap
    assert family.sizes == {"small": {"h": 4, "m": 16}}
    assert family.encoders == {"clip_l": ("lora_te1_", "text_encoder.")}


def test_names_that_are_neither_comfyuis_nor_diffusers():
    text = (
        "@title x\n[a.{} = b.{}]\nqkv 3h h = q + k + v\n@names original\n[a.{}]\nqkv 3h h = c.qkv"
    )
    family = parse_table("example", text)
    assert (
        place(family, "a_1_c_qkv", (12, 4))
        == place(family, "a_1_qkv", (12, 4))
        == (("a.1.qkv",), (Slice(0, None, None),))
    )
    told = {
        names: names_of(family, "a.1.qkv", (12, 4), names)
        for names in ("diffusers", "original", "nobodys")
    }
    assert told["diffusers"] == [
        ("b.1.q", (0, 4), False),
        ("b.1.k", (4, 4), False),
        ("b.1.v", (8, 4), False),
    ]
    assert told["original"] == [("a.1.c.qkv", None, False)] and not told["nobodys"]


def test_names_that_are_not_there(family):
    assert family.find("blocks_x_attn_to_q") == []
    assert family.find("") == []


def test_symbols_are_solved_from_all_dimensions():
    h_plus_2k = (("h", 1), ("k", 2))
    assert unify((h_plus_2k, (("h", 1),)), (3840, 2304)) == {"h": 2304, "k": 768}
    assert unify(((("h", 3),), (("h", 1),)), (12, 5)) is None


def test_lone_numbers_are_indices_and_numbers_in_words_are_not():
    assert generalise("layers_12_attn1_to_out_0") == ("layers_{}_attn1_to_out_{}", ("12", "0"))
    assert flatten("a..b__c._d") == "a_b_c_d"


FAULTS = {
    "no title": ("a h h = b", "@title"),
    "no rows": ("@title x", "no rows"),
    "branch of nobody": ("@title x\n@branch image: a\na h = b", "@branch 'image: a'"),
    "branch without a row": ("@title x\n@branch image of X: c\na h = b", "@branch"),
    "unknown directive": ("@title x\n@colour red\na h = b", "@colour"),
    "no shape": ("@title x\na = b", "no shape"),
    "bad size": ("@title x\na 3H h = b", "not a size"),
    "zero": ("@title x\na 0h h = b", "zero"),
    "open header": ("@title x\n[a.{} = b.{}\nc h = d", "closing"),
    "indices": ("@title x\n[a.{} = b]\nc h = d", "indices"),
    "sum": ("@title x\na 3h h = b:h + c:h", "add up"),
    "swap of several": ("@title x\na 2h h = ~b + c", "halves"),
    "no name": ("@title x\na 2h h = b + ", "not a name"),
    "ambiguous": ("@title x\na h h = b\nc h h = b", "already means"),
    "ambiguous by flattening": ("@title x\na_b h h\na.b h h", "already means"),
    "fused with a shape": ("@title x\na h h\nb h h\na + b h h = c", "fused"),
    "sizes": ("@title x\n@sizes big\na h h", "@sizes"),
    "inputs": ("@title x\n@inputs 64<wide\na h i..", "@inputs '64<wide'"),
    "no input": ("@title x\n@inputs 0\na h i..", "@inputs '0'"),
    "encoder": ("@title x\n@encoder clip_l\na h h", "prefix"),
    "kind": ("@title x\n@kind vae\na h h", "@kind"),
    "names": ("@title x\na h h = b\n@names diffusers\na h h = c", "@names"),
}


@pytest.mark.parametrize("text, fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_wrong_table_is_refused_by_file_and_line(text, fault):
    with pytest.raises(TableError) as raised:
        parse_table("wrong", text, "wrong.table")
    assert "wrong.table" in str(raised.value)
    assert fault in str(raised.value)


def test_layers_that_a_model_has_fused_or_apart():
    """Either form takes the other's names; a model that is not there is drawn in the form that
    stands first.
    """
    family = parse_table("two", "@title Two\nfused? 2m h = a + b\na? m h\nb? m h\na + b = fused\n")
    assert [row.native for row in in_one_form(family.rows)] == [("fused",), ("a", "b")]
    fused = Network("denoiser", "", {"fused.weight": (8, 3)}, family)
    assert [fused.find(name)[0].slices for name in "ab"] == [
        (("fused.weight", (0, 4), None),),
        (("fused.weight", (4, 4), None),),
    ]
    apart = Network("denoiser", "", {"a.weight": (4, 3), "b.weight": (4, 3)}, family)
    assert apart.find("fused")[0].slices == (("a.weight", None, (0, 4)), ("b.weight", None, (4, 4)))
