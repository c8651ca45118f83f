"""PEFT's settings for a set of LoRA modules: ranks, alphas and targets, so that PEFT and diffusers
build just these modules.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ...messages import message
from .rename import Refused


class PeftTraining(NamedTuple):
    """What PEFT must know of one module: rank, scale (lora_alpha / r), whether it has a magnitude
    and a bias.

    told_by: name and value of a setting without which its factors would mean something else.
    """

    rank: int
    scale: float
    dora: bool = False
    bias: bool = False
    told_by: tuple[str, ...] = ()


def adapter_config(
    modules: Mapping[str, PeftTraining], known: Iterable[str] = ()
) -> dict[str, Any]:
    """A LoraConfig as plain JSON for these modules (names as the model has them).

    known: all module names of the model; those that PEFT would take for a target because they end
    like one are excluded (FLUX: `proj_out` ends `single_transformer_blocks.0.proj_out`). Source:
    peft tuners/tuners_utils.py check_target_module_exists, utils/other.py get_pattern_key. Raises
    Refused for a scale that is no number, and for what only some modules would be.
    """
    for name, item in modules.items():
        if not math.isfinite(item.scale):
            raise Refused((message("lora.alpha_not_finite", module=name),))
    ranks, alphas = (
        Counter(item.rank for item in modules.values()),
        Counter(_alpha(item) for item in modules.values()),
    )
    rank, alpha = ranks.most_common(1)[0][0], alphas.most_common(1)[0][0]
    settings = {item.told_by for item in modules.values()}
    if len(settings) > 1:
        raise Refused((message("lora.trained_differently", setting=" = ".join(max(settings))),))
    excluded = sorted(set(_ending_like(modules, known)) - modules.keys())
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _patterns({name: item.rank for name, item in modules.items()}, rank),
        "alpha_pattern": _patterns({name: _alpha(item) for name, item in modules.items()}, alpha),
        "target_modules": sorted(modules),
        "exclude_modules": excluded or None,
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "bias": "none",
        "lora_bias": any(item.bias for item in modules.values()),
        "use_rslora": False,
        "use_dora": any(item.dora for item in modules.values()),
        "modules_to_save": None,
        "init_lora_weights": True,
        **{setting[0]: setting[1] for setting in settings if setting},
    }


def header_settings(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """diffusers' `lora_adapter_metadata`: the configs of the networks (transformer, text_encoder
    ..., "" for all) in one JSON object.

    A model's own `save_lora_adapter` writes it without a network's name (diffusers
    loaders/peft.py).
    """
    packed = {
        f"{network}.{key}" if network else key: value
        for network, config in configs.items()
        for key, value in config.items()
    }
    return json.dumps(packed, indent=2, sort_keys=True)


def _alpha(item: PeftTraining) -> float | int:
    alpha = item.scale * item.rank
    return round(alpha) if alpha == round(alpha) else alpha


def _ending_like(modules: Mapping[str, Any], names: Iterable[str]) -> Iterable[str]:
    """The names of which another module's name is the end, a dot before it."""
    for name in names:
        tail = name.partition(".")[2]
        while tail:
            if tail in modules:
                yield name
                break
            tail = tail.partition(".")[2]


def _patterns(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """What differs from the default, by full name. PEFT takes the first that the name ends with, so
    longer names stand first.
    """
    different = {name for name, value in values.items() if value != default}
    # Without a line of its own such a module would take that of the name it ends with.
    different |= {
        name for name in _ending_like(dict.fromkeys(different), values) if name not in different
    }
    return {
        name: values[name] for name in sorted(different, key=lambda name: (-name.count("."), name))
    }
