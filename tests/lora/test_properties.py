"""What holds for every kind of adapter: row slices, exchanged halves, strength, dtypes, meta
tensors, untouched inputs.
"""

import pytest
import torch
from lora_locksmith.adapters.rows import Rows
from lora_locksmith.adapters.spec import AdapterError, AdapterSpec
from lora_locksmith.lora.math.apply import is_linear, kinds, patched_weight
from lora_locksmith.lora.math.low_rank import factors

ROWS, COLUMNS = 32, 24


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


LORA = {"down": random(4, 24), "up": random(32, 4)}
CONVOLUTION = {"down": random(4, 8, 3, 3), "up": random(32, 4, 1, 1)}
LOHA = {
    "hada_w1_a": random(32, 4),
    "hada_w1_b": random(4, 24),
    "hada_w2_a": random(32, 4),
    "hada_w2_b": random(4, 24),
}
LOKR = {"lokr_w1": random(8, 4), "lokr_w2_a": random(4, 2), "lokr_w2_b": random(2, 6)}
SPARSE = {
    "bias_indices": torch.tensor([[0, 9, 31], [5, 0, 23]], dtype=torch.int16),
    "bias_values": random(3),
}
DELORA = {
    "delora_A": random(4, 24),
    "delora_B": random(32, 4),
    "delora_lambda": torch.tensor([3.0]),
}
TLORA = {"tlora_q": random(4, 24), "tlora_p": random(32, 4), "tlora_lambda": random(1, 4)}
PACKED = {"oft_R": random(6, 6)}
# Logits far enough apart that no rounding exchanges the largest
LOGITS = torch.stack([torch.arange(6.0).roll(shift) for shift in range(32)]) * 0.5
PLACES = torch.stack([torch.tensor([shift % 6, (shift + 2) % 6]) for shift in range(32)])
PEANUT = {
    "peanut_A": random(4, 32),
    "peanut_B": random(32, 4),
    "peanut_encoder_0": random(4, 4),
    "peanut_decoder_0": random(4, 4),
}
DRAWN = (("random_loc_seed", 7), ("scaling", 3.0))

# name -> (spec, tensors, shape of the weight)
CASES = {
    "lora": (AdapterSpec("lora", 2.0), LORA, (32, 24)),
    "lora_conv": (AdapterSpec("lora", 2.0), CONVOLUTION, (32, 8, 3, 3)),
    "lora_conv1x1_of_linear": (AdapterSpec("lora"), LORA, (32, 24, 1, 1)),
    "lora_linear_of_conv1x1": (
        AdapterSpec("lora"),
        {"down": LORA["down"][..., None, None], "up": LORA["up"][..., None, None]},
        (32, 24),
    ),
    "lora_tucker": (
        AdapterSpec("lora", 2.0),
        {"down": random(4, 8, 1, 1), "up": random(32, 5, 1, 1), "mid": random(5, 4, 3, 3)},
        (32, 8, 3, 3),
    ),
    "lora_sparse": (AdapterSpec("lora", 4.0), {**LORA, **SPARSE}, (32, 24)),
    "lora_scalar": (AdapterSpec("lora", 2.0), {**LORA, "scalar": torch.tensor(0.5)}, (32, 24)),
    "dora_out": (AdapterSpec("lora", 2.0), {**LORA, "dora_scale": random(32, 1).abs()}, (32, 24)),
    "dora_magnitude": (AdapterSpec("lora", 2.0), {**LORA, "magnitude": random(32).abs()}, (32, 24)),
    "dora_conv": (
        AdapterSpec("lora", 2.0),
        {**CONVOLUTION, "magnitude": random(1, 32, 1, 1).abs()},
        (32, 8, 3, 3),
    ),
    "loha": (AdapterSpec("loha", 2.0), LOHA, (32, 24)),
    "loha_dora": (AdapterSpec("loha", 2.0), {**LOHA, "dora_scale": random(32, 1).abs()}, (32, 24)),
    "loha_tucker": (
        AdapterSpec("loha", 2.0),
        {
            f"hada_w{i}_{side}": random(3, size)
            for i in (1, 2)
            for side, size in (("a", 32), ("b", 8))
        }
        | {"hada_t1": random(3, 3, 3, 3), "hada_t2": random(3, 3, 3, 3)},
        (32, 8, 3, 3),
    ),
    "lokr": (AdapterSpec("lokr", 1.0), LOKR, (32, 24)),
    "lokr_both": (
        AdapterSpec("lokr", 1.0),
        {"lokr_w1_a": random(8, 2), "lokr_w1_b": random(2, 4), "lokr_w2": random(4, 6)},
        (32, 24),
    ),
    "lokr_tucker": (
        AdapterSpec("lokr", 1.0),
        {
            "lokr_w1": random(8, 2),
            "lokr_t2": random(3, 3, 3, 3),
            "lokr_w2_a": random(3, 4),
            "lokr_w2_b": random(3, 4),
        },
        (32, 8, 3, 3),
    ),
    "lokr_dora": (AdapterSpec("lokr", 1.0), {**LOKR, "dora_scale": random(32, 1).abs()}, (32, 24)),
    "diff": (AdapterSpec("diff"), {"diff": random(32, 24)}, (32, 24)),
    "fullrank": (AdapterSpec("fullrank", scale=0.5), {"diff": random(32, 24)}, (32, 24)),
    "bias_diff": (AdapterSpec("bias_diff"), {"diff_b": random(32)}, (32,)),
    "norm": (AdapterSpec("norm"), {"w_norm": random(32)}, (32,)),
    "bias_norm": (AdapterSpec("bias_norm"), {"b_norm": random(32)}, (32,)),
    "bias": (AdapterSpec("bias_lora", scale=0.5), {"up_bias": random(32)}, (32,)),
    "set": (AdapterSpec("set"), {"set_weight": random(32, 24)}, (32, 24)),
    "bias_set": (AdapterSpec("bias_set"), {"set_weight": random(32)}, (32,)),
    "glora": (
        AdapterSpec("glora", 2.0),
        {"a1": random(24, 4), "a2": random(4, 24), "b1": random(32, 4), "b2": random(4, 24)},
        (32, 24),
    ),
    "ia3_out": (
        AdapterSpec("ia3", options=(("on_input", False),)),
        {"ia3_weight": random(32)},
        (32, 24),
    ),
    "ia3_in": (
        AdapterSpec("ia3"),
        {"ia3_weight": random(24), "on_input": torch.tensor(1)},
        (32, 24),
    ),
    "ia3_square": (
        AdapterSpec("ia3"),
        {"ia3_weight": random(32), "on_input": torch.tensor(0)},
        (32, 32),
    ),
    "ia3_peft_out": (AdapterSpec("ia3_peft"), {"ia3_l": random(32, 1)}, (32, 24)),
    "ia3_peft_bias": (AdapterSpec("ia3_peft"), {"ia3_l": random(32, 1)}, (32,)),
    "ia3_peft_in": (AdapterSpec("ia3_peft"), {"ia3_l": random(1, 24)}, (32, 24)),
    "oft": (
        AdapterSpec("oft", 1e-3),
        {"oft_blocks": random(8, 4, 4), "rescale": random(32, 1) + 1},
        (32, 24),
    ),
    "oft_diag": (AdapterSpec("oft_diag"), {"oft_diag": random(8, 4, 4)}, (32, 24)),
    "oft_kohya": (
        AdapterSpec("oft_kohya", 1e-2),
        {"oft_blocks.0": random(2, 8, 8), "oft_blocks.1": random(2, 8, 8)},
        (32, 24),
    ),
    "oft_kohya_conv": (
        AdapterSpec("oft_kohya", 1e-2),
        {"oft_blocks": random(4, 8, 8)},
        (32, 8, 3, 3),
    ),
    "oft_peft": (AdapterSpec("oft_peft"), PACKED, (32, 24)),
    "oft_peft_exact": (
        AdapterSpec("oft_peft", options=(("use_cayley_neumann", False), ("coft", True))),
        PACKED,
        (32, 24),
    ),
    "oft_onetrainer": (
        AdapterSpec("oft_onetrainer"),
        {**PACKED, "scaled_oft": torch.tensor(True)},
        (32, 24),
    ),
    "oft_onetrainer_conv": (AdapterSpec("oft_onetrainer"), {"oft_R": random(1, 6)}, (32, 4, 3, 3)),
    "oft_peft_outputs": (AdapterSpec("oft_peft_outputs"), {"oft_r": random(8, 4, 4)}, (32, 24)),
    "oft_peft_inputs": (
        AdapterSpec("oft_peft_inputs"),
        {"oft_r": random(6, 4, 4), "oft_s": random(32, 1) + 1},
        (32, 24),
    ),
    "lokr_conv1d": (
        AdapterSpec("lokr_conv1d"),
        {"lokr_w1": random(8, 4), "lokr_w2": random(4, 2, 3)},
        (32, 8, 3),
    ),
    "boft": (
        AdapterSpec("boft", 1e-2),
        {"oft_blocks": random(3, 8, 4, 4), "rescale": random(32, 1) + 1},
        (32, 24),
    ),
    "hra": (AdapterSpec("hra"), {"hra_u": random(24, 4)}, (32, 24)),
    "hra_conv": (
        AdapterSpec("hra", options=(("apply_GS", True),)),
        {"hra_u": random(72, 4)},
        (32, 8, 3, 3),
    ),
    "miss": (AdapterSpec("miss"), {"miss_block": random(5, 32)}, (32, 24)),
    "miss_bat": (AdapterSpec("miss_bat"), {"miss_block": random(8, 4, 4)}, (32, 24)),
    "c3a": (AdapterSpec("c3a"), {"c3a_kernel": random(4, 3, 8)}, (32, 24)),
    "shira": (
        AdapterSpec("shira"),
        {"shira_weight": random(3), "shira_indices": torch.tensor([[0, 1, 31], [2, 3, 23]])},
        (32, 24),
    ),
    "hira": (AdapterSpec("hira"), {"hira_A": random(4, 24), "hira_B": random(32, 4)}, (32, 24)),
    "hira_conv": (
        AdapterSpec("hira"),
        {"hira_A": random(4, 8, 3, 3), "hira_B": random(32, 4, 1, 1)},
        (32, 8, 3, 3),
    ),
    "delora": (AdapterSpec("delora"), DELORA | {"delora_w_norm": random(24).abs()}, (32, 24)),
    "delora_old": (AdapterSpec("delora_old"), DELORA, (32, 24)),
    "road": (
        AdapterSpec("road", options=(("group_size", 4),)),
        {"road_theta": random(32), "road_alpha": random(32) + 1},
        (32, 24),
    ),
    "lora_parts": (
        AdapterSpec("lora_parts", 2.0),
        {
            f"lora_{side}.{part}": random(*((4, 24) if side == "down" else (rows, 4)))
            for part, rows in enumerate((16, 8, 8))
            for side in ("down", "up")
        },
        (32, 24),
    ),
    "gralora": (
        AdapterSpec("gralora", 6.0),
        {"gralora_A": random(2, 12, 4), "gralora_B": random(2, 4, 16)},
        (32, 24),
    ),
    "vera": (
        AdapterSpec("vera"),
        {
            "vera_d": random(4),
            "vera_b": random(32),
            "vera_A": random(4, 30),
            "vera_B": random(40, 4),
        },
        (32, 24),
    ),
    "adalora": (AdapterSpec("adalora", scale=0.7), {**LORA, "lora_E": random(4, 1)}, (32, 24)),
    "adalora_conv": (
        AdapterSpec("adalora", scale=0.7),
        {"down": random(4, 72), "up": random(32, 4), "lora_E": random(4, 1)},
        (32, 8, 3, 3),
    ),
    "moslora": (AdapterSpec("moslora", 2.0), {**LORA, "lora_mixer": random(4, 4)}, (32, 24)),
    "moslora_conv": (
        AdapterSpec("moslora", 2.0),
        {**CONVOLUTION, "lora_mixer": random(4, 4, 1, 1)},
        (32, 8, 3, 3),
    ),
    "bdlora_down": (
        AdapterSpec("bdlora", 2.0),
        {"down": random(4, 12), "up": random(32, 4)},
        (32, 24),
    ),
    "bdlora_up": (
        AdapterSpec("bdlora", 2.0),
        {"down": random(4, 24), "up": random(32, 2)},
        (32, 24),
    ),
    "lora_embedding": (
        AdapterSpec("lora_embedding", 2.0),
        {"embedding_A": random(4, 32), "embedding_B": random(24, 4)},
        (32, 24),
    ),
    "lora_transposed": (
        AdapterSpec("lora_transposed", 2.0),
        {"transposed_a": random(24, 4), "transposed_b": random(4, 32)},
        (32, 24),
    ),
    "dora_embedding": (
        AdapterSpec("dora_embedding", 2.0),
        {
            "embedding_A": random(4, 32),
            "embedding_B": random(24, 4),
            "embedding_magnitude": random(24).abs(),
        },
        (32, 24),
    ),
    "beft": (AdapterSpec("beft"), {"beft_bias": random(1, 32)}, (32,)),
    "glora_peft": (
        AdapterSpec("glora_peft"),
        {
            f"glora_{part}_{side}": random(*size)
            for part in "AB"
            for side, size in (("up", (32, 4)), ("down", (4, 24)))
        },
        (32, 24),
    ),
    "glora_peft_vector": (
        AdapterSpec("glora_peft"),
        {"glora_A_whole": random(32, 1), "glora_B_whole": random(1)},
        (32, 24),
    ),
    "pissa": (AdapterSpec("pissa", 2.0), LORA, (32, 24)),
    "olora": (AdapterSpec("olora", 2.0), LORA, (32, 24)),
    "lora_flat": (
        AdapterSpec("lora_flat", 2.0),
        {"down": random(4, 72), "up": random(32, 4)},
        (32, 8, 3, 3),
    ),
    "bora": (
        AdapterSpec("bora", 2.0),
        {**LORA, "magnitude_r": random(32).abs(), "magnitude_c": random(24).abs()},
        (32, 24),
    ),
    "kasa": (AdapterSpec("kasa", 2.0), {**LORA, "lora_diag": random(4)}, (32, 24)),
    "tlora_with_base": (
        AdapterSpec("tlora_with_base", 2.0),
        TLORA
        | {
            "tlora_base_q": random(4, 24),
            "tlora_base_p": random(32, 4),
            "tlora_base_lambda": random(1, 4),
        },
        (32, 24),
    ),
    "trainable_tokens": (
        AdapterSpec("trainable_tokens", options=(("token_indices", (30, 2, 7)),)),
        {"token_rows": random(3, 24)},
        (32, 24),
    ),
    "vblora": (
        AdapterSpec("vblora", options=(("topk", 2),)),
        {
            "vblora_A": LOGITS[:24].reshape(4, 6, 6),
            "vblora_B": LOGITS.reshape(8, 4, 6),
            "vblora_bank": random(6, 4),
        },
        (32, 24),
    ),
    "vblora_topk": (
        AdapterSpec("vblora_topk"),
        {"vblora_indices_A": PLACES[:24].reshape(4, 6, 2), "vblora_weights_A": random(4, 6, 1)}
        | {
            "vblora_indices_B": PLACES.reshape(8, 4, 2).to(torch.uint8),
            "vblora_weights_B": random(8, 4, 1),
            "vblora_bank": random(6, 4),
        },
        (32, 24),
    ),
    "pvera": (
        AdapterSpec("pvera"),
        {
            "pvera_d": random(8),
            "pvera_b": random(32),
            "pvera_A": random(8, 30),
            "pvera_B": random(40, 4),
        },
        (32, 24),
    ),
    "randlora": (
        AdapterSpec("randlora", options=(("randlora_alpha", 9.0),)),
        {
            "randlora_lambda": random(5, 5),
            "randlora_gamma": random(5, 24),
            "randlora_A": random(5, 1, 30),
            "randlora_B": random(40, 6, 5),
        },
        (32, 24),
    ),
    "supertuning": (
        AdapterSpec("supertuning"),
        {
            "supertuning_values": random(3),
            "supertuning_indices": torch.tensor([0, 99, 767], dtype=torch.int32),
        },
        (32, 24),
    ),
    "supertuning_with_lora": (
        AdapterSpec("supertuning", options=(("lora_alpha", 6.0),)),
        {
            "supertuning_values": random(2),
            "supertuning_indices": torch.tensor([5, 31], dtype=torch.int32),
        }
        | {"supertuning_A": random(4, 24), "supertuning_B": random(32, 4)},
        (32, 24),
    ),
    "deft": (
        AdapterSpec("deft", options=(("decomposition_method", "relu"),)),
        {"deft_P": random(32, 4), "deft_R": random(4, 24)},
        (32, 24),
    ),
    "deft_qr": (
        AdapterSpec("deft", options=(("decomposition_method", "qr"), ("alpha", 6.0))),
        {"deft_P": random(32, 4), "deft_R": random(4, 24)},
        (32, 24),
    ),
    "deft_para": (
        AdapterSpec("deft", options=(("decomposition_method", "qr"), ("para", True))),
        {"deft_P": random(32, 4)},
        (32, 24),
    ),
    "peanut": (
        AdapterSpec("peanut", options=(("scaling", 3.0), ("depth", 1), ("act_fn", "tanh"))),
        PEANUT,
        (32, 24),
    ),
    "fourierft": (
        AdapterSpec("fourierft", options=DRAWN),
        {"fourier_spectrum": random(30)},
        (32, 24),
    ),
    "waveft": (
        AdapterSpec("waveft", options=(*DRAWN, ("use_idwt", True), ("wavelet_family", "db3"))),
        {"wave_spectrum": random(30)},
        (32, 24),
    ),
    "waveft_sparse": (
        AdapterSpec("waveft", options=(*DRAWN, ("use_idwt", False))),
        {"wave_spectrum": random(30)},
        (32, 24),
    ),
    "boft_peft": (
        AdapterSpec("boft_peft"),
        {"boft_R": random(2, 6, 4, 4), "boft_s": random(32, 1) + 1},
        (32, 24),
    ),
}
# It fits no weight but that which it was trained on: tests/lora/test_lycoris.py.
OF_ITS_BASE = {"tlora"}
PER_INPUT = (AdapterSpec("lora", 2.0), {**LORA, "dora_scale": random(1, 24).abs()}, (32, 24))

# Rows that can only be cut out together; 33 is more than there are.
BLOCKS = {
    "oft": 4,
    "oft_diag": 4,
    "oft_kohya": 8,
    "boft": 32,
    "miss_bat": 4,
    "pissa": 32,
    "olora": 32,
    "dora_embedding": 32,
    "kasa": 32,
}
BLOCKS |= dict.fromkeys(("shira", "road", "delora_old"), 33)
BLOCKS |= dict.fromkeys(("randlora", "supertuning", "fourierft", "waveft"), 33)
BLOCKS |= {"oft_peft_outputs": 4, "bora": 32, "deft": 32, "peanut": 32}
LINEAR = {
    *("lora", "loha", "lokr", "diff", "fullrank", "norm", "bias_diff", "bias_norm", "bias_lora"),
    *("miss", "c3a", "shira", "delora", "gralora", "vera", "beft", "lokr_conv1d", "lora_flat"),
    *("vblora", "vblora_topk", "pvera", "randlora", "supertuning", "fourierft", "waveft"),
    *("adalora", "moslora", "bdlora", "lora_embedding", "tlora_with_base"),
    *("lora_transposed", "lora_parts"),
}
each_case = pytest.mark.parametrize("spec, tensors, shape", CASES.values(), ids=CASES)


def test_every_kind_is_tested():
    assert {spec.kind for spec, _, _ in CASES.values()} | OF_ITS_BASE == set(kinds())


@pytest.mark.parametrize("start, length", [(0, 32), (0, 16), (16, 8), (8, 24), (3, 10)])
@each_case
def test_rows(assert_close, spec, tensors, shape, start, length):
    """A slice of the patched weight is the patched slice of the weight; a rotation that the slice
    cuts through is refused.
    """
    weight = torch.randn(*shape)
    whole = patched_weight(spec, tensors, weight, 0.8)
    cut_spec, cut = spec._replace(rows=Rows(start, length)), weight[start : start + length]
    blocks = BLOCKS.get(spec.kind, 1)
    if start % blocks or length % blocks:
        with pytest.raises(AdapterError, match="rows"):
            patched_weight(cut_spec, tensors, cut, 0.8)
    else:
        assert_close(
            patched_weight(cut_spec, tensors, cut, 0.8), whole[start : start + length], 1e-6
        )


def test_a_magnitude_per_input_cannot_be_cut():
    spec, tensors, shape = PER_INPUT
    weight = torch.randn(*shape)
    with pytest.raises(AdapterError, match=r"dora_scale \[1, 24\] holds a magnitude per input"):
        patched_weight(spec._replace(rows=Rows(0, 16)), tensors, weight[:16], 1.0)
    assert torch.equal(
        patched_weight(spec._replace(rows=Rows(0, 32)), tensors, weight, 1.0),
        patched_weight(spec, tensors, weight, 1.0),
    )


@each_case
def test_swap(assert_close, spec, tensors, shape):
    weight = torch.randn(*shape)
    first, second = weight.chunk(2)
    expected = torch.cat(
        patched_weight(spec, tensors, torch.cat((second, first)), 0.8).chunk(2)[::-1]
    )
    assert_close(patched_weight(spec._replace(swap=True), tensors, weight, 0.8), expected, 1e-6)


@pytest.mark.parametrize("strength", [0.5, -0.7, 2.0])
@each_case
def test_strength(assert_close, spec, tensors, shape, strength):
    """Strength 0 is the untouched weight; between, everything but LyCORIS' BOFT moves along a
    straight line.
    """
    weight = torch.randn(*shape)
    assert_close(patched_weight(spec, tensors, weight, 0.0), weight, 1e-6)
    if spec.kind != "boft":
        full = patched_weight(spec, tensors, weight, 1.0)
        assert_close(
            patched_weight(spec, tensors, weight, strength),
            weight + strength * (full - weight),
            2e-6,
        )


@each_case
def test_meta(spec, tensors, shape):
    on_meta = {role: tensor.to("meta") for role, tensor in tensors.items()}
    for strength in (1.0, 0.5):
        result = patched_weight(spec, on_meta, torch.empty(shape, device="meta"), strength)
        assert (
            result.device.type == "meta" and result.shape == shape and result.dtype == torch.float32
        )


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float8_e4m3fn, 0.1)]
)
@each_case
def test_half_precision(assert_close, spec, tensors, shape, dtype, tolerance):
    """Whatever the dtypes, the result is that of the same values in fp32, bit for bit."""
    weight = torch.randn(*shape).to(torch.bfloat16)
    small = {
        role: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for role, tensor in tensors.items()
    }
    result = patched_weight(spec, small, weight, 0.8)
    widened = {
        role: tensor.float() if tensor.is_floating_point() else tensor
        for role, tensor in small.items()
    }
    assert torch.equal(result, patched_weight(spec, widened, weight.float(), 0.8))
    assert_close(result, patched_weight(spec, tensors, weight.float(), 0.8), tolerance)


@each_case
def test_nothing_given_is_changed(spec, tensors, shape):
    weight = torch.randn(*shape)
    copies = {role: tensor.clone() for role, tensor in tensors.items()}
    before = weight.clone()
    for strength in (1.0, 0.5):
        patched_weight(spec, tensors, weight, strength).add_(1)
    assert torch.equal(weight, before)
    assert all(torch.equal(tensors[role], copies[role]) for role in tensors)


def delta(spec, tensors, shape):
    """What an adapter adds to a weight that is zero: for linear ones, to any."""
    return patched_weight(spec, tensors, torch.zeros(shape), 1.0)


@each_case
def test_is_linear(assert_close, spec, tensors, shape):
    weight = torch.randn(*shape)
    if is_linear(spec, tensors):
        change = delta(spec, tensors, shape)
        assert_close(weight - 0.7 * change, patched_weight(spec, tensors, weight, -0.7), 1e-6)
    else:
        with pytest.raises(AdapterError, match=f"kind {spec.kind} has no delta"):
            factors(spec, tensors)
    assert is_linear(spec, tensors) == (
        spec.kind in LINEAR and not {"dora_scale", "magnitude"} & set(tensors)
    )


@pytest.mark.parametrize(
    "alpha, scale, factor",
    [(None, None, 1), (0.0, None, 1), (4.0, None, 1), (1.0, None, 0.25), (1.0, 3.0, 3)],
)
def test_scale(assert_close, alpha, scale, factor):
    assert_close(
        delta(AdapterSpec("lora", alpha, scale), LORA, (32, 24)), factor * LORA["up"] @ LORA["down"]
    )


def test_sparse_residual(assert_close):
    """What a LyCORIS extraction leaves over: single values of [out, in] added to the product."""
    spec, tensors, shape = CASES["lora_sparse"]
    residual = torch.zeros(shape)
    for (row, column), value in zip(
        tensors["bias_indices"].T.tolist(), tensors["bias_values"], strict=True
    ):
        residual[row, column] = value
    assert_close(delta(spec, tensors, shape), LORA["up"] @ LORA["down"] + residual)


def test_a_zero_row_has_no_direction():
    spec = AdapterSpec("lora")
    for role in ("magnitude", "dora_scale"):
        tensors = {"down": torch.zeros(4, 24), "up": LORA["up"], role: torch.ones(32, 1)}
        assert torch.equal(
            patched_weight(spec, tensors, torch.zeros(32, 24), 1.0), torch.zeros(32, 24)
        )


def test_the_weight_can_grow_before_it_is_patched(assert_close):
    """FLUX.1's control LoRAs widen the first layer."""
    weight = torch.randn(32, 16)
    result = patched_weight(AdapterSpec("lora", options=(("pad_to", (32, 24)),)), LORA, weight, 1.0)
    assert_close(result, torch.cat((weight, torch.zeros(32, 8)), 1) + LORA["up"] @ LORA["down"])


def test_specs_are_keys():
    assert len({spec for spec, _, _ in CASES.values()}) > 10


def mutations(tensor):
    """The tensor with its shape spoilt in every simple way."""
    yield tensor.new_zeros(())
    yield tensor.new_zeros(0)
    yield tensor[None]
    yield tensor[..., None, None]
    for dimension in range(tensor.dim()):
        yield tensor.select(dimension, 0)
        yield torch.cat((tensor, tensor.narrow(dimension, 0, 1)), dimension)
        yield tensor.narrow(dimension, 0, tensor.shape[dimension] // 2)
        yield tensor.narrow(dimension, 0, 0)


@each_case
def test_spoilt_shapes_fit_or_are_refused(spec, tensors, shape):
    for role, tensor in tensors.items():
        others = {name: value for name, value in tensors.items() if name != role}
        for spoilt in ({**others, role: mutation} for mutation in mutations(tensor)):
            for used, height in ((spec, shape[0]), (spec._replace(rows=Rows(8, 8)), 8)):
                try:
                    result = patched_weight(used, spoilt, torch.zeros(height, *shape[1:]), 0.5)
                except AdapterError:
                    continue
                assert result.shape == (height, *shape[1:])
