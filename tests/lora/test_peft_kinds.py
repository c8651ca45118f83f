"""Adapter kinds that PEFT makes and saves, from the file to the weights, against PEFT's own
forward.
"""

from __future__ import annotations

import peft
import pytest
import torch
from lora_locksmith.lora.from_plan import adapter_of, has_delta, spec_of
from lora_locksmith.lora.math.apply import AdapterError, patched_weight
from lora_locksmith.lora.math.low_rank import factors
from lora_locksmith.lora.merge.collect import rank_of
from lora_locksmith.lora.rewrite.convert import convert
from lora_locksmith.lora.rewrite.rename import Refused
from lora_locksmith.lora.rewrite.resize import Ask, resize_file
from lora_locksmith.planning.plan import PLACED
from peft_nets import PREFIX, Net, loaded, trained
from safetensors.torch import load_file, save_file
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ERROR = 2e-4  # of the change


BLOCKS = peft.BdLoraConfig(
    target_modules_bd_a=["wide"], target_modules_bd_b=["square"], nblocks=3, match_strict=False
)
CASES = {
    "hra": (peft.HRAConfig, {"r": 4}),
    "hra, orthogonal": (peft.HRAConfig, {"r": 4, "apply_GS": True}),
    "miss": (peft.MissConfig, {"r": 4}),
    "miss, blocks that do not divide the inputs": (peft.MissConfig, {"r": 5}),
    "miss, mini": (peft.MissConfig, {"r": 4, "mini_r": 2, "init_weights": "mini"}),
    "miss, bat": (peft.MissConfig, {"r": 4, "init_weights": "bat"}),
    "c3a": (peft.C3AConfig, {"block_size": 6}),
    "shira": (peft.ShiraConfig, {"r": 2}),
    "hira": (peft.HiraConfig, {"r": 4}),
    "delora": (peft.DeloraConfig, {"r": 4, "delora_lambda": 3}),
    "road 1": (peft.RoadConfig, {"group_size": 4}),
    "road 2": (peft.RoadConfig, {"group_size": 6, "variant": "road_2"}),
    "road 4": (peft.RoadConfig, {"group_size": 4, "variant": "road_4"}),
    "glora": (peft.GloraConfig, {"r": 4}),
    "glora, vectors": (peft.GloraConfig, {"r": 4, "config_A_B": "vector"}),
    "glora, numbers": (peft.GloraConfig, {"r": 4, "config_A_B": "constant"}),
    "gralora": (peft.GraloraConfig, {"r": 4, "alpha": 6, "gralora_k": 2}),
    "gralora, hybrid": (peft.GraloraConfig, {"r": 4, "alpha": 6, "gralora_k": 2, "hybrid_r": 2}),
    "vera": (peft.VeraConfig, {"r": 4}),
    "adalora": (
        peft.AdaLoraConfig,
        {"init_r": 6, "target_r": 3, "lora_alpha": 5, "total_step": 100},
    ),
    "adalora, no alpha": (
        peft.AdaLoraConfig,
        {"init_r": 4, "target_r": 3, "lora_alpha": 0, "total_step": 100},
    ),
    "bd-lora": (peft.LoraConfig, {"r": 6, "lora_alpha": 9, "use_bdlora": BLOCKS}),
    "kasa": (
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6, "kasa_config": {"beta": 1e-4, "gamma": 1e-3}},
    ),
    "beft": (peft.BeftConfig, {}),
    "ln_tuning": (peft.LNTuningConfig, {}),
}
WITHOUT_BIAS = {"glora", "glora, vectors", "glora, numbers"}


@pytest.mark.parametrize("name", CASES)
def test_as_peft_computes_it(tmp_path, name):
    net = Net(bias=name not in WITHOUT_BIAS).eval()
    model = trained(net, *CASES[name])
    model.save_pretrained(tmp_path)
    ours, plan = loaded(net, tmp_path)
    assert {outcome.category for outcome in plan.outcomes.values()} == {PLACED}
    x = torch.randn(7, 24)
    with torch.no_grad():
        truth, base = model(x), net(x)
        error = (ours(x) - truth).norm() / (truth - base).norm()
    assert (truth - base).norm() > 1e-2 * base.norm()
    assert error < ERROR, f"{error:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_the_delta_as_factors_is_the_same(tmp_path, assert_close, name):
    """What is measured, merged and written is what is loaded."""
    net = Net(bias=name not in WITHOUT_BIAS).eval()
    trained(net, *CASES[name]).save_pretrained(tmp_path)
    _, plan = loaded(net, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for adapter in plan.adapters:
        mine = {role: tensors[key] for role, key in adapter.roles.items()}
        if not has_delta(adapter):
            with pytest.raises(AdapterError):
                factors(spec_of(adapter, mine), mine)
            continue
        delta = factors(spec_of(adapter, mine), mine)
        shape = (adapter.target.out, *adapter.target.inner)[
            : 1 if adapter.reaches == "bias" else None
        ]
        change = patched_weight(*adapter_of(adapter, mine, None), torch.zeros(shape), 1.0)
        assert_close(delta.dense().float(), change.reshape(delta.shape))
        assert rank_of(adapter, plan.shapes) == (None if delta.up is None else delta.down.shape[0])


class Odd(nn.Module):
    """What few kinds are made for: an embedding and a convolution."""

    def __init__(self):
        super().__init__()
        self.words, self.conv = nn.Embedding(40, 12), nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(self.words(x).unflatten(-1, (3, 4)).transpose(1, 2))


ODD = {
    "lora": (["words"], peft.LoraConfig, {"r": 4, "lora_alpha": 6}, {"lora_embedding"}),
    "lora, rank-stabilised": (
        ["words"],
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {"lora_embedding"},
    ),
    "dora": (
        ["words"],
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6, "use_dora": True},
        {"dora_embedding"},
    ),
    "both": (
        ["words", "conv"],
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6},
        {"lora_embedding", "lora"},
    ),
    "adalora": (
        ["conv"],
        peft.AdaLoraConfig,
        {"init_r": 6, "target_r": 3, "lora_alpha": 5, "total_step": 100},
        {"adalora"},
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_embeddings_and_convolutions(tmp_path, name):
    targets, configuration, settings, kinds = ODD[name]
    net = Odd().eval()
    model = trained(net, configuration, settings, targets)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    ours, plan = loaded(net, tmp_path)
    assert {adapter.kind for adapter in plan.adapters} == kinds
    assert {outcome.category for outcome in plan.outcomes.values()} == {PLACED}
    x = torch.randint(0, 40, (5, 7))
    with torch.no_grad():
        truth, base = model(x), net(x)
        error = (ours(x) - truth).norm() / (truth - base).norm()
    assert error < ERROR, f"{error:.1e}"


ADALORA = (peft.AdaLoraConfig, {"init_r": 6, "target_r": 3, "lora_alpha": 5, "total_step": 100})


def test_an_adalora_that_was_pruned_is_divided_by_the_rank_it_began_with(tmp_path):
    net = Net(bias=True).eval()
    model = trained(net, *ADALORA)
    keep = {
        "wide": [True, False] * 3,
        "square": [True] * 4 + [False] * 2,
        "narrow": [False] * 5 + [True],
    }
    for name, kept in keep.items():
        layer = getattr(model.base_model.model, name)
        with torch.no_grad():
            layer.lora_E["default"][[not one for one in kept]] = 0
    model.peft_config["default"].rank_pattern = {
        f"{name}.lora_E": kept for name, kept in keep.items()
    }
    model.save_pretrained(tmp_path)
    ours, plan = loaded(net, tmp_path)
    assert [adapter.rank for adapter in plan.adapters] == [1, 4, 3]
    x = torch.randn(7, 24)
    with torch.no_grad():
        truth, base = model(x), net(x)
        assert (ours(x) - truth).norm() < ERROR * (truth - base).norm()


def test_an_adalora_without_its_settings_is_refused(tmp_path):
    net = Net(bias=True)
    trained(net, *ADALORA).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    _, plan = loaded(net, tmp_path)
    assert not plan.adapters
    assert all(
        "put its adapter_config.json beside it" in outcome.reason
        for outcome in plan.outcomes.values()
    )


def test_half_of_a_bd_lora_is_no_lora_where_nothing_says_so(tmp_path):
    net = Net(bias=True)
    trained(net, *CASES["bd-lora"]).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    _, plan = loaded(net, tmp_path)
    assert [adapter.module.rpartition(".")[2] for adapter in plan.adapters] == ["narrow"]


@pytest.mark.parametrize("name", ["adalora", "bd-lora"])
def test_a_product_of_low_rank_is_written_as_a_lora(tmp_path, assert_close, name):
    net = Net(bias=True).eval()
    trained(net, *CASES[name]).save_pretrained(tmp_path)
    truth, plan = loaded(net, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file(
        {
            key: tensor.contiguous()
            for key, tensor in convert(plan, load_file(path), "comfyui").tensors().items()
        },
        path,
    )
    (tmp_path / "adapter_config.json").unlink()
    ours, plan = loaded(net, tmp_path)
    assert {adapter.kind for adapter in plan.adapters} <= {"lora", "diff"}
    for name, weight in truth.state_dict().items():
        assert_close(ours.state_dict()[name], weight, 1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_pair_that_stands_for_a_changed_base_is_not_written_as_a_lora(tmp_path, init):
    """At alpha = rank nothing but the settings tells it from one, and the new file would not have
    them.
    """
    net = Net(bias=True).eval()
    trained(
        net, peft.LoraConfig, {"r": 4, "lora_alpha": 4, "init_lora_weights": init}
    ).save_pretrained(tmp_path)
    _, plan = loaded(net, tmp_path)
    assert {adapter.kind for adapter in plan.adapters} == {init}
    with pytest.raises(Refused, match=f"(?i){init}"):
        convert(plan, load_file(tmp_path / "adapter_model.safetensors"), "comfyui")
    with pytest.raises(AdapterError, match="which a resized one does not keep"):
        resize_file(
            tmp_path / "adapter_model.safetensors",
            tmp_path / "new.safetensors",
            Ask(rank=2),
            site=plan.site,
        )


def test_a_mixer_stands_between_the_factors(tmp_path, assert_close):
    net, alpha = Net(bias=True), 6.0
    down, mixer, up = torch.randn(4, 36), torch.randn(4, 4), torch.randn(36, 4)
    names = {
        "lora_down.weight": down,
        "lora_mixer.weight": mixer,
        "lora_up.weight": up,
        "alpha": torch.tensor(alpha),
    }
    save_file(
        {f"{PREFIX}square.{name}": tensor for name, tensor in names.items()},
        tmp_path / "adapter_model.safetensors",
    )
    ours, plan = loaded(net, tmp_path, 0.5)
    assert [adapter.kind for adapter in plan.adapters] == ["moslora"]
    assert_close(ours.square.weight, net.square.weight + 0.5 * alpha / 4 * up @ mixer @ down, 1e-6)


@pytest.mark.parametrize("kind", ["adalora", "moslora"])
def test_what_stands_between_factors_is_resized_to_a_lora(tmp_path, assert_close, kind):
    net, path = Net(bias=True), tmp_path / "adapter_model.safetensors"
    if kind == "adalora":
        trained(net, *ADALORA).save_pretrained(tmp_path)
    else:
        tensors = {
            "lora_A.weight": torch.randn(4, 36),
            "lora_mixer.weight": torch.randn(4, 4),
            "lora_B.weight": torch.randn(36, 4),
        }
        save_file({f"{PREFIX}square.{name}": tensor for name, tensor in tensors.items()}, path)
    truth, plan = loaded(net, tmp_path)
    resize_file(path, tmp_path / "new.safetensors", Ask(rank=6), site=plan.site)
    (tmp_path / "new.safetensors").replace(path)
    (tmp_path / "adapter_config.json").unlink(missing_ok=True)
    ours, plan = loaded(net, tmp_path)
    assert {adapter.kind for adapter in plan.adapters} == {"lora"} and {
        outcome.category for outcome in plan.outcomes.values()
    } == {PLACED}
    for name, weight in truth.state_dict().items():
        assert_close(ours.state_dict()[name], weight, 1e-5)


def delora(folder):
    """A net, and the file of its DeLoRA."""
    net = Net(bias=True).eval()
    trained(net, *CASES["delora"]).save_pretrained(folder)
    return net, folder / "adapter_model.safetensors"


def test_a_delora_under_the_names_of_a_lora_is_none(tmp_path, assert_close):
    """Trainers after sd-scripts call its factors lora_down and lora_up, and write an alpha that
    says nothing.
    """
    net, path = delora(tmp_path)
    truth, _ = loaded(net, tmp_path)
    names = {"delora_A": "lora_down.weight", "delora_B": "lora_up.weight"}
    renamed = {}
    for key, tensor in load_file(path).items():
        module, _, role = key.rpartition(".")
        renamed[f"{module}.{names.get(role, role)}"] = tensor
        renamed[f"{module}.alpha"] = torch.tensor(1.0)
    save_file(renamed, path)
    ours, plan = loaded(net, tmp_path)
    assert {adapter.kind for adapter in plan.adapters} == {"delora"} and len(plan.adapters) == 3
    for name, weight in truth.state_dict().items():
        assert_close(ours.state_dict()[name], weight, 1e-6)


def test_a_delora_is_resized_to_a_lora(tmp_path, assert_close):
    net, path = delora(tmp_path)
    truth, plan = loaded(net, tmp_path)
    resize_file(path, tmp_path / "new.safetensors", Ask(rank=4), site=plan.site)
    (tmp_path / "new.safetensors").replace(path)
    (tmp_path / "adapter_config.json").unlink()
    ours, plan = loaded(net, tmp_path)
    assert {adapter.kind for adapter in plan.adapters} == {"lora"} and {
        outcome.category for outcome in plan.outcomes.values()
    } == {PLACED}
    for name, weight in truth.state_dict().items():
        assert_close(ours.state_dict()[name], weight, 1e-5)


@pytest.mark.parametrize("settings", [{"save_projection": False}])
def test_vera_without_its_matrices_is_refused(tmp_path, settings):
    net = Net(bias=True)
    trained(net, peft.VeraConfig, {"r": 4, **settings}).save_pretrained(tmp_path)
    _, plan = loaded(net, tmp_path)
    assert not plan.adapters
    assert {outcome.reason for outcome in plan.outcomes.values()} == {
        "VeRA: its base matrices are not in the file, so the change it makes cannot be rebuilt"
    }


def test_glora_of_a_layer_with_a_bias_is_refused(tmp_path):
    net = Net(bias=True)
    trained(net, peft.GloraConfig, {"r": 4}).save_pretrained(tmp_path)
    _, plan = loaded(net, tmp_path)
    assert not plan.adapters
    assert all("a product with the weight" in outcome.reason for outcome in plan.outcomes.values())
