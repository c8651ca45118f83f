"""The corpus of hostile files: each made anew by a few lines, so that no binary file is kept, and
what is known to be right about it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F8_E4M3": 8,
    "BOOL": 8,
    "I8": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
FLUX = "transformer.transformer_blocks.{}.attn.to_q"
PAIR = (("lora_A.weight", (4, 3072)), ("lora_B.weight", (3072, 4)))


def packed(header: bytes, data: bytes = b"") -> bytes:
    """A file of this header text and this data."""
    return struct.pack("<Q", len(header)) + header + data


def described(
    tensors: Iterable[tuple], metadata: Any = None, dtype: str = "F32"
) -> tuple[dict[str, Any], int]:
    """(a sound header for these, the bytes of its data); tensors: (name, shape) or (name, shape,
    dtype).
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, shape, *other in tensors:
        kind = other[0] if other else dtype
        start, end = end, end + (BITS[kind] * prod(shape) + 7) // 8
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    return header, end


def sound(
    tensors: Iterable[tuple], metadata: Any = None, dtype: str = "F32", fill: bytes = b"\0"
) -> bytes:
    """A sound file whose data repeats `fill`."""
    header, size = described(tensors, metadata, dtype)
    return packed(json.dumps(header).encode(), (fill * (size // len(fill) + 1))[:size])


def module(name: str, rank: int = 4, wide: int = 3072, tall: int = 3072) -> list[tuple]:
    """The two factors of one LoRA module, as PEFT names them."""
    return [(f"{name}.lora_A.weight", (rank, wide)), (f"{name}.lora_B.weight", (tall, rank))]


def small(name: str) -> list[tuple]:
    """A module that is too small for any model, but a module."""
    return module(name, 1, 2, 2)


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> str:
    """The description of one tensor as JSON text, right or wrong."""
    listed = [list(value) if isinstance(value, tuple) else value for value in (shape, offsets)]
    return json.dumps({"dtype": dtype, "shape": listed[0], "data_offsets": listed[1], **more})


def one(text: str, data: int = 4) -> bytes:
    """A file whose header is this text; `%` stands for the description of one sound number."""
    return packed(text.replace("%", entry()).encode("utf-8", "surrogatepass"), b"\0" * data)


WHOLE = sound([*module(FLUX.format(0), 2), ("x.alpha", ())], {"note": "hello"})
DEEP = "[" * 100_000 + "]" * 100_000

LENGTHS = {
    "empty": b"",
    "seven bytes": b"\x01" * 7,
    "length alone": struct.pack("<Q", 2),
    "length 0": struct.pack("<Q", 0) + b"{}",
    "length 1": struct.pack("<Q", 1) + b"{",
    "length of the whole file": struct.pack("<Q", len(WHOLE)) + WHOLE[8:],
    "length one too long": struct.pack("<Q", struct.unpack("<Q", WHOLE[:8])[0] + 1) + WHOLE[8:],
    "length one too short": struct.pack("<Q", struct.unpack("<Q", WHOLE[:8])[0] - 1) + WHOLE[8:],
    "length 100 MB": struct.pack("<Q", 100_000_000) + WHOLE[8:],
    "length beyond 100 MB": struct.pack("<Q", 100_000_001) + WHOLE[8:],
    "length 2**63": struct.pack("<Q", 2**63) + WHOLE[8:],
    "length 2**64 - 1": b"\xff" * 8 + WHOLE[8:],
    "length the wrong way round": WHOLE[7::-1] + WHOLE[8:],
    "web page": b"<!DOCTYPE html><html></html>" * 20,
    "pickle": b"PK\x03\x04" + bytes(60),
    "old pickle": b"\x80\x02}q\x00." + bytes(60),
    "gguf": b"GGUF\x03\0\0\0" + bytes(60),
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "byte order mark before the length": b"\xef\xbb\xbf" + WHOLE,
    "only zeros": bytes(4096),
}

TEXTS = {
    "no object": packed(b"[]"),
    "text": packed(b'"text"'),
    "null": packed(b"null"),
    "NaN": packed(b"NaN     "),
    "nothing but space": packed(b"        "),
    "no end": packed(b'{"a":'),
    "trailing comma": one('{"a":%,}'),
    "comments": one('{"a":%/* */}'),
    "two objects": one('{"a":%}{"b":%}'),
    "NUL behind": one('{"a":%}\0\0'),
    "byte order mark": one('\ufeff{"a":%}'),
    "UTF-16": packed('{"a":1}'.encode("utf-16")),
    "Latin-1": packed('{"\xe9":1}'.encode("latin-1")),
    "overlong NUL": packed(b'{"\xc0\x80":%s}' % entry().encode(), bytes(4)),
    "half a character in UTF-8": packed(b'{"\xed\xa0\x80":%s}' % entry().encode(), bytes(4)),
    "half a character in a name": one('{"\\ud800":%}'),
    "halves in the wrong order": one('{"\\udc00\\ud800":%}'),
    "half a character in metadata": one(
        '{"__metadata__":{"ss_output_name":"\\ud800","\\udfff":"x"},"a":%}'
    ),
    "raw control in a name": one('{"a\x01":%}'),
    "name twice": one('{"a":%,"a":%}'),
    "name twice, once escaped": one('{"a":%,"\\u0061":%}'),
    "name twice, fields escaped": one('{"a":%,"a":%}').replace(b'"dtype"', b'"d\\u0074ype"', 1),
    "metadata twice": one('{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"},"a":%}'),
    "key of the metadata twice": one('{"__metadata__":{"a":"b","a":"c"},"a":%}'),
    "field twice": one('{"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,4]}}'),
    "deep": one('{"a":' + DEEP + "}"),
    "deep in metadata": one('{"__metadata__":{"a":' + "[" * 985 + "]" * 985 + '},"a":%}'),
    "deep beside the fields": one('{"a":' + entry()[:-1] + ',"x":' + "[" * 300 + "]" * 300 + "}}"),
    "deep in text of the metadata": one(
        json.dumps({"__metadata__": {"ss_tag_frequency": DEEP, "ss_datasets": DEEP}})[:-1]
        + ',"a":%}'
    ),
    "a number of 5,000 digits": one(
        '{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}'
    ),
    "a number of 4,000 digits": one(
        '{"a":{"dtype":"F32","shape":[' + "9" * 4000 + "," + "9" * 4000 + '],"data_offsets":[0,4]}}'
    ),
    "offsets of 4,000 digits": one(
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[' + "9" * 4000 + "," + "9" * 4299 + "]}}"
    ),
}

DTYPES = ("F99", "", None, 1, [], {}, "f32", "F32\0", "BF16", "I64", "U8", "C64")
WRONG_SHAPES = (
    "1",
    "",
    {},
    {"1": 1},
    None,
    1,
    [[1]],
    ["1"],
    [None],
    [1.0],
    [True],
    [-1],
    [2],
    [0],
    [4, 0],
    [2**62, 4],
    [2**63, 2**63],
    [2**64],
    [-1, -1],
    [10**400],
)
WRONG_OFFSETS = (
    "04",
    {},
    {"0": 1, "4": 2},
    [0],
    [0, 4, 8],
    [0.0, 4.0],
    [False, 4],
    [None, 4],
    [4, 0],
    [-4, 0],
    [0, 2**63],
    [2**64, 2**64 + 4],
    [1, 5],
    [[0], [4]],
    ["0", "4"],
)
WRONG = (
    *(entry(dtype) for dtype in DTYPES),
    *(entry(shape=shape) for shape in WRONG_SHAPES),
    *(entry(offsets=offsets) for offsets in WRONG_OFFSETS),
    *(entry(dtype, shape) for dtype, shape in (("F4", [7]), ("F4", [8]), ("F6_E2M3", [5]))),
    *("null", "1", "[]", "{}", '"F32"', '["F32",[1],[0,4]]'),
)
ENTRIES = {f"tensor {text[:90]}": one(f'{{"a":{text}}}') for text in WRONG} | {
    f"metadata {text[:40]}": one(f'{{"__metadata__":{text},"a":%}}')
    for text in ("[]", '""', "0", "null", "%", '{"a":NaN}', '{"a":1e999,"b":[{}],"c":null}')
}


def _placed(*places: tuple[int, int], data: int) -> bytes:
    texts = (
        f'"t{number}":{entry(shape=((end - start) // 4,), offsets=(start, end))}'
        for number, (start, end) in enumerate(places)
    )
    return packed(f"{{{','.join(texts)}}}".encode(), bytes(data))


LAYOUTS = {
    "overlap": _placed((0, 8), (4, 12), data=12),
    "the same place": _placed((0, 4), (0, 4), data=4),
    "hole at the start": _placed((4, 8), data=8),
    "hole in the middle": _placed((0, 4), (8, 12), data=12),
    "out of order": _placed((8, 12), (0, 4), (4, 8), data=12),
    "cut by one byte": _placed((0, 4), (4, 8), data=7),
    "one byte too many": _placed((0, 4), (4, 8), data=9),
    "empty tensors anywhere": _placed((0, 0), (0, 4), (4, 4), (4, 8), (8, 8), data=8),
    "an empty tensor inside another": _placed((0, 8), (4, 4), data=8),
    "an empty tensor behind the end": _placed((0, 4), (8, 8), data=4),
    "no tensor": packed(b"{}"),
    "no tensor but data": packed(b"{}", bytes(8)),
    "metadata only": packed(b'{"__metadata__":{"a":"b"}}'),
}

STRANGE_NAMES = [
    "",
    ".",
    "..",
    "...",
    "\0",
    "a\0b",
    "__metadata__ ",
    "../../../etc/passwd",
    "..\\..\\x",
    "/etc/passwd",
    "C:\\x",
    "file:///x",
    "~",
    "$HOME",
    "%s%n",
    "{}",
    "{0.__class__}",
    "\u202egnp",
    "\u2028",
    "\ufeff",
    "\x1b[2J\x1b]0;x\x07",
    "\U0001f600",
    "e\u0301",
    "\u0130",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "|a|b|",
    "`",
    "\n\n# x",
    "\t",
    " ",
    "=cmd()",
    "lora_unet_",
    "lora_te_",
    "_",
    "." * 400,
    "_" * 400,
    "lora_A.weight",
    ".lora_A.weight",
    "weight",
    "alpha",
    ".alpha",
    "lora_unet_x.alpha",
    "base_model.model.",
]
NUMBERS = (
    "0",
    "-1",
    "00",
    "99999999999999999999",
    "9" * 5000,
    "\u0663",
    "\u00b2",
    "\u2460",
    "1e9",
    "0x1",
    "1_0",
    "\uff11",
    "\U0001d7d9",
    " 1",
)
PATHS = (
    "../../../../etc/passwd",
    "/etc/shadow",
    "..\\..\\boot.ini",
    "file:///etc/passwd",
    "\\\\host\\share",
    "a\0b",
)
TOLD = (
    "ss_output_name",
    "ss_sd_model_name",
    "modelspec.title",
    "modelspec.architecture",
    "ss_base_model_version",
    "ss_network_module",
    "name",
    "ss_network_args",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_tag_frequency",
    "ss_dataset_dirs",
    "ss_datasets",
    "lora_adapter_metadata",
    "software",
    "ot_branch",
    "ot_config",
    "training_info",
    "version",
    "sshs_model_hash",
    "modelspec.trigger_phrase",
    "ss_bucket_info",
)
VALUES = (
    *PATHS,
    "",
    "null",
    "[]",
    "{}",
    "[[]]",
    '{"a":{"b":1}}',
    '{"a":[1,{"b":null}]}',
    "NaN",
    "Infinity",
    "-1",
    "1e400",
    "9" * 5000,
    "[" * 5000,
    '{"\\ud800":"\\udfff"}',
    '{"":""}',
    '{"r":0,"lora_alpha":-1}',
    '{"transformer.r":1e308,"transformer.lora_alpha":NaN}',
    '{"transformer.rank_pattern":{"(a+)+$":4,"(((((":8},"transformer.r":4,"transformer.lora_alpha":8}',
    '{"split_qkv":"true"}',
    "true",
    "0.0",
)

NAMES = {
    "strange names": sound([(name, (1,)) for name in STRANGE_NAMES]),
    "strange modules": sound([key for name in STRANGE_NAMES for key in small(name)]),
    "strange blocks": sound(
        [key for number in NUMBERS for key in module(FLUX.format(number))][:6], fill=b"\0"
    ),
    "strange blocks, kohya": sound(
        [
            key
            for number in NUMBERS
            for key in small(f"lora_unet_double_blocks_{number}_img_attn_qkv")
        ]
    ),
    "strange blocks, sdxl": sound(
        [key for number in NUMBERS for key in small(f"lora_unet_input_blocks_{number}_1_proj_in")]
    ),
    "strange blocks, text encoder": sound(
        [key for n in NUMBERS for key in small(f"lora_te1_text_model_encoder_layers_{n}_mlp_fc1")]
    ),
    "strange adapter names": sound(
        [(f"{FLUX.format(0)}.lora_A.{name}.weight", (1, 2)) for name in STRANGE_NAMES]
    ),
    "strange oft blocks": sound([(f"oft_unet_x.oft_blocks.{number}", (1,)) for number in NUMBERS]),
    "a name of a megabyte": sound(small("x" * 1_000_000)),
    "a name of a million dots": sound(small("." * 1_000_000)),
    "a name of 200,000 blocks": sound(small("transformer_blocks.0." * 50_000)),
    "a name of 100,000 wrappers": sound(small("base_model.model." * 60_000 + FLUX.format(0))),
    "a name of underlines": sound(small("lora_unet_" + "_" * 1_000_000)),
    "a number of a megabyte": sound(small(FLUX.format("9" * 1_000_000))),
    "many blocks": sound(
        [key for number in range(0, 4_000_000, 10_000) for key in small(FLUX.format(number))]
    ),
    "one role many times": sound(
        [
            (f"x.lora_{'A' if number % 2 else 'down'}.n{number}.weight", (1,))
            for number in range(2000)
        ]
    ),
    "one module, many adapters": sound(
        [(f"x.lora_{side}.n{number}.weight", (1, 1)) for number in range(500) for side in "AB"]
    ),
}

# isdigit() says yes to these, int() says no.
SUPERSCRIPTS = sound(
    [
        key
        for number in "\u00b2\u2460"
        for key in module(f"lora_unet_double_blocks_{number}_img_attn_proj")
    ]
)
ROLES = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_down.weight",
    "lora_up.weight",
    "lora_mid.weight",
    "alpha",
    "dora_scale",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w2",
    "lokr_w1_a",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "oft_blocks",
    "oft_diag",
    "oft_R.weight",
    "oft_S",
    "diff",
    "diff_b",
    "w_norm",
    "b_norm",
    "a1.weight",
    "a2.weight",
    "b1.weight",
    "b2.weight",
    "on_input",
    "weight",
    "ia3_l",
    "set_weight",
    "lora_magnitude_vector",
    "lora_B.bias",
    "scalar",
    "reshape_weight",
    "boft_R",
    "bias",
)
SHAPES = (
    (),
    (0,),
    (1,),
    (0, 3072),
    (3072, 0),
    (1, 1),
    (2, 3),
    (4, 3072),
    (3072, 4),
    (4, 3072, 1, 1),
    (1, 2, 3, 4),
    (1,) * 40,
    (2**40, 0),
    (3072,),
)
# A quiet NaN, both infinities, a denormal number, -1, 0 and an ordinary one, as F32.
FLOATS = [
    struct.pack("<f", number)
    for number in (float("nan"), float("inf"), float("-inf"), 1e-45, -1.0, 0.0, 8.0)
]


def _scaled(alpha: bytes, rank: int = 4) -> bytes:
    """A module of FLUX.1 whose alpha has these bytes."""
    header, _ = described(
        [
            ("lora_unet_double_blocks_0_img_attn_proj.alpha", ()),
            *module("lora_unet_double_blocks_0_img_attn_proj", rank),
        ]
    )
    header = json.loads(
        json.dumps(header).replace("lora_A", "lora_down").replace("lora_B", "lora_up")
    )
    return packed(json.dumps(header).encode(), alpha + bytes(2 * 4 * rank * 3072))


TENSORS = {
    **{
        f"role {role}": sound(
            [(f"{FLUX.format(n)}.{role}", shape) for n, shape in enumerate(SHAPES)]
        )
        for role in ROLES
    },
    **{
        f"shape {list(shape)[:5]}": sound(
            [(f"{FLUX.format(0)}.{role}", shape) for role in ROLES], dtype="F16"
        )
        for shape in SHAPES[:-6]
    },
    **{f"alpha {number}": _scaled(number) for number in FLOATS},
    **{f"rank {rank}": _scaled(FLOATS[-1], rank) for rank in (0, 1)},
    **{f"dtype {dtype}": sound(module(FLUX.format(0)), dtype=dtype) for dtype in BITS},
    **{f"numbers {fill!r}": sound(module(FLUX.format(0)), fill=fill) for fill in FLOATS},
    "alpha of many dimensions": sound(
        [(FLUX.format(0) + ".alpha", (1,) * 200), *module(FLUX.format(0))]
    ),
    "alpha of no value": sound([(FLUX.format(0) + ".alpha", (0,)), *module(FLUX.format(0))]),
    "alpha of several values": sound([(FLUX.format(0) + ".alpha", (5,)), *module(FLUX.format(0))]),
    "dimensions by the thousand": sound(
        [(f"{FLUX.format(0)}.lora_{side}.weight", (1,) * 5000) for side in "AB"]
    ),
    "every dtype at an odd place": sound(
        [("a", (1,), "I8"), *((f"{kind}", (3,), kind) for kind in BITS if BITS[kind] >= 8)]
    ),
}

METADATA = {f"metadata {key}": sound(small("x"), {key: "".join(VALUES)}) for key in TOLD} | {
    f"metadata all {value[:20]!r}": sound(small("x"), dict.fromkeys(TOLD, value))
    for value in VALUES
}

CORPUS: dict[str, bytes] = {
    f"{room}: {name}": content
    for room, seeds in {
        "length": LENGTHS,
        "text": TEXTS,
        "entry": ENTRIES,
        "layout": LAYOUTS,
        "name": NAMES,
        "tensor": TENSORS,
        "metadata": METADATA,
    }.items()
    for name, content in seeds.items()
}


def cut(content: bytes, step: int = 1) -> Iterator[bytes]:
    """The file cut at every byte of its header and at some of its data."""
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for length in [
        *range(0, header, step),
        *range(header, len(content), max(1, (len(content) - header) // 16)),
    ]:
        yield content[:length]


def write_sparse(path: Path, tensors: Iterable[tuple], size: int | None = None) -> Path:
    """A sound file whose data takes no space on the disk; size: of the data, where it is to be
    wrong.
    """
    header, end = described(tensors)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(packed(text))
        file.truncate(8 + len(text) + (end if size is None else size))
    return path


# Headers that grow with a number, for what may take time or memory: number -> tensors.
GROWING: dict[str, Callable[[int], list[tuple]]] = {
    "modules of no model": lambda n: [
        key for i in range(n) for key in small(f"zz.{i}a.{'abcdefgh'[i % 8]}x{i}")
    ],
    "blocks": lambda n: [key for i in range(n) for key in small(FLUX.format(i))],
    "modules, flat": lambda n: [
        key for i in range(n) for key in small(f"lora_unet_double_blocks_{i}_img_attn_qkv")
    ],
    "behind one unknown wrapper": lambda n: [
        key for i in range(n) for key in small("a.b.c.d.e.f.g.h." * 7 + f"q{i}")
    ],
    "adapters of one module": lambda n: [
        (f"{FLUX.format(0)}.lora_{side}.n{i}.weight", (2, 2)) for i in range(n) for side in "AB"
    ],
    "unknown roles": lambda n: [(f"blah.{i}.strange{i}", (2,)) for i in range(2 * n)],
    "shapes": lambda n: [
        key for i in range(n) for key in module(f"{FLUX.format(0)}{i}", i + 1, 8, 8)
    ],
    "one name of dots": lambda n: small("a." * (30 * n) + "x"),
    "one name of underlines": lambda n: small("lora_unet_" + "a_" * (30 * n) + "x"),
    "one name of wrappers": lambda n: small("transformer." * (8 * n) + FLUX.format(0)),
    "dimensions": lambda n: [(f"x.lora_{side}.weight", (1,) * (20 * n)) for side in "AB"],
    "digits": lambda n: small(FLUX.format("9" * (60 * n))),
}
