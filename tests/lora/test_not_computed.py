"""Adapters that are known and not computed: files as PEFT saves them are refused under their names,
and change nothing.
"""

from __future__ import annotations

import peft
import pytest
import torch
from lora_locksmith.key_maps.lines import TextError
from lora_locksmith.messages import message
from lora_locksmith.planning.groups import group_keys
from lora_locksmith.planning.not_computed import known_adapters, not_computed
from lora_locksmith.planning.plan import UNSUPPORTED
from lora_locksmith.report.inspection import inspect_file
from lora_locksmith.report.load_report import Report
from peft_nets import Net, loaded, trained
from safetensors.torch import save_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SAVED = {
    "Lily": (peft.LilyConfig, {"r": 4, "num_B": 2}),
    "PSOFT": (peft.PsoftConfig, {"r": 4}),
    "FRoD": (peft.FrodConfig, {}),
    "TinyLoRA": (peft.TinyLoraConfig, {"r": 2}),
    "Uni-LoRA": (peft.UniLoraConfig, {"r": 4, "theta_d_length": 64}),
    "OSF": (peft.OSFConfig, {"effective_rank": 4}),
    "Poly": (peft.PolyConfig, {"r": 4, "n_tasks": 2, "n_skills": 2, "n_splits": 1}),
}


@pytest.mark.parametrize("title", SAVED)
def test_what_peft_saves_is_refused_by_name(tmp_path, title):
    net = Net(bias=False).eval()
    trained(net, *SAVED[title]).save_pretrained(tmp_path)
    ours, plan = loaded(net, tmp_path)
    assert not plan.adapters and plan.outcomes
    for key, outcome in plan.outcomes.items():
        assert outcome.category == UNSUPPORTED and outcome.reason.startswith(f"{title}: "), key
    total = Report(plan).modules["total"]
    assert Report(plan).verdict.startswith(
        f"0 of {total} layer{'s load' if total > 1 else ' loads'}: {title}: "
    )
    assert inspect_file(tmp_path / "adapter_model.safetensors").verdict.startswith(f"{title}: ")
    for name, weight in net.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name])


NAMED = {
    "AdaMSS": [
        "base_model.model.blocks.0.lin.adamss_A.0",
        "base_model.model.blocks.0.lin.adamss_newB",
    ],
    "X-LoRA": [
        "internal_xlora_classifier.layers.0.weight",
        "base_model.model.internal_xlora_classifier.last.weight",
    ],
    "ShadowPEFT": [
        "base_model.model.blocks.0.shadow_down.weight",
        "base_model.model.shadow_backbone.blocks.0.lin.weight",
    ],
    "prompt tuning": ["prompt_embeddings", "base_model.model.layers.2.self_attn.adaption_gate"],
    "Stand-In": [
        "diffusion_model.blocks.0.self_attn.q_loras.down.weight",
        "blocks.39.self_attn.v_loras.up.weight",
    ],
    "EasyControl": [
        "double_blocks.0.processor.q_loras.0.down.weight",
        "single_blocks.3.processor.proj_loras.0.up.weight",
        "b_cond.0",
    ],
    "HydraLoRA": [
        "lora_unet_blocks_3_mlp_layer1.lora_ups.0.weight",
        "lora_unet_blocks_3_mlp_layer1.lora_downs.2.weight",
        "lora_unet_blocks_3_mlp_layer1.lora_ups_c.1.weight",
        "lora_unet_blocks_3_mlp_layer1.router.weight",
        "global_router.weight",
        "blocks_0_mlp_layer1.hydralora_gate.weight",
    ],
    "ReFT": ["reft_unet_blocks_0.rotate_layer.weight"],
    "Nunchaku's form": [
        "transformer_blocks.0.qkv_proj_context.lora_down",
        "single_transformer_blocks.37.mlp_fc2.lora_up",
        "transformer.single_transformer_blocks.0.norm.linear.lora_up",
    ],
    "AnimateDiff motion": [
        "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
        ".attention_blocks.0.processor.to_q_lora.down.weight",
    ],
    "CDKA": ["lora_unet_blocks_0_lin.cdka_a"],
}


@pytest.mark.parametrize("title", NAMED)
def test_other_keys_are_known_by_their_names(title):
    assert [known.title for known in map(not_computed, NAMED[title])] == [title] * len(NAMED[title])
    assert set(group_keys(dict.fromkeys(NAMED[title])).refused) == set(NAMED[title])


def test_every_adapter_of_the_record_is_tried():
    assert [
        known.title for known in known_adapters().records if known.title not in {**SAVED, **NAMED}
    ] == []


def test_what_acts_on_some_tokens_is_not_called_a_model(tmp_path):
    """Stand-In: low-rank pairs of a reference image's tokens, named like whole weights."""
    tensors = {
        f"blocks.{i}.self_attn.{n}_loras.{side}.weight": torch.ones(2, 2)
        for i in range(3)
        for n in "qkv"
        for side in ("down", "up")
    }
    save_file(tensors, tmp_path / "x.safetensors")
    verdict = inspect_file(tmp_path / "x.safetensors").verdict
    assert (
        verdict.startswith("Stand-In: ")
        and message("planning.whole_weights") not in verdict.lower()
    )


@pytest.mark.parametrize(
    "key",
    [
        "blocks.0.self_attn.q.lora_A.weight",
        "lora_unet_blocks_3_mlp_layer1.lora_up.weight",
        "transformer_blocks.0.out_proj.lora_A.weight",
        "transformer_blocks.0.norm1.linear.lora_down.weight",
        "a.lilypad.lora_down.weight",
        "blocks.0.shadows.weight",
        "x.alpha",
        "",
    ],
)
def test_ordinary_keys_are_no_such_adapter(key):
    assert not_computed(key) is None


@pytest.mark.parametrize(
    "line", ["A | b", "A | | x_y_z", "A | b | *.x*", "A | b | *.longer\nA | c | *.other"]
)
def test_a_line_that_breaks_the_rules_is_named(tmp_path, line):
    path = tmp_path / "not_computed.table"
    path.write_text(f"# a comment\n{line}\n", "utf-8")
    with pytest.raises(
        TextError, match=rf"not_computed\.table, line {3 if 'other' in line else 2}: "
    ):
        known_adapters.__wrapped__(path)


def test_a_lora_beside_layers_with_a_router_loads(tmp_path):
    """HydraLoRA leaves layers that no router serves as plain LoRAs."""
    name = "lora_unet_blocks_3_{}"
    tensors = {}
    for layer, out in (("self_attn_q_proj", 2048), ("mlp_layer1", 8192)):
        tensors |= {
            name.format(layer) + ".lora_down.weight": torch.ones(2, 2048),
            name.format(layer) + ".alpha": torch.tensor(2.0),
        }
        up = torch.ones(out, 2)
        if layer == "mlp_layer1":
            tensors |= {f"{name.format(layer)}.lora_ups.{i}.weight": up + i for i in range(2)}
            tensors |= {name.format(layer) + ".router.weight": torch.ones(2, 2)}
        else:
            tensors[name.format(layer) + ".lora_up.weight"] = up
    save_file(tensors, tmp_path / "x.safetensors")
    plan = inspect_file(tmp_path / "x.safetensors").plan
    assert [adapter.module for adapter in plan.adapters] == [name.format("self_attn_q_proj")]
