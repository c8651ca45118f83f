"""LoRAs that MLX saved, whose factors lie the other way round, against what MLX computes with them:
y + scale * (x @ lora_a @ lora_b).
"""

from __future__ import annotations

import every_name
import pytest
import torch
from lora_locksmith.key_maps.table import families
from lora_locksmith.lora.from_plan import adapter_of
from lora_locksmith.lora.math.apply import patched_weight
from lora_locksmith.lora.rewrite.convert import convert
from lora_locksmith.planning.plan import PLACED, SHAPE_CONFLICT, UNSUPPORTED, make_plan

RANK, WIDTH = 4, 3072
QKV = "double_blocks.0.img_attn.qkv"
OF_FLUX = {"lora_rank": "4", "lora_blocks": "-1"}  # mlx-examples' header
OF_MLX_LM = {"lora_parameters": {"rank": RANK, "scale": 20.0, "dropout": 0.0}}


def factors(outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    return (
        torch.randn(WIDTH, RANK, generator=generator) / WIDTH**0.5,
        torch.randn(RANK, outputs, generator=generator),
    )


def planned(tensors, metadata=None, config=None):
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return make_plan(
        shapes, metadata or {}, every_name.drawn(families()["flux1"], ""), config_beside=config
    )


@pytest.mark.parametrize(
    ("metadata", "config", "scale"),
    [(OF_FLUX, None, 1.0), ({}, OF_MLX_LM, 20.0), ({}, None, 1.0)],
    ids=["mlx-examples", "mlx-lm", "untold"],
)
def test_it_does_what_mlx_does(metadata, config, scale):
    a, b = factors(3 * WIDTH)
    plan = planned({f"{QKV}.lora_a": a, f"{QKV}.lora_b": b}, metadata, config)
    (adapter,) = plan.adapters
    told = [caution for caution in plan.cautions if "MLX" in caution]
    assert bool(told) == (not metadata and config is None)
    tensors = {"transposed_a": a, "transposed_b": b}
    spec, roles = adapter_of(adapter, tensors, None)
    weight, x = torch.randn(3 * WIDTH, WIDTH) / WIDTH**0.5, torch.randn(2, WIDTH)
    changed = patched_weight(spec, roles, weight, 1.0)
    torch.testing.assert_close(
        x @ changed.T, x @ weight.T + scale * (x @ a @ b), atol=2e-3, rtol=1e-4
    )


def test_a_sequence_of_mlx_is_found():
    a, b = factors(4 * WIDTH)
    name = "double_blocks.0.img_mlp.layers.0"
    plan = planned({f"{name}.lora_a": a, f"{name}.lora_b": b}, OF_FLUX)
    assert {outcome.category for outcome in plan.outcomes.values()} == {PLACED}


def test_it_is_written_as_a_pair_as_others_have_it():
    a, b = factors(3 * WIDTH)
    tensors = {f"{QKV}.lora_a": a, f"{QKV}.lora_b": b}
    plan = planned(tensors, config=OF_MLX_LM)
    written = dict(convert(plan, tensors, "comfyui").items())
    module = f"diffusion_model.{QKV}"
    product = written[f"{module}.lora_up.weight"] @ written[f"{module}.lora_down.weight"]
    alpha = written.get(f"{module}.alpha", torch.tensor(float(RANK)))
    torch.testing.assert_close(product * (alpha / RANK), 20 * (a @ b).T, atol=1e-3, rtol=1e-3)


USUAL, OF_MLX = ("down", "up"), ("transposed_a", "transposed_b")
SQUARE, OTHER = "double_blocks.0.img_attn.proj", "double_blocks.1.img_attn.proj"
WIDE = "double_blocks.0.img_mlp.0"


def bare(module, inputs, outputs, rank, *, turned=False, letters="ab"):
    """Bare factors as a module keeps them, [rank, in] and [out, rank], or turned as MLX does."""
    made = torch.randn(rank, inputs), torch.randn(outputs, rank)
    return {
        f"{module}.lora_{letter}": factor.T.contiguous() if turned else factor
        for letter, factor in zip(letters, made, strict=True)
    }


def ways(plan):
    """module -> the roles of its first and its second factor, of all that is placed."""
    return {
        adapter.module: tuple(role for role in adapter.roles if role not in ("alpha", "magnitude"))
        for adapter in plan.adapters
    }


@pytest.mark.parametrize("letters", ["ab", "AB"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("module", "outputs"), [(QKV, 3 * WIDTH), (SQUARE, WIDTH)], ids=["fused", "square"]
)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_the_shapes_tell_which_way_round_bare_factors_lie(module, outputs, turned, letters, alpha):
    tensors = bare(module, WIDTH, outputs, RANK, turned=turned, letters=letters)
    first, second = tensors.values()
    delta = (first @ second).T if turned else second @ first
    if alpha is not None:
        tensors[f"{module}.alpha"] = torch.tensor(alpha)
    plan = planned(tensors)
    assert ways(plan) == {module: OF_MLX if turned else USUAL}
    assert {outcome.category for outcome in plan.outcomes.values()} == {PLACED}
    (adapter,) = plan.adapters
    by_role = {role: tensors[key] for role, key in adapter.roles.items()}
    spec, roles = adapter_of(adapter, by_role, None)
    changed = patched_weight(spec, roles, torch.zeros(outputs, WIDTH), 1.0)
    expected = delta * (alpha / RANK if alpha else 1)
    torch.testing.assert_close(changed, expected, atol=1e-3, rtol=1e-3)
    assert any("MLX" in caution for caution in plan.cautions) == (turned and not alpha)


@pytest.mark.parametrize("turned", [False, True])
def test_a_layer_that_fits_both_ways_is_as_the_others_of_its_file(turned):
    """A rank as large as the layer is wide; and of a larger one the shapes alone would say the
    other way.
    """
    way = OF_MLX if turned else USUAL
    square = bare(SQUARE, WIDTH, WIDTH, WIDTH, turned=turned)
    larger = bare(OTHER, WIDTH, WIDTH, WIDTH + 1, turned=turned)
    smaller = bare(OTHER, WIDTH, WIDTH, RANK, turned=turned)
    wide = bare(WIDE, WIDTH, 4 * WIDTH, RANK, turned=turned)
    assert ways(planned(square | larger | wide)) == dict.fromkeys((SQUARE, OTHER, WIDE), way)
    assert ways(planned(square | smaller)) == dict.fromkeys((SQUARE, OTHER), way)


@pytest.mark.parametrize(
    ("metadata", "config", "way"),
    [
        (OF_FLUX, None, OF_MLX),
        ({}, OF_MLX_LM, OF_MLX),
        ({"lora_adapter_metadata": "{}"}, None, USUAL),
        ({}, {"peft_type": "LORA"}, USUAL),
    ],
)
def test_where_shapes_tell_nothing_the_settings_do(metadata, config, way):
    tensors = bare(SQUARE, WIDTH, WIDTH, WIDTH)
    assert set(ways(planned(tensors, metadata, config)).values()) == {way}


def test_where_nothing_tells_it_is_refused_by_name():
    tensors = bare(SQUARE, WIDTH, WIDTH, WIDTH) | {f"{SQUARE}.alpha": torch.tensor(1.0)}
    plan = planned(tensors)
    assert not plan.adapters
    for outcome in plan.outcomes.values():
        assert outcome.category == UNSUPPORTED and "lora_A.weight" in outcome.reason
    # stock reads these names as the usual ones, whatever their shapes
    usual = planned(bare(SQUARE, WIDTH, WIDTH, WIDTH, letters="AB"))
    assert set(ways(usual).values()) == {USUAL}


def test_as_many_of_either_way_decide_nothing_for_others():
    tensors = bare(QKV, WIDTH, 3 * WIDTH, RANK) | bare(SQUARE, WIDTH, WIDTH, WIDTH)
    tensors |= bare(WIDE, WIDTH, 4 * WIDTH, RANK, turned=True)
    assert ways(planned(tensors)) == {QKV: USUAL, WIDE: OF_MLX}


def test_factors_that_fit_neither_way_are_named():
    tensors = bare(QKV, WIDTH, 3 * WIDTH, RANK)
    tensors[f"{QKV}.lora_b"] = torch.randn(3 * WIDTH, RANK + 1)
    plan = planned(tensors)
    assert {outcome.category for outcome in plan.outcomes.values()} == {SHAPE_CONFLICT}
