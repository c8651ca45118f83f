"""What the tests of names share: the target models of ComfyUI's real models."""

import comfy_models
import pytest
from lora_locksmith.planning.target_model import TargetModel, denoiser_network


@pytest.fixture(scope="package")
def target_model_of(comfy):
    """target_model_of(name of a model in comfy_models) -> TargetModel; skips for a model that this ComfyUI does
    not know.
    """
    target_models = {}

    def build(name):
        try:
            return target_models.setdefault(
                name,
                target_models.get(name)
                or TargetModel([denoiser_network(comfy_models.shapes(name))]),
            )
        except comfy_models.NotInThisComfyUI as missing:
            pytest.skip(str(missing))

    return build
