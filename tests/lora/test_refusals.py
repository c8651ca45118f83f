"""Tensors that make no adapter, or do not fit the weight, are refused with the role and the shapes
in the text.
"""

import pytest
import torch
from lora_locksmith.adapters.registry import decompositions
from lora_locksmith.adapters.registry import kinds as all_kinds
from lora_locksmith.adapters.rows import Rows
from lora_locksmith.adapters.spec import AdapterError, AdapterSpec
from lora_locksmith.lora.math.apply import patched_weight
from lora_locksmith.messages import Message, text_of, translate

ones = torch.ones
LORA = {"down": ones(4, 24), "up": ones(32, 4)}
IA3_CONVOLUTION = ({"ia3_l": ones(1, 32, 1, 1)}, (32, 32, 3, 3))

VBLORA = {"A": (4, 6, 2), "B": (8, 4, 2)}

REFUSED = {
    "unknown_kind": ("unheard", {}, (32, 24), "no adapter of the kind 'unheard'"),
    "missing_up": (
        "lora",
        {"down": ones(4, 24)},
        (32, 24),
        r"tensor up is missing; there are only: down \[4, 24\]",
    ),
    "nothing": ("lora", {}, (32, 24), "missing; there are none"),
    "ranks": (
        "lora",
        {"down": ones(4, 24), "up": ones(32, 5)},
        (32, 24),
        r"up \[32, 5\], down \[4, 24\] have different ranks",
    ),
    "equal_size": ("lora", LORA, (24, 32), r"weight is \[32, 24\], the model's is \[24, 32\]"),
    "wrong_kernel": (
        "lora",
        {"down": ones(4, 8, 1, 3), "up": ones(32, 4)},
        (32, 8, 3, 1),
        r"\[32, 8, 1, 3\], the model's is \[32, 8, 3, 1\]",
    ),
    "flattened_lora": (
        "lora",
        {"down": ones(4, 71), "up": ones(32, 4)},
        (32, 8, 3, 3),
        r"\[32, 71\]",
    ),
    "vector": ("lora", {"down": ones(4), "up": ones(32, 4)}, (32, 24), "dimensions|ranks|matrix"),
    "core": (
        "lora",
        {**LORA, "mid": ones(3, 4, 3, 3)},
        (32, 24, 3, 3),
        r"Tucker product: mid \[3, 4, 3, 3\]",
    ),
    "dora_length": (
        "lora",
        {**LORA, "dora_scale": ones(31, 1)},
        (32, 24),
        r"dora_scale \[31, 1\]",
    ),
    "dora_inputs": (
        "lora",
        {**LORA, "dora_scale": ones(1, 25)},
        (32, 24),
        r"dora_scale \[1, 25\]",
    ),
    "magnitude": (
        "lora",
        {**LORA, "magnitude": ones(24)},
        (32, 24),
        r"magnitude \[24\]",
    ),
    "sparse": ("lora", {**LORA, "bias_values": ones(3)}, (32, 24), "do not belong together"),
    "sparse_outside": (
        "lora",
        {**LORA, "bias_values": ones(1), "bias_indices": torch.tensor([[32], [0]])},
        (32, 24),
        "bias_indices point outside",
    ),
    "empty": ("lora", {**LORA, "dora_scale": ones(0)}, (32, 24), "empty: dora_scale"),
    "loha_half": (
        "loha",
        {"hada_w1_a": ones(32, 4), "hada_w1_b": ones(4, 24)},
        (32, 24),
        "hada_w2_a is missing",
    ),
    "loha_sizes": (
        "loha",
        {
            "hada_w1_a": ones(32, 4),
            "hada_w1_b": ones(4, 24),
            "hada_w2_a": ones(16, 4),
            "hada_w2_b": ones(4, 24),
        },
        (32, 24),
        "two halves of the LoHa differ",
    ),
    "lokr_half": ("lokr", {"lokr_w1": ones(8, 4)}, (32, 24), "missing"),
    "lokr_size": ("lokr", {"lokr_w1": ones(8, 4), "lokr_w2": ones(4, 5)}, (32, 24), r"\[32, 20\]"),
    "diff": ("diff", {"diff": ones(24, 32)}, (32, 24), r"diff \[24, 32\]"),
    "two_differences": ("diff", {"diff": ones(32), "diff_b": ones(32)}, (32,), "several"),
    "bias_without_rank": ("bias_lora", {"up_bias": ones(32)}, (32,), "needs the scale"),
    "glora": (
        "glora",
        {"a1": ones(24, 4), "a2": ones(4, 23), "b1": ones(32, 4), "b2": ones(4, 24)},
        (32, 24),
        "GLoRA",
    ),
    "ia3_side": ("ia3", {"ia3_weight": ones(32)}, (32, 32), "on_input must say"),
    "ia3_size": ("ia3", {"ia3_weight": ones(31)}, (32, 24), r"ia3_weight \[31\]"),
    "ia3_peft_side": ("ia3_peft", *IA3_CONVOLUTION, "feedforward_modules"),
    "ia3_peft_size": (
        "ia3_peft",
        {"ia3_l": ones(31, 1)},
        (32, 24),
        r"ia3_l \[31, 1\]",
    ),
    "oft_size": ("oft", {"oft_blocks": ones(7, 4, 4)}, (32, 24), "cover 28 rows"),
    "oft_square": ("oft", {"oft_blocks": ones(8, 4, 3)}, (32, 24), "square blocks"),
    "oft_is_boft": ("oft", {"oft_blocks": ones(3, 8, 4, 4)}, (32, 24), "3 dimensions"),
    "boft_size": ("boft", {"oft_blocks": ones(3, 7, 4, 4)}, (32, 24), "cannot turn"),
    "boft_stages": ("boft", {"oft_blocks": ones(5, 8, 4, 4)}, (32, 24), "does not divide"),
    "oft_packed": ("oft_peft", {"oft_R": ones(6, 7)}, (32, 24), "packed rotations"),
    "oft_unpacked": ("oft_peft", {"oft_R": ones(6, 4, 4)}, (32, 24), "packed rotations"),
    "oft_inputs": ("oft_peft", {"oft_R": ones(5, 6)}, (32, 24), "5 blocks of 4"),
    "boft_peft": ("boft_peft", {"boft_R": ones(1, 5, 4, 4)}, (32, 24), "cannot turn the inputs"),
    "set": ("set", {"set_weight": ones(24, 32)}, (32, 24), r"set_weight \[24, 32\]"),
    "supertuning_outside": (
        "supertuning",
        {"supertuning_values": ones(1), "supertuning_indices": torch.tensor([32 * 24])},
        (32, 24),
        "supertuning_indices point outside",
    ),
    "vblora_outside": (
        "vblora_topk",
        {f"vblora_indices_{side}": torch.full(shape, 6) for side, shape in VBLORA.items()}
        | {f"vblora_weights_{side}": ones(*shape[:2], 1) for side, shape in VBLORA.items()}
        | {"vblora_bank": ones(6, 4)},
        (32, 24),
        "point outside of a weight",
    ),
    "vblora_settings": (
        "vblora",
        {"vblora_A": ones(4, 6, 6), "vblora_B": ones(8, 4, 6), "vblora_bank": ones(6, 4)},
        (32, 24),
        "gives its topk",
    ),
    "deft_settings": (
        "deft",
        {"deft_P": ones(32, 4), "deft_R": ones(4, 24)},
        (32, 24),
        "gives its decomposition_method",
    ),
    "peanut_settings": (
        "peanut",
        {"peanut_A": ones(4, 32), "peanut_B": ones(32, 4)},
        (32, 24),
        "gives its scaling",
    ),
    "fourierft_settings": (
        "fourierft",
        {"fourier_spectrum": ones(9)},
        (32, 24),
        "gives its random_loc_seed",
    ),
    "waveft_settings": (
        "waveft",
        {"wave_spectrum": ones(9)},
        (32, 24),
        "gives its random_loc_seed",
    ),
    "tokens": (
        "trainable_tokens",
        {"token_rows": ones(2, 24)},
        (32, 24),
        "0 tokens and token_rows",
    ),
}


# What only values can tell is no fault of a shape.
ON_META = [name for name in REFUSED if not name.endswith("_outside")]


@pytest.mark.parametrize(
    "device, name", [("cpu", name) for name in REFUSED] + [("meta", name) for name in ON_META]
)
def test_refused(device, name):
    kind, tensors, shape, message = REFUSED[name]
    tensors = {role: tensor.to(device) for role, tensor in tensors.items()}
    with pytest.raises(AdapterError, match=message) as raised:
        patched_weight(AdapterSpec(kind, 2.0), tensors, torch.empty(shape, device=device), 1.0)
    fault = text_of(raised.value)
    assert translate(fault, "zh") != fault


@pytest.mark.parametrize("kind", [*all_kinds(), *decompositions()], ids=lambda kind: kind.title)
def test_what_a_kind_says_of_itself_is_said_in_other_languages(kind):
    stock = [kind.stock.sentence, kind.stock.title] if kind.stock else []
    sentences = [getattr(kind, "refusal", ""), getattr(kind, "note", ""), *stock[:1]]
    for text in filter(None, sentences):
        assert translate(text, "zh") != text
    for text in (kind.title, *stock[1:]):
        assert isinstance(text, Message) or not text[:1].islower(), text


@pytest.mark.parametrize("rows", [(0, 33), (16, 17), (-1, 8), (0, 8)])
@pytest.mark.parametrize(
    "kind, tensors",
    [("lora", LORA), ("oft", {"oft_blocks": ones(8, 4, 4)}), ("set", {"set_weight": ones(32, 24)})],
)
def test_rows_outside_of_the_module(kind, tensors, rows):
    height = 16 if rows == (0, 8) else rows[1]
    with pytest.raises(AdapterError):
        patched_weight(AdapterSpec(kind, rows=Rows(*rows)), tensors, torch.zeros(height, 24), 1.0)


def test_odd_halves_and_shrinking():
    with pytest.raises(AdapterError, match="odd number of rows"):
        patched_weight(AdapterSpec("norm", swap=True), {"w_norm": ones(3)}, torch.zeros(3), 1.0)
    with pytest.raises(AdapterError, match="cannot grow"):
        patched_weight(
            AdapterSpec("lora", options=(("pad_to", (32, 16)),)), LORA, torch.zeros(32, 24), 1.0
        )
