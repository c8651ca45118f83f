"""How alike two files must be to count as the same: by the rounding of their dtypes, and not a
little more.
"""

from __future__ import annotations

import math

import pytest
import torch
from lora_locksmith.key_maps.dialect import DENOISER
from lora_locksmith.key_maps.table import parse_table
from lora_locksmith.lora.rewrite.verify import VerificationError, check_same
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import Network, TargetModel, denoiser_network

QKV = "double_blocks.0.img_attn.qkv"
PARTS = {name: f"transformer_blocks.0.attn.to_{name}" for name in "qkv"}
NORM = "final_layer.adaLN_modulation.1"
FLUX = {
    "img_in": (8, 16),
    QKV: (24, 8),
    "double_blocks.0.img_attn.proj": (8, 8),
    "double_blocks.0.img_mlp.0": (32, 8),
    NORM: (16, 8),
    "single_blocks.0.linear1": (56, 8),
    "double_blocks.0.txt_attn.qkv": (24, 8),
    "final_layer.linear": (16, 8),
}


@pytest.fixture(scope="module", name="target_model")
def small_model():
    return TargetModel(
        [
            denoiser_network(
                {f"diffusion_model.{name}.weight": shape for name, shape in FLUX.items()}
            )
        ]
    )


def lora(
    module: str, out: int, inner: int, rank: int = 2, dtype=torch.float64
) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A.weight": torch.randn(rank, inner).to(dtype),
        f"{module}.lora_B.weight": torch.randn(out, rank).to(dtype),
    }


def compare(target_model, source, written, dtype=None, configs=(None, None)) -> float:
    """check_same of two files, every tensor of which must have its place; configs: the settings
    beside each.
    """
    plans = [
        make_plan(
            {key: tuple(tensor.shape) for key, tensor in file.items()},
            {},
            target_model,
            config_beside=config,
        )
        for file, config in zip((source, written), configs, strict=True)
    ]
    for plan in plans:
        assert {outcome.category for outcome in plan.outcomes.values()} == {"placed"}, plan.outcomes
    return check_same(plans[0], source.__getitem__, plans[1], written.__getitem__, dtype)


def changed(file, key, by) -> dict[str, torch.Tensor]:
    return file | {key: file[key] * (1 + by)}


UP, DOWN = "img_in.lora_B.weight", "img_in.lora_A.weight"


@pytest.mark.parametrize("key", [UP, DOWN])
def test_a_millionth_apart_is_the_same_and_more_is_not(target_model, key):
    file = lora("img_in", 8, 16)
    assert compare(target_model, file, file) == 0.0
    assert compare(target_model, file, changed(file, key, 0.8e-6)) == pytest.approx(
        0.8e-6, rel=0.01
    )
    assert compare(target_model, file, changed(file, key, -0.8e-6)) == pytest.approx(
        0.8e-6, rel=0.01
    )
    for by in (1.3e-6, -1.3e-6, 1e-3, 1.0, -2.0):
        with pytest.raises(
            VerificationError,
            match=r"diffusion_model.img_in.weight: the written file's change differs .* by \d",
        ):
            compare(target_model, file, changed(file, key, by))


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_what_was_rounded_may_differ_by_four_units_in_the_last_place(target_model, dtype, eps):
    """Two factors of half a unit each, their product and a sum of several: four units is what may
    come, and no more.
    """
    file = lora("img_in", 8, 16, dtype=torch.float32)
    rounded = {key: tensor.to(dtype) for key, tensor in file.items()}
    assert compare(target_model, file, rounded, dtype) <= eps
    assert compare(target_model, file, changed(file, UP, 3.5 * eps), dtype) <= 4 * eps
    for by in (5 * eps, -5 * eps):
        with pytest.raises(VerificationError):
            compare(target_model, file, changed(file, UP, by), dtype)
    halves = {key: tensor.to(dtype).float() for key, tensor in file.items()}
    with pytest.raises(
        VerificationError
    ):  # nothing was said to be rounded, and fp32 tells the difference
        compare(target_model, file, halves)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_tensors_of_half_precision_are_compared_by_their_own_rounding(target_model, dtype, eps):
    file = lora("img_in", 8, 16, dtype=dtype)
    wide = {key: tensor.float() for key, tensor in file.items()}
    assert compare(target_model, file, changed(wide, UP, 3.5 * eps)) == pytest.approx(
        3.5 * eps, rel=0.01
    )
    assert compare(target_model, changed(wide, UP, 3.5 * eps), file) <= 4 * eps
    with pytest.raises(VerificationError):
        compare(target_model, file, changed(wide, UP, 5 * eps))
    with pytest.raises(VerificationError):
        compare(target_model, changed(wide, UP, 5 * eps), file)


def test_an_alpha_of_few_bits_makes_nothing_less_exact(target_model):
    file = lora("img_in", 8, 16) | {"img_in.alpha": torch.tensor(2.0, dtype=torch.bfloat16)}
    with pytest.raises(VerificationError):
        compare(target_model, file, changed(file, UP, 1e-4))


def test_strengths_are_compared_as_exactly(target_model):
    file = lora("img_in", 8, 16) | {"img_in.alpha": torch.tensor(2.0, dtype=torch.float64)}
    assert compare(target_model, file, changed(file, "img_in.alpha", 0.8e-6)) <= 1e-6
    with pytest.raises(VerificationError):
        compare(target_model, file, changed(file, "img_in.alpha", 1.3e-6))
    assert (
        compare(
            target_model, file, {key: tensor for key, tensor in file.items() if "alpha" not in key}
        )
        == 0.0
    )  # alpha = rank
    other = lora("img_in", 8, 16) | {"img_in.alpha": torch.tensor(8.0, dtype=torch.float64)}
    folded = {
        key: tensor * 4 if key == UP else tensor
        for key, tensor in other.items()
        if "alpha" not in key
    }
    assert compare(target_model, other, folded) <= 1e-12


def test_a_weight_that_only_one_of_them_changes(target_model):
    file, more = lora("img_in", 8, 16), lora("final_layer.linear", 16, 8)
    for source, written, word in (
        (file | more, file, "final_layer"),
        (file, file | more, "final_layer"),
        (more, file, "differs"),
    ):
        with pytest.raises(VerificationError, match=word):
            compare(target_model, source, written)
    nothing = {key: tensor * 0 for key, tensor in more.items()}
    assert (
        compare(target_model, file, file | nothing)
        == compare(target_model, file | nothing, file)
        == 0.0
    )


def test_numbers_that_are_none_are_the_same_only_bit_by_bit(target_model):
    for value in (math.nan, math.inf):
        file = lora("img_in", 8, 16)
        file[UP][3, 1] = value
        assert (
            compare(target_model, file, {key: tensor.clone() for key, tensor in file.items()})
            == 0.0
        )
        with pytest.raises(VerificationError):
            compare(target_model, file, changed(file, DOWN, 0.1))
        with pytest.raises(VerificationError):
            compare(target_model, changed(file, DOWN, 0.1), file, torch.bfloat16)


def split(fused, order="qkv") -> dict[str, torch.Tensor]:
    up, down = fused[f"{QKV}.lora_B.weight"], fused[f"{QKV}.lora_A.weight"]
    parts = {}
    for number, name in enumerate(order):
        parts |= {
            f"{PARTS[name]}.lora_B.weight": up[number * 8 : number * 8 + 8],
            f"{PARTS[name]}.lora_A.weight": down,
        }
    return parts


def test_split_and_fused_are_the_same_only_on_their_own_rows(target_model):
    fused = lora(QKV, 24, 8)
    assert (
        compare(target_model, fused, split(fused))
        == compare(target_model, split(fused), fused)
        == 0.0
    )
    for order in ("qvk", "kqv"):
        with pytest.raises(VerificationError, match="img_attn"):
            compare(target_model, fused, split(fused, order))
    for name in "qkv":
        less = {key: tensor for key, tensor in split(fused).items() if PARTS[name] not in key}
        with pytest.raises(VerificationError):
            compare(target_model, fused, less)
        with pytest.raises(VerificationError):
            compare(target_model, less, fused)
        with pytest.raises(VerificationError):
            compare(
                target_model, fused, changed(split(fused), f"{PARTS[name]}.lora_B.weight", 1e-4)
            )


def test_parts_side_by_side_in_one_with_zeros_between(target_model):
    """Fused from three trainings: each part's rows use its own columns, and the others are zero
    there.
    """
    parts = {}
    for name in "qkv":
        parts |= lora(PARTS[name], 8, 8)
    ups, downs = ([parts[f"{PARTS[name]}.lora_{side}.weight"] for name in "qkv"] for side in "BA")
    fused = {
        f"{QKV}.lora_B.weight": torch.block_diag(*ups),
        f"{QKV}.lora_A.weight": torch.cat(downs),
    }
    assert compare(target_model, parts, fused) == compare(target_model, fused, parts) == 0.0
    fused[f"{QKV}.lora_B.weight"][9, 5] = 1e-3
    with pytest.raises(VerificationError):
        compare(target_model, parts, fused)


def test_halves_in_the_other_order(target_model):
    native = lora(NORM, 16, 8)
    up = native[f"{NORM}.lora_B.weight"]
    diffusers = {"transformer.norm_out.linear.lora_A.weight": native[f"{NORM}.lora_A.weight"]}
    swapped, straight = (
        {"transformer.norm_out.linear.lora_B.weight": side} | diffusers
        for side in (up.roll(8, 0), up)
    )
    assert compare(target_model, native, swapped) == compare(target_model, swapped, native) == 0.0
    with pytest.raises(VerificationError):
        compare(target_model, native, straight)


def test_two_adapters_on_one_weight_are_their_sum(target_model):
    first, second = lora("img_in", 8, 16), lora("transformer.x_embedder", 8, 16)
    both = {
        DOWN: torch.cat([first[DOWN], second["transformer.x_embedder.lora_A.weight"]]),
        UP: torch.cat([first[UP], second["transformer.x_embedder.lora_B.weight"]], 1),
    }
    assert compare(target_model, first | second, both) <= 1e-12
    with pytest.raises(VerificationError):
        compare(target_model, first | second, first)
    assert compare(target_model, first | second, second | first) == 0.0


OFT = {"img_in.oft_blocks": (2, 4, 4)}


def test_what_needs_the_models_weight_must_come_out_unchanged(target_model):
    file = {key: torch.randn(shape) for key, shape in OFT.items()} | {
        "img_in.alpha": torch.tensor(0.5)
    }
    assert compare(target_model, file, dict(file)) == 0.0
    for key in file:
        with pytest.raises(
            VerificationError,
            match=(
                r"^diffusion_model.img_in.weight: img_in: OFT would be read with another meaning or"
                r" strength"
            ),
        ):
            compare(target_model, file, changed(file, key, 1e-3))
    key = "img_in.oft_blocks"
    assert (
        compare(target_model, file, changed(file, key, 1e-3), torch.float16) == 0.0
    )  # within what fp16 rounds
    with pytest.raises(VerificationError):
        compare(target_model, file, changed(file, key, 1e-2), torch.float16)


def dora(module: str, out: int, inner: int) -> dict[str, torch.Tensor]:
    return lora(module, out, inner) | {
        f"{module}.dora_scale": torch.rand(out, 1, dtype=torch.float64) + 1
    }


def test_magnitudes(target_model):
    file, key = dora("img_in", 8, 16), "img_in.dora_scale"
    renamed = {UP: file[UP] * 2, DOWN: file[DOWN] / 2, key: file[key]}
    assert compare(target_model, file, renamed) <= 1e-12
    assert compare(target_model, file, changed(renamed, key, 0.8e-6)) <= 1e-6
    with pytest.raises(VerificationError, match="the DoRA magnitudes differ"):
        compare(target_model, file, changed(renamed, key, 1.3e-6))
    lost = {name: tensor for name, tensor in renamed.items() if name != key}
    for source, written in ((file, lost), (lost, file)):
        with pytest.raises(VerificationError, match="DoRA magnitudes were lost"):
            compare(target_model, source, written)
    across = renamed | {key: torch.rand(1, 16, dtype=torch.float64)}
    with pytest.raises(VerificationError, match="DoRA magnitudes were lost"):
        compare(target_model, file, across)
    assert compare(target_model, lost | {key: across[key]}, file | {key: across[key]}) <= 1e-12
    with pytest.raises(VerificationError, match="differ"):
        compare(target_model, lost | {key: across[key]}, file | {key: across[key] * 2})


def test_magnitudes_are_those_of_their_rows(target_model):
    fused = dora(QKV, 24, 8)
    parts = {}
    for number, name in enumerate("qkv"):
        rows = slice(number * 8, number * 8 + 8)
        parts |= {
            f"{PARTS[name]}.lora_B.weight": fused[f"{QKV}.lora_B.weight"][rows],
            f"{PARTS[name]}.lora_A.weight": fused[f"{QKV}.lora_A.weight"],
            f"{PARTS[name]}.dora_scale": fused[f"{QKV}.dora_scale"][rows],
        }
    assert compare(target_model, fused, parts) == compare(target_model, parts, fused) == 0.0
    one, other = (f"{PARTS[name]}.dora_scale" for name in "qk")
    with pytest.raises(VerificationError, match="the DoRA magnitudes differ"):
        compare(target_model, fused, parts | {one: parts[other], other: parts[one]})
    native = dora(NORM, 16, 8)
    swapped = {
        "transformer.norm_out.linear.lora_A.weight": native[f"{NORM}.lora_A.weight"],
        "transformer.norm_out.linear.lora_B.weight": native[f"{NORM}.lora_B.weight"].roll(8, 0),
        "transformer.norm_out.linear.dora_scale": native[f"{NORM}.dora_scale"].roll(8, 0),
    }
    assert compare(target_model, native, swapped) == 0.0
    with pytest.raises(VerificationError, match="the DoRA magnitudes differ"):
        compare(
            target_model,
            native,
            swapped | {"transformer.norm_out.linear.dora_scale": native[f"{NORM}.dora_scale"]},
        )


def test_a_role_that_only_one_of_them_has(target_model):
    """Though all that both have is the same to the bit."""
    file = dora("img_in", 8, 16)
    less = {key: tensor for key, tensor in file.items() if "dora" not in key}
    for source, written in ((file, less), (less, file)):
        with pytest.raises(VerificationError, match="DoRA magnitudes were lost"):
            compare(target_model, source, written)


def test_the_same_tensors_under_other_settings(target_model):
    file, half = lora("img_in", 8, 16), {"r": 2, "lora_alpha": 2}
    assert compare(target_model, file, file, configs=(half, {"r": 8, "lora_alpha": 2})) == 0.0
    with pytest.raises(VerificationError):
        compare(target_model, file, file, configs=(half, {"r": 2, "lora_alpha": 4}))
    turning = {"double_blocks.0.img_attn.proj.oft_R.weight": torch.randn(2, 6)}
    with pytest.raises(VerificationError, match="would be read with another meaning or strength"):
        compare(
            target_model,
            turning,
            turning,
            configs=({"r": 2, "use_cayley_neumann": True}, {"r": 2, "use_cayley_neumann": False}),
        )
    kronecker = {"img_in.lokr_w1": torch.randn(2, 4), "img_in.lokr_w2": torch.randn(4, 4)}
    assert compare(target_model, kronecker, kronecker, configs=({"r": 8, "alpha": 8}, None)) == 0.0
    with pytest.raises(VerificationError):
        compare(target_model, kronecker, kronecker, configs=({"r": 8, "alpha": 4}, None))


def test_a_scalar_multiplies(target_model):
    file, half = lora("img_in", 8, 16), {"img_in.scalar": torch.tensor(0.5, dtype=torch.float64)}
    assert compare(target_model, file | half, changed(file, UP, -0.5)) <= 1e-12
    assert compare(target_model, file | half, file | {"img_in.alpha": torch.tensor(1.0)}) == 0.0
    with pytest.raises(VerificationError):
        compare(target_model, file | half, file | {"img_in.alpha": torch.tensor(4.0)})


def test_whole_weights_by_either_name(target_model):
    weight = torch.randn(8, 16)
    one, other = {"img_in.weight": weight}, {"img_in.set_weight": weight}
    assert compare(target_model, one, other) == compare(target_model, other, one) == 0.0
    with pytest.raises(VerificationError):
        compare(target_model, one, changed(other, "img_in.set_weight", 1e-3))


def test_an_alpha_of_zero_is_none_to_what_turns(target_model):
    file = {"img_in.oft_blocks": torch.randn(2, 4, 4, dtype=torch.float64)}
    assert compare(target_model, file, file | {"img_in.alpha": torch.tensor(0.0)}) == 0.0
    alpha = {"img_in.alpha": torch.tensor(0.5, dtype=torch.float64)}
    assert compare(target_model, file | alpha, changed(file | alpha, "img_in.alpha", 0.8e-6)) == 0.0
    nothing = {key: tensor * 0 for key, tensor in file.items()}
    for source, written in ((nothing, file), (file, nothing)):
        with pytest.raises(VerificationError):
            compare(target_model, source, written, torch.float16)


def test_the_same_bits_of_another_dtype_are_not_the_same(target_model):
    file = lora("img_in", 8, 16, dtype=torch.float16)
    with pytest.raises(VerificationError):
        compare(
            target_model, file, {key: tensor.view(torch.bfloat16) for key, tensor in file.items()}
        )


def test_a_rank_that_is_filled_up_with_zeros(target_model):
    file = lora("img_in", 8, 16, dtype=torch.float32)
    filled = {
        DOWN: torch.cat([file[DOWN], torch.randn(1, 16)]),
        UP: torch.cat([file[UP], torch.zeros(8, 1)], 1),
    }
    for dtype in (None, torch.float16):
        assert (
            compare(target_model, file, filled, dtype)
            == compare(target_model, filled, file, dtype)
            == 0.0
        )
    ones = {DOWN: filled[DOWN], UP: torch.cat([torch.ones(8, 2), torch.zeros(8, 1)], 1)}
    other = {DOWN: torch.cat([filled[DOWN][:1] * 2, filled[DOWN][1:]]), UP: ones[UP]}
    with pytest.raises(VerificationError):
        compare(target_model, ones, other)


def test_one_change_as_factors_of_different_kinds(target_model):
    file = lora("img_in", 8, 16)
    full = {"img_in.diff": file[UP] @ file[DOWN]}
    kronecker = {
        "img_in.lokr_w1": torch.randn(2, 4, dtype=torch.float64),
        "img_in.lokr_w2": torch.randn(4, 4, dtype=torch.float64),
    }
    product = {"img_in.diff": torch.kron(*kronecker.values())}
    halves = {
        "img_in.lokr_w1": kronecker["img_in.lokr_w1"] * 2,
        "img_in.lokr_w2": kronecker["img_in.lokr_w2"] / 2,
    }
    for one, other in ((file, full), (kronecker, product), (kronecker, halves)):
        assert (
            compare(target_model, one, other) <= 1e-7 and compare(target_model, other, one) <= 1e-7
        )
        key = next(iter(other))
        with pytest.raises(VerificationError):
            compare(target_model, one, changed(other, key, 1e-4))
        with pytest.raises(VerificationError):
            compare(target_model, changed(other, key, 1e-4), one)


def test_a_model_that_is_only_drawn_has_the_sizes_of_the_file():
    weights = {f"diffusion_model.{name}.weight": (0, 0) for name in "abcd"}
    reference = TargetModel(
        [Network(DENOISER, "diffusion_model.", weights, None, is_reference=True)]
    )
    file = (
        lora("a", 8, 16)
        | {"a.alpha": torch.tensor(4.0)}
        | {"b.diff": torch.randn(3, 5)}
        | {"c.weight": torch.randn(3, 5)}
    )
    assert (
        compare(
            reference,
            file,
            changed(changed(file, "a.lora_A.weight", 1.0), "a.lora_B.weight", -0.5),
        )
        <= 1e-12
    )
    last = file["a.lora_B.weight"].clone()
    last[-1] = 0
    with pytest.raises(VerificationError, match="diffusion_model"):
        compare(reference, file, file | {"a.lora_B.weight": last})
    for key in ("b.diff", "c.weight"):
        with pytest.raises(VerificationError):
            compare(reference, file, changed(file, key, 1e-3))


def test_a_small_change_where_the_source_has_none_is_no_rounding(target_model):
    """However small it is beside other numbers, and however roughly the dtype rounds."""
    file, more = (
        lora("img_in", 8, 16, dtype=torch.bfloat16),
        lora("final_layer.linear", 16, 8, dtype=torch.bfloat16),
    )
    small = {key: tensor * 1e-3 for key, tensor in more.items()}
    nothing = small | {"final_layer.linear.lora_B.weight": torch.zeros(16, 2, dtype=torch.bfloat16)}
    for source, written in (
        (file, file | small),
        (file | nothing, file | small),
        (file | small, file),
    ):
        with pytest.raises(VerificationError, match="final_layer"):
            compare(target_model, source, written, torch.bfloat16)
    assert compare(target_model, file | nothing, file, torch.bfloat16) == 0.0


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_few_bits_do_not_hide_a_wrong_strength(target_model, dtype):
    file = lora("img_in", 8, 16, dtype=dtype)
    assert compare(target_model, file, file) == 0.0
    wide = {key: tensor.float() for key, tensor in file.items()}
    assert compare(target_model, file, changed(wide, UP, 0.2)) == pytest.approx(0.2, rel=0.01)
    for by in (0.3, -0.3, 1.0, -1.0):
        with pytest.raises(VerificationError):
            compare(target_model, file, changed(wide, UP, by))


def test_a_difference_of_just_the_tolerance(target_model):
    """Four units in the last place of bf16 are 2^-5, and all of these numbers are exact."""
    matrix = torch.zeros(8, 16, dtype=torch.bfloat16)
    matrix[2, 3] = 1
    assert (
        compare(target_model, {"img_in.diff": matrix}, {"img_in.diff": matrix * (1 + 2**-5)})
        == 2**-5
    )
    with pytest.raises(VerificationError):
        compare(
            target_model, {"img_in.diff": matrix}, {"img_in.diff": matrix * (1 + 2**-5 + 2**-7)}
        )
    file = {UP: matrix[:, :2], DOWN: matrix[:2]} | {
        "img_in.dora_scale": torch.tensor([[1.0], *[[0.0]] * 7], dtype=torch.bfloat16)
    }
    turned = file | {UP: matrix[:, :2] * -1, DOWN: matrix[:2] * -1}
    assert compare(target_model, file, changed(turned, "img_in.dora_scale", 2**-5)) == 0.0
    with pytest.raises(VerificationError, match="the DoRA magnitudes differ"):
        compare(target_model, file, changed(turned, "img_in.dora_scale", 2**-5 + 2**-7))


def test_numbers_beyond_what_can_be_squared_are_told_apart(target_model):
    """The norm of the source is infinite then, and no share of it says anything."""
    huge = {"img_in.diff": torch.full((8, 16), 1e154, dtype=torch.float64)}
    assert compare(target_model, huge, dict(huge)) == 0.0
    near = {"img_in.diff": huge["img_in.diff"].clone()}
    near["img_in.diff"][0, 0] += 1e150
    with pytest.raises(VerificationError):
        compare(target_model, huge, near)


def test_whole_numbers_are_compared_too(target_model):
    whole = {"img_in.diff": torch.arange(128).reshape(8, 16).to(torch.int8)}
    wide = {"img_in.diff": whole["img_in.diff"].float()}
    assert compare(target_model, whole, wide) == compare(target_model, wide, whole) == 0.0
    with pytest.raises(VerificationError):
        compare(target_model, whole, changed(wide, "img_in.diff", 1e-4))


@pytest.mark.parametrize("number", [0.1, 0.5, 2.0, 10.0])
def test_a_scalar_that_only_one_of_them_has(target_model, number):
    file, scalar = lora("img_in", 8, 16), {"img_in.scalar": torch.tensor(number)}
    for source, written in ((file | scalar, file), (file, file | scalar)):
        with pytest.raises(VerificationError):
            compare(target_model, source, written)


def test_a_strength_of_zero_is_none_where_no_rank_divides_it(target_model):
    kronecker = {"img_in.lokr_w1": torch.randn(2, 4), "img_in.lokr_w2": torch.randn(4, 4)}
    dead = {"r": 8, "alpha": 0}
    for configs in ((dead, None), (None, dead)):
        with pytest.raises(VerificationError):
            compare(target_model, kronecker, kronecker, configs=configs)
    nothing = {key: tensor * 0 for key, tensor in kronecker.items()}
    assert compare(target_model, kronecker, nothing, configs=(dead, None)) == 0.0


def test_the_same_values_of_another_dtype_are_the_same(target_model):
    """Also for what cannot be compared otherwise, and though nothing was rounded."""
    half = {"img_in.oft_blocks": torch.randn(2, 4, 4).half()}
    wide = {key: tensor.float() for key, tensor in half.items()}
    assert compare(target_model, half, wide) == compare(target_model, wide, half) == 0.0
    wide["img_in.oft_blocks"][1, 2, 3] += 1e-5
    with pytest.raises(VerificationError, match="OFT would be read with another meaning"):
        compare(target_model, half, wide)


def test_rows_between_two_parts_stay_as_they_are(target_model):
    parts = lora(PARTS["q"], 8, 8) | lora(PARTS["v"], 8, 8)
    other = {key: tensor * (2 if "lora_A" in key else 0.5) for key, tensor in parts.items()}
    assert compare(target_model, parts, other) <= 1e-12
    with pytest.raises(VerificationError, match="img_attn"):
        compare(target_model, parts, other | lora(PARTS["k"], 8, 8))


def test_two_on_the_same_rows_are_compared_both(target_model):
    """The first of them is stored alike, the second is not."""
    first = lora(QKV, 24, 8)
    second = {
        f"lora_unet_double_blocks_0_img_attn_qkv.{key[len(QKV) + 1 :]}": tensor
        for key, tensor in lora(QKV, 24, 8).items()
    }
    wrong = {key: tensor * 2 for key, tensor in second.items()}
    for source, written in (
        (first | second, split(first) | wrong),
        (split(first) | wrong, first | second),
    ):
        with pytest.raises(VerificationError, match="img_attn"):
            compare(target_model, source, written)
    turned = {key: -tensor for key, tensor in second.items()}
    assert compare(target_model, first | second, split(first) | turned) <= 1e-12


def test_halves_in_the_other_order_are_halves(target_model):
    native = lora(NORM, 16, 8)
    up = native[f"{NORM}.lora_B.weight"]
    for shift in (*range(1, 8), *range(9, 16)):
        turned = {
            "transformer.norm_out.linear.lora_A.weight": native[f"{NORM}.lora_A.weight"],
            "transformer.norm_out.linear.lora_B.weight": up.roll(shift, 0),
        }
        with pytest.raises(VerificationError):
            compare(target_model, native, turned)


def test_a_kronecker_product_where_the_other_has_nothing(target_model):
    kronecker = {"img_in.lokr_w1": torch.randn(2, 4), "img_in.lokr_w2": torch.randn(4, 4)}
    other = lora("final_layer.linear", 16, 8)
    for source, written in ((kronecker | other, other), (other, kronecker | other)):
        with pytest.raises(VerificationError, match="img_in"):
            compare(target_model, source, written)


def test_a_bias_is_called_one():
    weights = {"diffusion_model.img_in.weight": (8, 16), "diffusion_model.img_in.bias": (8,)}
    target_model = TargetModel([denoiser_network(weights)])
    file = {"img_in.diff_b": torch.randn(8), "img_in.diff": torch.randn(8, 16)}
    assert compare(target_model, file, file) == 0.0
    with pytest.raises(
        VerificationError, match=r"diffusion_model.img_in.weight \(bias\): the written"
    ):
        compare(target_model, file, changed(file, "img_in.diff_b", 0.1))
    with pytest.raises(VerificationError, match=r"diffusion_model.img_in.weight: the written"):
        compare(target_model, file, changed(file, "img_in.diff", 0.1))


HOME = """@title Home Made
view 8 16 = views
[layers.{} = stages.{}]
wq 4 4 = to_q
wk 6 4 = to_k
wq + wk = to_qk
out 4 4 = to_out
"""


@pytest.fixture(scope="module", name="home")
def home_made():
    """A model whose wq and wk are one module elsewhere."""
    weights = {
        "view": (8, 16),
        "layers.0.wq": (4, 4),
        "layers.0.wk": (6, 4),
        "layers.0.out": (4, 4),
    }
    weights = {f"diffusion_model.{name}.weight": shape for name, shape in weights.items()}
    return TargetModel([denoiser_network(weights, {"home": parse_table("home", HOME)})])


def test_one_adapter_on_two_weights(home):
    fused, key = dora("stages.0.to_qk", 10, 4), "stages.0.to_qk.lora_{}.weight"
    up, down, magnitudes = (
        fused[key.format("B")],
        fused[key.format("A")],
        fused["stages.0.to_qk.dora_scale"],
    )
    parts = {}
    for name, start, length in (("to_q", 0, 4), ("to_k", 4, 6)):
        parts |= {
            f"stages.0.{name}.lora_B.weight": up.narrow(0, start, length) * 2,
            f"stages.0.{name}.lora_A.weight": down / 2,
            f"stages.0.{name}.dora_scale": magnitudes.narrow(0, start, length),
        }
    plain = [
        {name: tensor for name, tensor in file.items() if "dora" not in name}
        for file in (fused, parts)
    ]
    for one, other in ((fused, parts), plain):
        assert compare(home, one, other) <= 1e-12 and compare(home, other, one) <= 1e-12
        for name in other:
            for side in (0, -1):
                spoilt = other[name].clone()
                spoilt[side] += 1
                with pytest.raises(
                    VerificationError, match="layers.0.w" + ("q" if "to_q." in name else "k")
                ):
                    compare(home, one, other | {name: spoilt})


def test_rows_that_a_weight_grows_by_are_compared(home):
    file = lora("views", 9, 16) | {"views.reshape_weight": torch.tensor([9, 16])}
    assert compare(home, file, file) == 0.0
    other = file | {
        "views.lora_A.weight": file["views.lora_A.weight"] * 2,
        "views.lora_B.weight": file["views.lora_B.weight"] / 2,
    }
    assert compare(home, file, other) <= 1e-12
    other["views.lora_B.weight"][8] += 1
    with pytest.raises(VerificationError, match="view"):
        compare(home, file, other)
    small, wide = (
        lora("views", 8, 16),
        lora("views", 8, 32) | {"views.reshape_weight": torch.tensor([8, 32])},
    )
    for source, written in ((small, wide), (wide, small)):
        with pytest.raises(VerificationError, match=r"^diffusion_model.view.weight: "):
            compare(home, source, written)


def test_what_cannot_be_compared_is_not_the_same():
    """A drawn model has no sizes, and these tensors do not tell how many rows they turn."""
    reference = TargetModel(
        [
            Network(
                DENOISER,
                "diffusion_model.",
                {"diffusion_model.a.weight": (0, 0)},
                None,
                is_reference=True,
            )
        ]
    )
    for key, shape in (
        ("a.oft_R.weight", (2, 6)),
        ("a.oft_blocks", (2, 4, 4)),
        ("a.ia3_l", (8, 1)),
    ):
        file = {key: torch.randn(shape)}
        assert compare(reference, file, dict(file)) == 0.0
        with pytest.raises(VerificationError):
            compare(reference, file, changed(file, key, 0.1))


def test_magnitudes_of_some_rows_are_not_those_of_all(target_model):
    """A magnitude of zero makes a row of the weight zero; none leaves it as it is."""
    q, k = dora(PARTS["q"], 8, 8), lora(PARTS["k"], 8, 8)
    ups, downs = (
        [file[f"{PARTS[name]}.lora_{side}.weight"] for file, name in ((q, "q"), (k, "k"))]
        for side in "BA"
    )
    fused = {
        f"{QKV}.lora_B.weight": torch.cat([torch.block_diag(*ups), torch.zeros(8, 4)]),
        f"{QKV}.lora_A.weight": torch.cat(downs),
        f"{QKV}.dora_scale": torch.cat([q[f"{PARTS['q']}.dora_scale"], torch.zeros(16, 1)]),
    }
    for source, written in ((q | k, fused), (fused, q | k)):
        with pytest.raises(VerificationError, match="the DoRA magnitudes differ"):
            compare(target_model, source, written)
    v = dora(PARTS["v"], 8, 8)
    renamed = {
        key: tensor if "dora" in key else tensor * (2 if "lora_A" in key else 0.5)
        for key, tensor in (q | k | v).items()
    }
    assert compare(target_model, q | k | v, renamed) <= 1e-12
    zeros = renamed | {f"{PARTS['k']}.dora_scale": torch.zeros(8, 1, dtype=torch.float64)}
    for source, written in ((q | k | v, zeros), (zeros, q | k | v)):
        with pytest.raises(VerificationError, match="the DoRA magnitudes differ"):
            compare(target_model, source, written)


def test_magnitudes_that_are_no_numbers_are_not_the_same_as_others(target_model):
    file, key = dora("img_in", 8, 16), "img_in.dora_scale"
    renamed = {UP: file[UP] * 2, DOWN: file[DOWN] / 2, key: file[key]}
    for value in (math.nan, math.inf):
        spoilt = file[key].clone()
        spoilt[3] = value
        for source, written in ((file, renamed | {key: spoilt}), (file | {key: spoilt}, renamed)):
            with pytest.raises(VerificationError, match="the DoRA magnitudes differ"):
                compare(target_model, source, written)


def test_what_a_magnitude_is_of_is_not_made_up_for_by_another_adapter(target_model):
    """Together they add the same; but the magnitudes are those of the weight with one of them."""
    first, second = dora("img_in", 8, 16), lora("transformer.x_embedder", 8, 16)
    other = "transformer.x_embedder.lora_{}.weight"
    exchanged = {
        UP: second[other.format("B")],
        DOWN: second[other.format("A")],
        "img_in.dora_scale": first["img_in.dora_scale"],
        other.format("B"): first[UP],
        other.format("A"): first[DOWN],
    }
    for order in (list, reversed):
        with pytest.raises(VerificationError, match="img_in"):
            compare(
                target_model, dict(order((first | second).items())), dict(order(exchanged.items()))
            )
        spoilt = changed(first | second, "img_in.dora_scale", 0.1)
        with pytest.raises(VerificationError, match="the DoRA magnitudes differ"):
            compare(
                target_model, dict(order((first | second).items())), dict(order(spoilt.items()))
            )
    halved = {
        key: tensor if "dora" in key else tensor * (2 if "lora_A" in key else 0.5)
        for key, tensor in (first | second).items()
    }
    assert compare(target_model, first | second, halved) <= 1e-12


@pytest.mark.parametrize("axis", [0, 1])
def test_two_magnitudes_of_one_row_are_not_compared(target_model, axis):
    def two(last):
        file = {}
        for module, number in (("img_in", 1.0), ("transformer.x_embedder", last)):
            magnitudes = torch.full((8, 1) if axis == 0 else (1, 16), number, dtype=torch.float64)
            file |= lora(module, 8, 16) | {f"{module}.dora_scale": magnitudes}
        return file

    with pytest.raises(
        VerificationError, match=r"img_in.weight: two adapters have DoRA magnitudes"
    ):
        compare(target_model, two(2.0), two(2.0))


def test_magnitudes_per_input_beside_those_per_output(target_model):
    """Each are compared, whichever come first."""
    across = lora("img_in", 8, 16) | {
        "img_in.dora_scale": torch.rand(1, 16, dtype=torch.float64) + 1
    }
    file = across | dora("transformer.x_embedder", 8, 16)
    other = {
        key: tensor if "dora" in key else tensor * (2 if "lora_A" in key else 0.5)
        for key, tensor in file.items()
    }
    for order in (list, reversed):
        source, written = (dict(order(side.items())) for side in (file, other))
        assert compare(target_model, source, written) <= 1e-12
        for module in ("img_in", "transformer.x_embedder"):
            with pytest.raises(VerificationError, match="the DoRA magnitudes differ"):
                compare(target_model, source, changed(written, f"{module}.dora_scale", 0.1))


def test_magnitudes_of_some_rows_beside_those_of_all(target_model):
    def both(order):
        return dict(order((dora(PARTS["k"], 8, 8) | dora(QKV, 24, 8)).items()))

    for order in (list, reversed):
        with pytest.raises(
            VerificationError, match=r"img_attn.qkv.weight: two adapters have DoRA magnitudes"
        ):
            compare(target_model, both(order), both(order))


def test_settings_that_make_another_kind_of_the_same_tensors(target_model):
    """The tensors of a LoRA, and its strength; but the base is to be changed, too."""
    file, alpha = (
        lora("double_blocks.0.img_attn.proj", 8, 8, dtype=torch.float32),
        {
            "r": 2,
            "lora_alpha": 2,
        },
    )
    changing = alpha | {"init_lora_weights": "pissa"}
    assert compare(target_model, file, file, configs=(changing, changing)) == 0.0
    for configs in ((alpha, changing), (changing, alpha)):
        with pytest.raises(
            VerificationError, match="PiSSA would be read with another meaning or strength"
        ):
            compare(target_model, file, file, configs=configs)


def test_a_strength_that_only_settings_tell(target_model):
    file = lora("img_in", 8, 16) | {"img_in.lora_E": torch.randn(2, 1)}
    configs = [
        {"peft_type": "ADALORA", "init_r": 2, "r": 2, "lora_alpha": alpha} for alpha in (2, 4)
    ]
    assert compare(target_model, file, file, configs=(configs[0], configs[0])) == 0.0
    with pytest.raises(VerificationError):
        compare(target_model, file, file, configs=configs)


def test_the_middle_of_a_convolution_counts():
    target_model = TargetModel([denoiser_network({"diffusion_model.conv.weight": (8, 4, 3, 3)})])
    file = {
        "conv.lora_up.weight": (8, 2, 1, 1),
        "conv.lora_down.weight": (2, 4, 1, 1),
        "conv.lora_mid.weight": (2, 2, 3, 3),
    }
    file = {key: torch.randn(shape) for key, shape in file.items()}
    other = {
        key: tensor * {"up": 2, "down": 0.5, "mid": 1}[key.split("_")[1].split(".")[0]]
        for key, tensor in file.items()
    }
    assert compare(target_model, file, other) <= 1e-7
    with pytest.raises(VerificationError):
        compare(target_model, file, changed(file, "conv.lora_mid.weight", 0.01))


def test_parts_of_another_dtype(target_model):
    half = lora(QKV, 24, 8, dtype=torch.float16)
    wide = {key: tensor.float() for key, tensor in half.items()}
    assert (
        compare(target_model, half, split(wide)) == compare(target_model, split(wide), half) == 0.0
    )
    with pytest.raises(VerificationError):
        compare(target_model, half, changed(split(wide), f"{PARTS['k']}.lora_B.weight", 0.01))


def test_what_tells_no_rows_is_told_by_its_kind(target_model):
    file = {"img_in.ia3_l": torch.randn(1, 16)}
    assert compare(target_model, file, file) == 0.0
    with pytest.raises(VerificationError, match="would be read with another meaning or strength"):
        compare(target_model, file, changed(file, "img_in.ia3_l", 0.1))


def test_magnitudes_of_another_formula(target_model):
    """Stable Audio's own are per input, though they have the shape of those per output."""
    file = dora("double_blocks.0.img_attn.proj", 8, 8)
    other = {
        key: tensor if "dora" in key else tensor * (2 if "lora_A" in key else 0.5)
        for key, tensor in file.items()
    }
    (plain, renamed), reads = (
        plans_of(target_model, file, other),
        (file.__getitem__, other.__getitem__),
    )
    assert check_same(plain, reads[0], renamed, reads[1]) <= 1e-12
    columns = {"options": (("dora_axis", "columns"),)}
    for source, written in (
        (plain, with_options(renamed, **columns)),
        (with_options(plain, **columns), renamed),
    ):
        with pytest.raises(VerificationError, match="would be used in another formula"):
            check_same(source, reads[0], written, reads[1])


def plans_of(target_model, *files):
    return [
        make_plan({key: tuple(tensor.shape) for key, tensor in file.items()}, {}, target_model)
        for file in files
    ]


def with_options(plan, **more):
    return plan._replace(adapters=tuple(adapter._replace(**more) for adapter in plan.adapters))
