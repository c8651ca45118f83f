"""What the names of layers say: words where the whole name is understood, and none where it is
not.
"""

import pytest
from lora_locksmith.key_maps.layer_words import LayerWordsError, blocks_in, layer_words, phrases
from lora_locksmith.key_maps.table import families
from lora_locksmith.messages import catalog, languages, translate
from lora_locksmith.report.coverage import LayerKind, TrainedBlocks, TrainedLayers, untrained_words

WORDS = {
    "img_attn.qkv": "image attention: query, key, value",
    "txt_mlp.2": "text feed-forward: output",
    "attn.add_q_proj": "text attention: query",
    "modulation.lin": "modulation",
    "self_attn.o": "self-attention: output",
    "cross_attn.k_img": "image cross-attention: key",
    "x_block.attn2.proj": "image cross-attention: output",
    "feed_forward.w3": "feed-forward: input",
    "1.transformer_blocks.7.attn1.to_q": "self-attention of transformer 7: query",
    "input_blocks.4.0.in_layers.2": "convolution: input",
    "input_blocks.0.0": "image input",
    "middle_block.2.emb_layers.1": "time embedding",
    "head.modulation": "modulation of the final layer",
}
UNKNOWN = [
    "",
    ".",
    "0",
    "img_in.0",
    "before_proj",
    "attn.norm_q",
    "to_q",
    "img_attn.txt_attn",
    "q.k",
]
# All layers of their blocks that a LoRA can have are told in words.
SPOKEN = ["flux1", "flux2", "qwen_image", "sd3"]


@pytest.mark.parametrize("name", WORDS)
def test_what_a_name_says(name):
    found = layer_words(name)
    assert found.text == WORDS[name]
    assert translate(found.text, "zh") != found.text and translate(found.part, "zh") != found.part


def test_some_names_say_it_in_their_blocks_alone():
    assert layer_words("linear1", "single_blocks").text == "attention and feed-forward: input"
    assert layer_words("linear1", "music_encoder.layers") is layer_words("linear1") is None


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_has_no_words(name):
    assert layer_words(name) is None


@pytest.mark.parametrize("family", SPOKEN)
def test_layers_of_blocks_have_words(family):
    silent = {
        name
        for row in families()[family].rows
        for name in [row.native[0].rpartition("{}.")[2]]
        if "{}" in row.native[0]
        and "norm" not in name
        and not layer_words(name, row.native[0].partition(".{}")[0])
    }
    assert not {name for name in silent if "ln_" not in name}


def test_every_word_is_in_every_language():
    said = {word for words in phrases().words.values() for word in words.values()}
    for language in languages():
        assert said <= {id.partition(".")[2] for id in catalog(language)}


def test_blocks_of_a_unet_are_one_place():
    assert blocks_in("input_blocks.4.0.in_layers.2") == "input_blocks"
    assert blocks_in("middle_block.1.proj_in") == "middle_block"
    assert blocks_in("double_blocks.3.linear1") == blocks_in("input_blocks.0.0") == ""


def told(*kinds, blocks="blocks"):
    listed = tuple(LayerKind(name, trained, ()) for name, trained in kinds)
    return untrained_words([TrainedLayers("", "", 1, (TrainedBlocks(blocks, 2, listed),))])


def test_a_part_is_told_as_a_whole_where_nothing_of_it_is_trained():
    assert told(("img_attn.qkv", "00"), ("img_attn.proj", "00")) == ["image attention in blocks"]
    assert told(("img_attn.qkv", "00"), ("img_attn.proj", "02")) == [
        "image attention (query, key, value) in blocks"
    ]
    assert told(("img_attn.qkv", "02")) == []


def test_what_would_be_called_as_something_trained_keeps_its_name():
    assert told(("feed_forward.w1", "02"), ("feed_forward.w3", "00")) == [
        "feed_forward.w3 in blocks"
    ]
    blocks = tuple(
        TrainedBlocks(
            f"input_blocks.{n}.1.transformer_blocks", 1, (LayerKind("attn1.to_q", mark, ()),)
        )
        for n, mark in ((4, "2"), (7, "0"))
    )
    assert untrained_words([TrainedLayers("", "", 1, blocks)]) == [
        "input_blocks.7.1.transformer_blocks.{}.attn1.to_q in input_blocks"
    ]


@pytest.mark.parametrize(
    "line",
    ["@who a", "@where", "image", "image :", "what : x", "image text : x", "image : img | img"],
)
def test_a_table_that_breaks_the_rules_is_refused(tmp_path, line):
    path = tmp_path / "x.table"
    path.write_text(f"@where image text\n@what attention\n{line}\n")
    with pytest.raises(LayerWordsError, match=r"x\.table, line 3"):
        phrases(path)
