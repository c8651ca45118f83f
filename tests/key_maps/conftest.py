"""What the tests of names share: the sites of ComfyUI's real models."""

import comfy_models
import pytest
from lora_locksmith.planning.target_model import Site, denoiser_component


@pytest.fixture(scope="package")
def site_of(comfy):
    """site_of(name of a model in comfy_models) -> Site; skips for a model that this ComfyUI does
    not know.
    """
    sites = {}

    def build(name):
        try:
            return sites.setdefault(
                name, sites.get(name) or Site([denoiser_component(comfy_models.shapes(name))])
            )
        except comfy_models.NotInThisComfyUI as missing:
            pytest.skip(str(missing))

    return build
