"""Planning a file and indexing a model of full size: torch-free work on names and shapes, in
multiples of parsing them as JSON.
"""

from __future__ import annotations

import json

from .files import flux_modules, header_text
from .measuring import Bench, Row, measurement

# One model of each kind of table: fused and split names, a UNet, the longest list of names, plain
# transformer blocks.
MODELS = ("flux1_dev", "sdxl", "qwen_image", "wan21_i2v_14b")


@measurement(
    Row(
        "plan",
        "Planning a DoRA of 1,976 keys, the model's index made",
        "`json.loads` of its header",
        "ours",
        "json.loads",
        6,
        40,
    ),
    rounds=15,
    short_rounds=7,
)
def plan(bench: Bench):
    import comfy_models
    from hollow_files import write_hollow
    from lora_locksmith.files.header import read_header
    from lora_locksmith.planning.plan import make_plan
    from lora_locksmith.planning.target_model import TargetModel, denoiser_network

    shapes = {}
    for module, (out, inner) in flux_modules().items():
        roles = {
            "lora_A.weight": (1, inner),
            "lora_B.weight": (out, 1),
            "alpha": (),
            "lora_magnitude_vector": (out,),
        }
        shapes |= {f"transformer.{module}.{role}": shape for role, shape in roles.items()}
    path = write_hollow(bench.folder / "dora.safetensors", shapes)
    header, text = read_header(path), header_text(path)
    target_model = TargetModel([denoiser_network(comfy_models.shapes("flux1_dev"))])
    make = lambda: make_plan(header.tensors, header.metadata, target_model)  # noqa: E731
    assert {outcome.category for outcome in make().outcomes.values()} == {"placed"}
    return bench.take_turns({"json.loads": lambda: json.loads(text), "ours": make})


@measurement(
    Row(
        "patterns",
        "Planning 2,000 modules with 2,000 patterns for alpha",
        "the same file without them",
        "with",
        "without",
        1.5,
        2,
    ),
    rounds=21,
    short_rounds=11,
)
def patterns(bench: Bench):
    from lora_locksmith.lora.rewrite.peft_config import (
        PeftTraining,
        adapter_config,
        header_settings,
    )
    from lora_locksmith.planning.plan import make_plan
    from lora_locksmith.planning.target_model import TargetModel, denoiser_network

    modules = [
        f"blocks.{block}.{layer}"
        for block in range(200)
        for layer in ("qkv", "proj", "mlp.0", "mlp.2", *"abcdef")
    ]
    target_model = TargetModel(
        [denoiser_network({f"diffusion_model.{module}.weight": (64, 64) for module in modules})]
    )
    shapes = {
        f"diffusion_model.{module}.lora_{role}.weight": shape
        for module in modules
        for role, shape in (("A", (4, 64)), ("B", (64, 4)))
    }
    # As `fix --to peft` writes a file with an alpha for each module: full names, all but the most
    # frequent alpha's.
    config = adapter_config(
        {module: PeftTraining(4, 1 + place / 4) for place, module in enumerate(["one", *modules])},
        modules,
    )
    assert len(config["alpha_pattern"]) == len(modules) == 2000
    plain = config | {"alpha_pattern": {}}
    told = {
        name: {"lora_adapter_metadata": header_settings({"": one})}
        for name, one in (("with", config), ("without", plain))
    }
    plans = {
        name: lambda metadata=metadata: make_plan(shapes, metadata, target_model)
        for name, metadata in told.items()
    }
    assert len({adapter.strength.scale for adapter in plans["with"]().adapters}) == len(modules)
    return bench.take_turns(plans)


@measurement(
    *(
        Row(
            f"index, {name}",
            f"Indexing a model: {name}",
            "`json.loads` of its names and shapes",
            name,
            f"json.loads of {name}",
            ratio,
            60,
        )
        for name, ratio in zip(MODELS, (3, 2, 1, 1), strict=True)
    ),
    rounds=15,
    short_rounds=5,
)
def index(bench: Bench):
    import comfy_models
    from lora_locksmith.planning.target_model import TargetModel, denoiser_network

    runs = {}
    for name in MODELS:
        shapes = dict(comfy_models.shapes(name))
        text = json.dumps(
            {
                key: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
                for key, shape in shapes.items()
            }
        )
        make = lambda shapes=shapes: TargetModel([denoiser_network(shapes)])  # noqa: E731
        family = make().family
        assert family is not None and family.name == comfy_models.MODELS[name].family
        runs |= {name: make, f"json.loads of {name}": lambda text=text: json.loads(text)}
    return bench.take_turns(runs)
