"""Every model in every dialect: our own spelling of all its modules is read back, every key on the
target it was spelled for.
"""

from __future__ import annotations

import comfy_models
import pytest
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.planning.names import spell
from lora_locksmith.planning.plan import PLACED, make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network, encoder_networks

# One model of each family: what differs between them is sizes, which other tests go over.
MODELS = tuple(
    {model.family: name for name, model in reversed(comfy_models.MODELS.items())}.values()
)
RANK = 4


def keys_of(spelled, dialect) -> dict[str, tuple[int, ...]]:
    """The keys of a LoRA on one module, in the dialect's spelling of its factors."""
    down, up = "lora_A.weight", "lora_B.weight"
    if dialect.form == "flat":
        down, up = "lora_down.weight", "lora_up.weight"
    out, *inner = spelled.shape
    return {
        f"{spelled.module}.{down}": (RANK, *inner),
        f"{spelled.module}.{up}": (out, RANK, *(1 for _ in inner[1:])),
    }


@pytest.fixture(params=MODELS, scope="module")
def target_model(request, comfy):
    try:
        weights = comfy_models.shapes(request.param)
    except comfy_models.NotInThisComfyUI as missing:
        pytest.skip(str(missing))
    return TargetModel([denoiser_network(weights)])


@pytest.mark.parametrize("dialect", dialects().values(), ids=dialects().keys())
def test_what_is_spelled_is_read_back(target_model, dialect):
    check(target_model, target_model.networks[DENOISER], dialect)


@pytest.mark.parametrize("name", comfy_models.ENCODERS)
def test_text_encoders(comfy, name):
    target_model = TargetModel(encoder_networks(comfy_models.encoder_shapes(name)))
    for slot in target_model.slots:
        check(target_model, target_model.networks[slot], dialects()["comfyui"])


def check(target_model, network, dialect):
    expected, keys = {}, {}
    for spelled in spell(target_model, network, dialect):
        expected[spelled.module] = spelled
        keys |= keys_of(spelled, dialect)
    plan = make_plan(keys, {}, target_model)
    lost = {key: outcome for key, outcome in plan.outcomes.items() if outcome.category != PLACED}
    assert not lost, dict(list(lost.items())[:3])
    for adapter in plan.adapters:
        weight, rows, _ = adapter.target.slices[0]
        spelled = expected[adapter.module]
        assert (weight, rows, adapter.target.swap) == (
            spelled.weight,
            spelled.rows,
            spelled.swap,
        ), adapter.module
    assert len(plan.adapters) == len(expected)
