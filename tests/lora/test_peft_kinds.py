"""Adapter kinds that PEFT makes and saves, from the file to the weights, against PEFT's own
forward.
"""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from lora_locksmith.adapters.draws import first_places
from lora_locksmith.adapters.kinds import spectral
from lora_locksmith.adapters.kinds.peanut import ACTIVATIONS
from lora_locksmith.adapters.spec import AdapterError, AdapterSpec
from lora_locksmith.lora.from_plan import adapter_of, has_delta, spec_of
from lora_locksmith.lora.math.apply import patched_weight
from lora_locksmith.lora.math.low_rank import factors
from lora_locksmith.lora.merge.collect import rank_of
from lora_locksmith.lora.rewrite.convert import convert
from lora_locksmith.lora.rewrite.rename import Refused
from lora_locksmith.lora.rewrite.resize import RankTarget, resize_file
from lora_locksmith.planning.plan import BOOKKEEPING, PLACED, UNSUPPORTED, make_plan
from lora_locksmith.planning.target_model import TargetModel, encoder_networks
from peft.tuners.waveft.wavelet import Wavelet
from peft_nets import PREFIX, Net, loaded, trained
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

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
    "vb-lora": (peft.VBLoRAConfig, {"r": 4, "num_vectors": 16, "vector_length": 4, "topk": 3}),
    "vb-lora, the largest alone": (
        peft.VBLoRAConfig,
        {"r": 4, "num_vectors": 300, "vector_length": 4, "save_only_topk_weights": True},
    ),
    "vb-lora, the largest one": (
        peft.VBLoRAConfig,
        {"r": 4, "num_vectors": 16, "vector_length": 4, "topk": 1, "save_only_topk_weights": True},
    ),
    "pvera": (peft.PveraConfig, {"r": 4}),
    "randlora": (peft.RandLoraConfig, {"r": 5, "randlora_alpha": 300}),
    "randlora, sparse": (peft.RandLoraConfig, {"r": 4, "randlora_alpha": 300, "sparse": True}),
    "supertuning": (peft.SupertuningConfig, {"sparsity": 0.9}),
    "supertuning, the smallest": (peft.SupertuningConfig, {"sparsity": 0.9, "select_top": False}),
    "supertuning, with a lora": (
        peft.SupertuningConfig,
        {"sparsity": 0.9, "r": 4, "lora_alpha": 6},
    ),
    "deft": (peft.DeftConfig, {"r": 4}),
    "deft, orthogonal": (peft.DeftConfig, {"r": 4, "decomposition_method": "qr", "alpha": 6}),
    "deft, more ranks than outputs": (
        peft.DeftConfig,
        {"r": 16, "decomposition_method": "qr", "alpha": 6},
    ),
    "deft, para": (peft.DeftConfig, {"r": 4, "para": True}),
    "peanut": (peft.PeanutConfig, {"r": 4, "scaling": 3.0}),
    "peanut, deep": (peft.PeanutConfig, {"r": 4, "depth": 3, "act_fn": "gelu", "scaling": 3.0}),
    "fourierft": (peft.FourierFTConfig, {"n_frequency": 100, "scaling": 90.0}),
    "fourierft, another seed": (
        peft.FourierFTConfig,
        {"n_frequency": 50, "scaling": 90.0, "random_loc_seed": 2**33 + 5},
    ),
    "waveft": (peft.WaveFTConfig, {"n_frequency": 100}),
    "waveft, longer wavelets": (peft.WaveFTConfig, {"n_frequency": 100, "wavelet_family": "db4"}),
    "waveft, places alone": (peft.WaveFTConfig, {"n_frequency": 100, "use_idwt": False}),
    "waveft, places alone of any family": (
        peft.WaveFTConfig,
        {"n_frequency": 100, "use_idwt": False, "wavelet_family": "coif1"},
    ),
    "waveft, by size": (peft.WaveFTConfig, {"n_frequency": 100, "proportional_parameters": True}),
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
WITH_COPIES = {
    "randlora",
    "randlora, sparse",
}  # PEFT saves the shared matrices for the whole file, and again for each layer
WITHOUT_BIAS = {"glora", "glora, vectors", "glora, numbers"}


@pytest.mark.parametrize("name", CASES)
def test_as_peft_computes_it(tmp_path, name):
    net = Net(bias=name not in WITHOUT_BIAS).eval()
    model = trained(net, *CASES[name])
    model.save_pretrained(tmp_path)
    ours, plan = loaded(net, tmp_path)
    assert {outcome.category for outcome in plan.outcomes.values()} == {
        PLACED,
        *([BOOKKEEPING] if name in WITH_COPIES else []),
    }
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
            : 1 if adapter.parameter == "bias" else None
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
    "tokens": (
        ["words"],
        peft.TrainableTokensConfig,
        {"token_indices": [3, 0, 39, 17]},
        {"trainable_tokens"},
    ),
    "tokens beside a lora": (
        ["conv"],
        peft.LoraConfig,
        {"r": 4, "lora_alpha": 6, "trainable_token_indices": {"words": [3, 0, 39, 17]}},
        {"lora", "trainable_tokens"},
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
    with pytest.raises(AdapterError, match="which a resized file does not keep"):
        resize_file(
            tmp_path / "adapter_model.safetensors",
            tmp_path / "new.safetensors",
            RankTarget(rank=2),
            target_model=plan.target_model,
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
    resize_file(
        path, tmp_path / "new.safetensors", RankTarget(rank=6), target_model=plan.target_model
    )
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
    resize_file(
        path, tmp_path / "new.safetensors", RankTarget(rank=4), target_model=plan.target_model
    )
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


class Turned(nn.Module):
    """Layers that keep their weight as [in, out], as GPT-2 has them."""

    def __init__(self):
        super().__init__()
        self.wide, self.square = Conv1D(36, 24), Conv1D(36, 36)

    def forward(self, x):
        return self.square(torch.tanh(self.wide(x)))

    def straight(self):
        """The same with Linear layers."""
        net = copy.deepcopy(self)
        for name, layer in self.named_children():
            linear = nn.Linear(layer.nx, layer.nf)
            linear.weight.data, linear.bias.data = (
                layer.weight.data.T.clone(),
                layer.bias.data.clone(),
            )
            setattr(net, name, linear)
        return net


@pytest.mark.parametrize(
    "name",
    [
        "vb-lora",
        "pvera",
        "randlora",
        "deft",
        "deft, orthogonal",
        "fourierft",
        "waveft, longer wavelets",
    ],
)
def test_a_layer_that_keeps_its_weight_turned(tmp_path, name):
    """fan_in_fan_out says how the trainer kept the weight, not what the adapter is."""
    net = Turned().eval()
    configuration, settings = CASES[name]
    model = trained(net, configuration, {**settings, "fan_in_fan_out": True}, ("wide", "square"))
    model.save_pretrained(tmp_path)
    ours, plan = loaded(net.straight(), tmp_path)
    assert len(plan.adapters) == 2
    x = torch.randn(7, 24)
    with torch.no_grad():
        truth, base = model(x), net(x)
        assert (ours(x) - truth).norm() < ERROR * (truth - base).norm()


def spoilt_settings(folder, **changes):
    """adapter_config.json with other values; None: without the setting."""
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text("utf-8")) | changes
    path.write_text(
        json.dumps({name: value for name, value in settings.items() if value is not None}), "utf-8"
    )


NEEDED = {
    ("road 1", "group_size"): (None, 0, "x"),
    ("vb-lora", "topk"): (None, 0, "2.5"),
    ("randlora", "randlora_alpha"): (None, "x"),
    ("supertuning, with a lora", "lora_alpha"): (None, "x"),
    ("deft", "decomposition_method"): (None, "svd"),
    ("deft, para", "para"): (None, False),
    ("peanut", "scaling"): (None,),
    ("peanut", "act_fn"): (None, "prelu", "gelu_10"),
    ("peanut, deep", "depth"): (None, 2, 4),
    ("fourierft", "random_loc_seed"): (None, -1, 0.5),
    ("fourierft", "scaling"): (None, "nan"),
    ("waveft", "random_loc_seed"): (None,),
    ("waveft", "use_idwt"): (None, "yes"),
    ("waveft", "wavelet_family"): (None, "sym4", "coif1"),
}


@pytest.mark.parametrize(("name", "setting"), NEEDED)
def test_without_a_setting_that_it_needs_it_is_refused_by_name(tmp_path, name, setting):
    net = Net(bias=True)
    trained(net, *CASES[name]).save_pretrained(tmp_path)
    assert loaded(net, tmp_path)[1].adapters
    for value in NEEDED[name, setting]:
        spoilt_settings(tmp_path, **{setting: value})
        _, plan = loaded(net, tmp_path)
        assert not plan.adapters
        reasons = {
            outcome.reason for outcome in plan.outcomes.values() if outcome.category == UNSUPPORTED
        }
        assert reasons and all(
            setting in reason or "its settings say" in reason for reason in reasons
        )


SHARED = {
    "pvera": ({"save_projection": False}, "base matrices are not in the file"),
    "randlora": ({"save_projection": False}, "base matrices are not in the file"),
    "supertuning": (
        {"save_precomputed_indices": False},
        "the file does not say which numbers it changes",
    ),
    "supertuning, with a lora": (
        {"save_precomputed_indices": False},
        "the file does not say which numbers it changes",
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_what_the_file_does_not_hold_is_refused_by_name(tmp_path, name):
    net, (configuration, settings) = Net(bias=True), CASES[name]
    lacking, reason = SHARED[name]
    trained(net, configuration, {**settings, **lacking}).save_pretrained(tmp_path)
    _, plan = loaded(net, tmp_path)
    assert not plan.adapters and all(reason in outcome.reason for outcome in plan.outcomes.values())


def test_a_value_that_is_not_computed_is_named_with_those_that_are(tmp_path):
    net = Net(bias=True)
    trained(net, peft.WaveFTConfig, {"n_frequency": 9, "wavelet_family": "sym4"}).save_pretrained(
        tmp_path
    )
    _, plan = loaded(net, tmp_path)
    (reason,) = {outcome.reason for outcome in plan.outcomes.values()}
    assert (
        'its wavelet_family is "sym4", not one of db1, db2' in reason
        and "merge it in PEFT" in reason
    )


def test_a_vb_lora_without_its_bank_is_refused(tmp_path):
    net, path = Net(bias=True), tmp_path / "adapter_model.safetensors"
    trained(net, *CASES["vb-lora"]).save_pretrained(tmp_path)
    save_file({key: tensor for key, tensor in load_file(path).items() if "bank" not in key}, path)
    _, plan = loaded(net, tmp_path)
    assert not plan.adapters and all(
        "vector bank is not in the file" in outcome.reason for outcome in plan.outcomes.values()
    )


def test_a_pvera_that_draws_is_its_mean_and_a_caution(tmp_path):
    net = Net(bias=True).eval()
    model = trained(net, peft.PveraConfig, {"r": 4, "sample_at_inference": True})
    model.save_pretrained(tmp_path)
    ours, plan = loaded(net, tmp_path)
    assert any("sample_at_inference" in caution for caution in plan.cautions)
    merged, x = model.merge_and_unload(), torch.randn(7, 24)
    with torch.no_grad():
        assert (ours(x) - merged(x)).norm() < ERROR * (merged(x) - net(x)).norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_those_of_transformers(activation):
    x = torch.linspace(-8, 8, 400)
    torch.testing.assert_close(
        ACTIVATIONS[activation](x), ACT2FN[activation](x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("order", range(1, 11))
def test_wavelets_are_those_of_peft(order):
    theirs = Wavelet(f"db{order}")
    low, high = spectral._filters(order)
    torch.testing.assert_close(torch.tensor(low), torch.tensor(theirs.rec_lo), rtol=0, atol=2e-6)
    torch.testing.assert_close(torch.tensor(high), torch.tensor(theirs.rec_hi), rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", [0, 777, 2**32 + 5, 2**53 - 1])
@pytest.mark.parametrize("total", [1, 2, 3, 700, 99_999, 1_500_000])
def test_places_are_drawn_as_torch_draws_them(seed, total):
    truth = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    for count in {0, 1, min(total, 300), min(total, 1000)}:
        assert first_places(seed, total, count) == tuple(truth[:count].tolist())


def test_many_places_are_drawn_at_once_and_alike(monkeypatch):
    spec = AdapterSpec(
        "waveft", options=(("random_loc_seed", 5), ("scaling", 2.0), ("use_idwt", False))
    )
    tensors, weight = {"wave_spectrum": torch.randn(200)}, torch.randn(32, 24)
    one_by_one = patched_weight(spec, tensors, weight, 1.0)
    monkeypatch.setattr(spectral, "MAX_BY_ONE", 100)
    assert torch.equal(patched_weight(spec, tensors, weight, 1.0), one_by_one)


@pytest.mark.parametrize(("total", "count"), [(3, 4), (3, -1), (2**28, 1)])
def test_places_that_are_not_drawn(total, count):
    with pytest.raises(ValueError, match="cannot be drawn"):
        first_places(1, total, count)


# Trainable tokens

TOKENS = [3, 0, 39, 17]


def with_tokens(folder, settings=None):
    net = Odd().eval()
    model = trained(net, peft.TrainableTokensConfig, {"token_indices": TOKENS}, ["words"])
    model.save_pretrained(folder, save_embedding_layers=False)
    if settings:
        spoilt_settings(folder, **settings)
    return net, model


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7, 2.0])
def test_rows_of_tokens_at_a_strength(tmp_path, assert_close, strength):
    net, model = with_tokens(tmp_path)
    ours, _ = loaded(net, tmp_path, strength)
    full = model.base_model.model.words.get_merged_weights(["default"])
    assert_close(ours.words.weight, torch.lerp(net.words.weight, full, strength), 1e-6)
    others = [row for row in range(40) if row not in TOKENS]
    assert torch.equal(ours.words.weight[others], net.words.weight[others])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"token_indices": None},
            "no readable PEFT setting gives its token_indices or trainable_token_indices",
        ),
        ({"token_indices": [1, 2, 3]}, "list 3 tokens, and the file holds"),
        ({"token_indices": [1, 2, 3, 3]}, "list a token twice"),
        (
            {"token_indices": {"head": TOKENS}},
            "no readable PEFT setting gives its token_indices or trainable_token_indices",
        ),
        (
            {"token_indices": [1, 2, 3, -4]},
            "no readable PEFT setting gives its token_indices or trainable_token_indices",
        ),
    ],
)
def test_rows_without_their_tokens_are_refused(tmp_path, settings, reason):
    net, _ = with_tokens(tmp_path, settings)
    _, plan = loaded(net, tmp_path)
    assert not plan.adapters and all(reason in outcome.reason for outcome in plan.outcomes.values())


def test_a_token_that_the_model_has_not_is_named(tmp_path):
    net, _ = with_tokens(tmp_path, {"token_indices": [1, 2, 3, 40]})
    with pytest.raises(AdapterError, match="no row for the token 40, only 40"):
        loaded(net, tmp_path)


def test_tokens_of_a_text_encoder_in_the_settings_of_its_component():
    """As diffusers packs them beside a LoRA of the denoiser."""
    names = {
        "embeddings.token_embedding": (49408, 768),
        "encoder.layers.0.self_attn.q_proj": (768, 768),
    }
    target_model = TargetModel(
        encoder_networks(
            {f"clip_l.transformer.text_model.{name}.weight": shape for name, shape in names.items()}
        )
    )
    key = "text_encoder.text_model.embeddings.token_embedding.token_adapter.trainable_tokens_delta"
    packed = {
        "lora_adapter_metadata": json.dumps(
            {"text_encoder.trainable_token_indices": {"token_embedding": [7, 9]}}
        )
    }
    (adapter,) = make_plan({key: (2, 768)}, packed, target_model).adapters
    assert adapter.kind == "trainable_tokens" and adapter.options == (
        ("trainable_token_indices", (7, 9)),
    )
