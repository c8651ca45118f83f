"""LoRAs that a text or another pack's stack names, among files in the host's own folders."""

from __future__ import annotations

import contextlib

import pytest


@pytest.fixture
def tags(comfy, tmp_path, monkeypatch):
    """nodes/tags.py, with files in a loras folder."""
    import folder_paths
    from lora_locksmith.nodes import tags

    for name in (
        "style.safetensors",
        "anime/Line Art.safetensors",
        "a/twice.safetensors",
        "b/twice.safetensors",
        "\u753b\u98ce/\u6c34\u58a8 v1.5.safetensors",
        "v2.5.pt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths,
        "loras",
        ([str(tmp_path)], folder_paths.supported_pt_extensions),
    )
    folder_paths.filename_list_cache.pop("loras", None)
    yield tags
    folder_paths.filename_list_cache.pop("loras", None)


@pytest.mark.parametrize(("name", "listed"), [
    ("style", "style.safetensors"),
    ("style.safetensors", "style.safetensors"),
    ("STYLE", "style.safetensors"),
    ("Line Art", "anime/Line Art.safetensors"),
    ("anime/line art", "anime/Line Art.safetensors"),
    ("anime\\Line Art.safetensors", "anime/Line Art.safetensors"),
    ("\u6c34\u58a8 v1.5", "\u753b\u98ce/\u6c34\u58a8 v1.5.safetensors"),
    ("v2.5", "v2.5.pt"),
    ("a/twice", "a/twice.safetensors"),
])  # fmt: skip
def test_names(tags, name, listed):
    assert tags.find_lora(name).replace("\\", "/") == listed


@pytest.mark.parametrize(("name", "says"), [
    ("twice", "several LoRAs are called 'twice': a/twice.safetensors, b/twice.safetensors"),
    ("styel", "did you mean style.safetensors"),
    ("zzzzzz", "Put the file into a loras folder"),
    ("", "no LoRA is called ''"),
])  # fmt: skip
def test_names_that_are_no_file_or_several(tags, name, says):
    from lora_locksmith.messages import text_of

    with pytest.raises(ValueError) as fault:
        tags.find_lora(name)
    assert says in text_of(fault.value)


@pytest.mark.parametrize(("tag", "strengths", "unused"), [
    ("<lora:style>", (1, 1), ()),
    ("<lora:style:0.8>", (0.8, 0.8), ()),
    ("<lora:style:0.8:0.6>", (0.8, 0.6), ()),
    ("<lora:style:-1:0>", (-1, 0), ()),
    ("<LORA: style : .5 >", (0.5, 0.5), ()),
    ("<lyco:style:1>", (1, 1), ()),
    ("<lora:style:te=0.5:unet=0.9>", (0.9, 0.5), ()),
    ("<lora:style:0.8:te=0.1>", (0.8, 0.1), ()),
    ("<lora:style:0.8:0.6:8>", (0.8, 0.6), ("8",)),
    ("<lora:style:0.8:lbw=MINE>", (0.8, 0.8), ("lbw=MINE",)),
])  # fmt: skip
def test_strengths(tags, tag, strengths, unused):
    [(name, model, clip, rest, _)], _ = tags.read_tags(tag)
    assert (name, (model, clip), rest) == ("style.safetensors", strengths, unused)


@pytest.mark.parametrize(
    "tag", ["<lora:style:x>", "<lora:style:101>", "<lora:style:nan>", "<lora:style:>"]
)
def test_strengths_that_are_none(tags, tag):
    from lora_locksmith.messages import text_of

    with pytest.raises(ValueError) as fault:
        tags.read_tags(tag)
    assert "is not a number from -100 to 100" in text_of(fault.value)


@pytest.mark.parametrize(("text", "bare"), [
    ("a cat, <lora:style:1>, at night", "a cat, at night"),
    ("a cat <lora:style:1> at night", "a cat at night"),
    ("<lora:style:1> a cat", "a cat"),
    ("a cat, <lora:style:1>", "a cat"),
    ("a cat <lora:style:1><lora:Line Art:0.5>, night", "a cat, night"),
    ("first\n<lora:style:1>\nlast", "first\n\nlast"),
    ("(a:1.2), <b>, a  b", "(a:1.2), <b>, a  b"),
    ("", ""),
])  # fmt: skip
def test_the_text_without_them(tags, text, bare):
    assert tags.read_tags(text)[1] == bare


def test_a_stack_of_another_pack(tags):
    stack = [
        ("style.safetensors", 0.5, 0.25),
        ("None", 1.0, 1.0),
        ["anime\\Line Art.safetensors", 1],
    ]
    assert [one[:3] for one in tags.read_stack(stack)] == [
        ("style.safetensors", 0.5, 0.25),
        ("anime/Line Art.safetensors", 1, 1),
    ]
    assert list(tags.read_stack(None)) == []


@pytest.mark.parametrize(
    "stack", ["style", [("style",)], [(1, 1, 1)], [("style", "strong", 1)], {"a": 1}]
)
def test_a_stack_that_is_none(tags, stack):
    with pytest.raises(ValueError):
        list(tags.read_stack(stack))


@pytest.mark.parametrize(
    "text", ["<lora:" * 5000, "<lora:style:" + ":" * 50_000, "\0<lora:style>\0" * 50]
)
def test_odd_texts_end_soon(tags, text):
    with contextlib.suppress(ValueError):
        tags.read_tags(text)


def test_a_block_weight_vector_in_a_tag(tags):
    vector = ",".join(["1"] * 16 + ["0.5"])
    [named], _ = tags.read_tags(f"<lora:style:0.8:lbw={vector}>")
    assert (named.strength, named.blocks, named.unused) == (0.8, vector, ())
    [row] = tags.rows_of([named], 3)
    assert (row.number, row.blocks) == (3, vector)
    [named], _ = tags.read_tags("<lora:style:0.8:lbw=MIDD:stop=9>")
    assert (named.blocks, named.unused) == ("MIDD", ("stop=9",))
