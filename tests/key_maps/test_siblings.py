"""A tensor that nothing known has beside an adapter's own refuses the adapter: it means another
formula.
"""

from __future__ import annotations

import pytest
from lora_locksmith.planning.plan import BOOKKEEPING, PLACED, UNSUPPORTED, make_plan
from lora_locksmith.planning.siblings import siblings
from lora_locksmith.planning.target_model import TargetModel, denoiser_network

WEIGHTS = {f"diffusion_model.blocks.{i}.lin.weight": (8, 6) for i in range(2)}
PAIR = {"lora_A.weight": (4, 6), "lora_B.weight": (8, 4)}


def plan_with(**extra):
    """The plan of two modules with a pair each, the first with more beside it."""
    keys = {f"blocks.{i}.lin.{name}": shape for i in range(2) for name, shape in PAIR.items()}
    return make_plan(
        keys | {f"blocks.0.lin.{name}": shape for name, shape in extra.items()},
        {},
        TargetModel([denoiser_network(WEIGHTS)]),
    )


@pytest.mark.parametrize(
    "name",
    [
        "lora_F",
        "lora_F.default",
        "lora_diagonal",
        "lora_mixers.weight",
        "gate.weight",
        "router.0.bias",
        "delora_x",
    ],
)
def test_the_adapter_beside_it_is_refused_with_its_name(name):
    plan = plan_with(**{name: (4, 1)})
    first = plan.outcomes["blocks.0.lin.lora_A.weight"]
    assert first.category == UNSUPPORTED and f"blocks.0.lin.{name}" in first.reason
    assert [adapter.module for adapter in plan.adapters] == ["blocks.1.lin"]
    assert plan.outcomes["blocks.1.lin.lora_A.weight"].category == PLACED


@pytest.mark.parametrize(
    "name",
    [
        "base_layer.weight",
        "lora_monteclora_sampler.expert_weights",
        "lora_velora_embed",
        "pissa_initial_down",
        "pissa_original_alpha",
    ],
)
def test_what_is_known_to_be_harmless_refuses_nothing(name):
    plan = plan_with(**{name: (4, 1)})
    assert len(plan.adapters) == 2
    assert plan.outcomes[f"blocks.0.lin.{name}"].category == BOOKKEEPING


def test_only_what_stands_in_the_module_itself_is_beside_it():
    assert siblings(["a.lin", "a.line"], ["a.lin2.x", "a.linx", "a.y", "b.lin.z"]) == {}
    assert siblings(["a.lin"], ["a.lin.deep.x", "a.lin.y"]) == {"a.lin": "a.lin.deep.x"}
