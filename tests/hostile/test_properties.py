"""Files that hypothesis makes up, the same in every run: headers nearly right, bytes changed
anywhere, names and metadata of any text.
"""

from __future__ import annotations

import json
import random

import seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judge import judge
from lora_locksmith.files.header import parse_header, read_header
from lora_locksmith.planning.groups import group_keys
from lora_locksmith.planning.keys import parse_key
from lora_locksmith.report.compare import compare_files
from lora_locksmith.report.metadata import read_metadata

MANY = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FEW = settings(MANY, max_examples=60)

WORDS = (
    "transformer_blocks",
    "lora_unet",
    "attn",
    "to_q",
    "base_model",
    "model",
    "default",
    "0",
    "1",
    "",
    "down",
    "lora",
    "_",
    "lora_te1",
    "text_encoder",
    "processor",
)
words = st.sampled_from(
    [*(word for role in seeds.ROLES for word in role.split(".")), *seeds.NUMBERS, *WORDS]
)
names = st.one_of(
    st.lists(words, max_size=9).map(".".join),
    st.lists(words, max_size=9).map("_".join),
    st.builds(
        "{}.{}".format,
        st.sampled_from(["transformer.x_embedder", "lora_unet_img_in", "x", ""]),
        st.sampled_from(seeds.ROLES),
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
sizes = st.sampled_from([0, 1, 1, 2, 3, 4, 8, 64])
shapes = st.lists(sizes, max_size=5).map(tuple)
tensors = st.dictionaries(
    names.filter(lambda name: name != "__metadata__"),
    st.tuples(shapes, st.sampled_from(["F16", "F32", "I8"])),
    max_size=12,
)
texts = st.one_of(st.sampled_from(seeds.VALUES), st.text(max_size=30))
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
)
metadata = st.dictionaries(
    st.sampled_from(seeds.TOLD) | texts, values.map(json.dumps) | texts, max_size=6
)


def made(described, told) -> bytes:
    return seeds.sound([(name, shape, dtype) for name, (shape, dtype) in described.items()], told)


@MANY
@given(described=tensors, told=metadata)
def test_any_names_shapes_and_metadata(tmp_path_factory, described, told):
    path = tmp_path_factory.getbasetemp() / "sound.safetensors"
    path.write_bytes(made(described, told))
    assert judge(path) == "read"


@MANY
@given(
    name=st.sampled_from(
        sorted(name for name, content in seeds.CORPUS.items() if len(content) < 20_000)
    ),
    seed=st.integers(0, 2**32),
)
def test_bytes_changed_anywhere(tmp_path_factory, name, seed):
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(changed(seeds.CORPUS[name], random.Random(seed)))
    judge(path)


def changed(content: bytes, chance: random.Random) -> bytes:
    """Some bytes set, cut out, doubled or swapped, the more so in the header."""
    whole = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(max(1, min(len(whole), chance.choice((9, 400, 10**6)))))
        end = start + chance.randint(0, 8)
        whole[start:end] = chance.choice(
            (
                b"",
                bytes(whole[start:end]) * 2,
                chance.randbytes(1),
                b'"',
                b"{",
                b"0",
                b"-",
                b"9" * 30,
                b"\\u",
            )
        )
    return bytes(whole)


@MANY
@given(key=names, others=st.lists(names, max_size=6))
def test_every_key_is_taken_apart_or_left_whole(key, others):
    parsed = parse_key(key)
    assert (parsed.role is None) == (
        parsed.module == key and not parsed.spelling
    ) or parsed.module == key
    found = group_keys(dict.fromkeys([key, *others]))
    placed = [key for group in found.groups for key in group.keys.values()]
    told = [*placed, *found.network_alphas.values(), *found.notes, *found.unread, *found.repeated]
    assert sorted(told) == sorted({key, *others})


@FEW
@given(described=tensors, order=st.randoms(use_true_random=False))
def test_the_order_of_the_data_changes_nothing(tmp_path_factory, described, order):
    header, size = seeds.described(
        [(name, shape, dtype) for name, (shape, dtype) in described.items()]
    )
    shuffled = dict(order.sample(sorted(header.items()), len(header)))
    path = tmp_path_factory.getbasetemp() / "shuffled.safetensors"
    path.write_bytes(seeds.packed(json.dumps(shuffled).encode(), bytes(size)))
    assert judge(path) == "read"
    assert dict(parse_header("x", json.dumps(header).encode(), size).tensors) == dict(
        read_header(path).tensors
    )


@MANY
@given(
    told=st.dictionaries(
        st.sampled_from(seeds.TOLD) | texts, values.map(json.dumps) | texts, max_size=8
    )
)
def test_any_metadata_is_told_as_plain_json(told):
    json.dumps(read_metadata(told).as_dict(), allow_nan=False).encode()


@FEW
@given(first=tensors, second=tensors)
def test_any_two_files_are_compared(tmp_path_factory, first, second):
    paths = [tmp_path_factory.getbasetemp() / f"{name}.safetensors" for name in "ab"]
    for path, described in zip(paths, (first, second), strict=True):
        path.write_bytes(made(described, None))
    found = compare_files(*paths)
    json.dumps(found.as_dict(), allow_nan=False)
    found.markdown().encode()
