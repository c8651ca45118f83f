"""A collection as people have it: several models, trainers, choices of layers and ranks, and among
them files that are like no other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from .files import Shape

# models by the names of comfy_models.py, and who writes LoRAs for them
WRITERS = (
    ("sdxl", "kohya"),
    ("sdxl", "kohya"),
    ("sd15", "kohya"),
    ("sdxl", "diffusers"),
    ("flux1_dev", "kohya"),
    ("flux1_dev", "ai_toolkit"),
    ("flux1_dev", "diffusers"),
    ("wan21_t2v_14b", "diffusion_pipe"),
    ("qwen_image", "diffusers"),
    ("z_image", "ai_toolkit"),
    ("hunyuan_video", "musubi_tuner"),
    ("chroma", "kohya"),
)
LAYERS = (".", r"attn", r"attn|ff|mlp|proj", r"_[0-4]_|\.[0-4]\.", r"_[5-9]_|\.[5-9]\.")
USUAL = (4, 8, 16, 32, 64, 128)
OWN_RANKS, OWN_NAMES = 0.10, 0.02  # share of the files


def mixed_library(folder: Path, files: int, seed: int = 0) -> Path:
    """A folder of LoRAs, each tenth of ranks that no other has (one for all modules, or one for
    each, as resizing leaves them), and each fiftieth with layers that no other trains.
    """
    from hollow_files import write_hollow

    folder.mkdir()
    chance = random.Random(seed)
    for number in range(files):
        model, dialect = chance.choice(WRITERS)
        modules = _trained(model, dialect, chance.choice(LAYERS))
        rank, kind = _one_rank(chance.choice(USUAL)), chance.random()
        if kind < OWN_RANKS:
            rank = _own_ranks(chance)
        elif kind < OWN_RANKS + OWN_NAMES:
            share = chance.uniform(0.1, 0.95)
            modules = {name: one for name, one in modules.items() if chance.random() < share}
        shapes = _tensors(modules, rank, dialect)
        write_hollow(folder / f"{number:05}.safetensors", shapes, _metadata(number, dialect))
    return folder


Rank = Callable[[], int]


def _one_rank(rank: int) -> Rank:
    return lambda: rank


def _own_ranks(chance: random.Random) -> Rank:
    if chance.random() < 0.5:
        return _one_rank(chance.choice([rank for rank in range(1, 257) if rank not in USUAL]))
    return lambda: chance.randrange(1, 129)


@cache
def _trained(model: str, dialect: str, layers: str) -> Mapping[str, Shape]:
    """The modules of a model's blocks as a trainer names them, of those that it chose."""
    import comfy_models
    from lora_locksmith.key_maps.dialect import DENOISER, dialects
    from lora_locksmith.planning.names import spell
    from lora_locksmith.planning.target_model import TargetModel, denoiser_network

    target_model = TargetModel([denoiser_network(comfy_models.shapes(model))])
    spelled = spell(target_model, target_model.networks[DENOISER], dialects()[dialect])
    return {
        one.module: one.shape
        for one in spelled
        if re.search(r"block|layers", one.module) and re.search(layers, one.module)
    }


def _tensors(modules: Mapping[str, Shape], rank: Rank, dialect: str) -> dict[str, Shape]:
    is_flat = dialect in ("kohya", "musubi_tuner")
    down, up = ("lora_down", "lora_up") if is_flat else ("lora_A", "lora_B")
    tensors: dict[str, Shape] = {}
    for module, (out, inner, *kernel) in sorted(modules.items()):
        own = min(rank(), out, inner)
        tensors |= {f"{module}.alpha": ()} if is_flat else {}
        tensors[f"{module}.{down}.weight"] = (own, inner, *kernel)
        tensors[f"{module}.{up}.weight"] = (out, own, *(1 for _ in kernel))
    return tensors


def _metadata(number: int, dialect: str) -> dict[str, str]:
    """What is another in each file, and must not keep alike ones from being known as such."""
    own = {"sshs_model_hash": f"{number:064x}", "modelspec.date": "2026-01-01"}
    if dialect != "kohya":
        return own
    tags = ", ".join(f'"tag {tag}": {number % (tag + 2)}' for tag in range(50))
    return own | {
        "ss_output_name": f"lora {number}",
        "ss_network_module": "networks.lora",
        "ss_tag_frequency": f'{{"10_one": {{{tags}}}}}',
    }
