"""Adapters that lycoris-lora itself creates and saves, against the weights and outputs lycoris-lora
computes from them.
"""

import pytest
import torch
from lora_locksmith.adapters.spec import AdapterError, AdapterSpec
from lora_locksmith.lora.math.apply import patched_weight
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from lycoris.modules.tlora import TLoraModule
from torch import nn

ROLES = {
    "lora_up.weight": "up",
    "lora_down.weight": "down",
    "lora_mid.weight": "mid",
    "weight": "ia3_weight",
}
LAYERS = {
    "linear": lambda: nn.Linear(24, 32),
    "square": lambda: nn.Linear(32, 32, bias=False),
    "conv1x1": lambda: nn.Conv2d(24, 32, 1),
    "conv3x3": lambda: nn.Conv2d(24, 32, 3, padding=1),
    "conv1d": lambda: nn.Conv1d(24, 32, 3, padding=1),
    "conv3d": lambda: nn.Conv3d(16, 24, 3, padding=1),
}
INPUTS = {
    "linear": (5, 24),
    "square": (5, 32),
    "conv1x1": (2, 24, 4, 4),
    "conv3x3": (2, 24, 4, 4),
    "conv1d": (2, 24, 6),
    "conv3d": (2, 16, 3, 3, 3),
}


def train(module_class, layer, **settings):
    """A LyCORIS module with random weights everywhere, as after training."""
    module = module_class("lycoris_x", layer, 1.0, **settings)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name == "dora_scale" or name == "rescale":
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif name == "scalar":
                parameter.fill_(0.5)
            elif not name.startswith("org_module"):
                parameter.normal_(std=0.3)
    return module.eval()


def saved(module):
    """(tensors by canonical role, alpha) of what the module saves."""
    state = {
        ROLES.get(name, name): tensor.detach().clone()
        for name, tensor in module.state_dict().items()
    }
    alpha = state.pop("alpha", None)
    return state, None if alpha is None else float(alpha)


def outputs(layer_name, layer, weight):
    """The layer's outputs with another weight, on the layer's fixed input."""
    inputs = torch.randn(INPUTS[layer_name], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return torch.func.functional_call(layer, {"weight": weight}, inputs), inputs


def assert_forward_agrees(assert_close, module, layer_name, layer, patched):
    """LyCORIS' own forward at multiplier 1 against the layer with our weight."""
    ours, inputs = outputs(layer_name, layer, patched)
    module.apply_to()
    with torch.no_grad():
        theirs = layer(inputs)
    module.restore()
    assert_close(ours, theirs)


@pytest.mark.parametrize("dora", [None, True, False], ids=["plain", "dora_out", "dora_in"])
@pytest.mark.parametrize("rank, alpha", [(4, 4), (4, 1), (8, 2.5)])
@pytest.mark.parametrize("layer_name", LAYERS)
def test_locon(assert_close, layer_name, rank, alpha, dora):
    layer = LAYERS[layer_name]()
    module = train(
        LoConModule,
        layer,
        lora_dim=rank,
        alpha=alpha,
        weight_decompose=dora is not None,
        wd_on_out=bool(dora),
    )
    tensors, saved_alpha = saved(module)
    patched = patched_weight(AdapterSpec("lora", saved_alpha), tensors, layer.weight.detach(), 1.0)
    assert_close(patched, module.get_merged_weight(1)[0])
    assert_forward_agrees(assert_close, module, layer_name, layer, patched)


@pytest.mark.parametrize("strength", [0.5, -0.7, 2.0, 0.0])
@pytest.mark.parametrize("tucker", [False, True])
def test_locon_strength(assert_close, tucker, strength):
    layer = LAYERS["conv3x3"]()
    module = train(LoConModule, layer, lora_dim=4, alpha=2, use_tucker=tucker)
    tensors, alpha = saved(module)
    assert ("mid" in tensors) == tucker
    patched = patched_weight(AdapterSpec("lora", alpha), tensors, layer.weight.detach(), strength)
    assert_close(patched, module.get_merged_weight(strength)[0])


@pytest.mark.parametrize(
    "settings",
    [{"use_scalar": True}, {"rs_lora": True}, {"use_tucker": True, "weight_decompose": True}],
)
def test_locon_variants(assert_close, settings):
    layer = LAYERS["conv3x3"]()
    module = train(LoConModule, layer, lora_dim=4, alpha=2, **settings)
    tensors, alpha = saved(module)
    patched = patched_weight(AdapterSpec("lora", alpha), tensors, layer.weight.detach(), 1.0)
    assert_close(patched, module.get_merged_weight(1)[0])


def test_a_scalar_that_was_not_folded_counts(assert_close):
    layer = LAYERS["linear"]()
    module = train(LoConModule, layer, lora_dim=4, alpha=2, use_scalar=True)
    tensors, alpha = saved(module)
    unfolded = {**tensors, "up": module.lora_up.weight.detach(), "scalar": module.scalar.detach()}
    patched = patched_weight(AdapterSpec("lora", alpha), unfolded, layer.weight.detach(), 1.0)
    assert_close(patched, module.get_merged_weight(1)[0])


# get_merged_weight of LoHa and LoKr scales twice (get_weight already has the scale, get_diff_weight
# multiplies once more), so the truth is what their forward adds: get_weight(shape) * scalar, and
# the forward itself.
def true_merge(module, layer):
    merged = (
        layer.weight.detach() + module.get_weight(module.shape).detach() * module.scalar.detach()
    )
    return module.apply_weight_decompose(merged) if module.wd else merged


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_tucker": True},
        {"weight_decompose": True},
        {"weight_decompose": True, "wd_on_out": False},
        {"use_scalar": True},
    ],
)
@pytest.mark.parametrize("rank, alpha", [(4, 4), (4, 1), (8, 2.5)])
@pytest.mark.parametrize("layer_name", LAYERS)
def test_loha(assert_close, layer_name, rank, alpha, settings):
    layer = LAYERS[layer_name]()
    module = train(LohaModule, layer, lora_dim=rank, alpha=alpha, **settings)
    tensors, saved_alpha = saved(module)
    patched = patched_weight(AdapterSpec("loha", saved_alpha), tensors, layer.weight.detach(), 1.0)
    assert_close(patched, true_merge(module, layer))
    assert_forward_agrees(assert_close, module, layer_name, layer, patched)


LOKR = {
    "w1_w2ab": {"lora_dim": 2, "alpha": 1, "factor": 4},
    "both_decomposed": {"lora_dim": 1, "alpha": 3, "factor": 4, "decompose_both": True},
    "w2_full": {"lora_dim": 10000, "alpha": 1, "factor": 4},
    "full_matrix": {"lora_dim": 2, "alpha": 1, "factor": 4, "full_matrix": True},
    "tucker": {"lora_dim": 2, "alpha": 1, "factor": 4, "use_tucker": True},
    "unbalanced": {"lora_dim": 2, "alpha": 1, "factor": 2, "unbalanced_factorization": True},
    "scalar": {"lora_dim": 2, "alpha": 1, "factor": 4, "use_scalar": True},
    "rs_lora": {"lora_dim": 2, "alpha": 1, "factor": 4, "rs_lora": True},
    "dora_out": {"lora_dim": 2, "alpha": 1, "factor": 4, "weight_decompose": True},
    "dora_in": {
        "lora_dim": 2,
        "alpha": 1,
        "factor": 4,
        "weight_decompose": True,
        "wd_on_out": False,
    },
}


@pytest.mark.parametrize("settings", LOKR.values(), ids=LOKR)
@pytest.mark.parametrize("layer_name", LAYERS)
def test_lokr(assert_close, layer_name, settings):
    layer = LAYERS[layer_name]()
    module = train(LokrModule, layer, **settings)
    tensors, alpha = saved(module)
    patched = patched_weight(AdapterSpec("lokr", alpha), tensors, layer.weight.detach(), 1.0)
    assert_close(patched, true_merge(module, layer))
    assert_forward_agrees(assert_close, module, layer_name, layer, patched)


def test_lokr_ignores_the_alpha_of_two_full_factors(assert_close):
    layer = LAYERS["linear"]()
    module = train(LokrModule, layer, **LOKR["full_matrix"])
    tensors, _ = saved(module)
    for alpha in (None, 1.0, 1e10):
        assert_close(
            patched_weight(AdapterSpec("lokr", alpha), tensors, layer.weight.detach(), 1.0),
            true_merge(module, layer),
        )


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7])
@pytest.mark.parametrize("layer_name", LAYERS)
def test_glora(assert_close, layer_name, strength):
    layer = LAYERS[layer_name]()
    module = train(GLoRAModule, layer, lora_dim=4, alpha=2)
    tensors, alpha = saved(module)
    tensors = {role.removesuffix(".weight"): tensor for role, tensor in tensors.items()}
    patched = patched_weight(AdapterSpec("glora", alpha), tensors, layer.weight.detach(), strength)
    assert_close(patched, module.get_merged_weight(strength)[0])
    older = {"a1": tensors["a2"], "a2": tensors["a1"], "b1": tensors["b2"], "b2": tensors["b1"]}
    assert_close(
        patched_weight(AdapterSpec("glora", alpha), older, layer.weight.detach(), strength), patched
    )


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.7])
@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("layer_name", LAYERS)
def test_ia3(assert_close, layer_name, on_input, strength):
    layer = LAYERS[layer_name]()
    module = train(IA3Module, layer, train_on_input=on_input)
    tensors, _ = saved(module)
    merged = module.get_merged_weight(strength)[0]
    assert_close(
        patched_weight(AdapterSpec("ia3"), tensors, layer.weight.detach(), strength), merged
    )
    told = AdapterSpec("ia3", options=(("on_input", on_input),))
    assert_close(
        patched_weight(told, {"weight": tensors["ia3_weight"]}, layer.weight.detach(), strength),
        merged,
    )


@pytest.mark.parametrize("constraint", [0, 1e-3, 10.0])
@pytest.mark.parametrize("layer_name", LAYERS)
def test_diag_oft(assert_close, layer_name, constraint):
    layer = LAYERS[layer_name]()
    module = train(DiagOFTModule, layer, lora_dim=4, constraint=constraint)
    tensors, alpha = saved(module)
    for strength in (1.0, 0.5, -0.7, 0.0):
        patched = patched_weight(
            AdapterSpec("oft", alpha), tensors, layer.weight.detach(), strength
        )
        assert_close(patched, module.get_merged_weight(strength)[0])


@pytest.mark.parametrize("constraint", [0, 1e-3, 10.0])
@pytest.mark.parametrize("layer_name", [name for name in LAYERS if name != "conv3d"])
def test_boft(assert_close, layer_name, constraint):
    layer = LAYERS[layer_name]()
    module = train(ButterflyOFTModule, layer, lora_dim=8, constraint=constraint)
    tensors, alpha = saved(module)
    assert tensors["oft_blocks"].shape[0] > 1
    for strength in (1.0, 0.5, -0.7, 0.0):
        patched = patched_weight(
            AdapterSpec("boft", alpha), tensors, layer.weight.detach(), strength
        )
        assert_close(patched, module.get_merged_weight(strength)[0])


@pytest.mark.parametrize(
    "kind, module_class", [("oft", DiagOFTModule), ("boft", ButterflyOFTModule)]
)
@pytest.mark.parametrize("layer_name", ["linear", "conv3x3"])
def test_rescale(assert_close, layer_name, kind, module_class):
    layer = LAYERS[layer_name]()
    module = train(module_class, layer, lora_dim=8, rescaled=True)
    tensors, alpha = saved(module)
    spec, weight = AdapterSpec(kind, alpha), layer.weight.detach()
    patched = patched_weight(spec, tensors, weight, 1.0)
    assert_close(patched, module.get_merged_weight(1)[0])
    assert_forward_agrees(assert_close, module, layer_name, layer, patched)
    # LyCORIS keeps rescale at full force at every multiplier, 0 included; ours fades to the
    # untouched weight.
    assert_close(patched_weight(spec, tensors, weight, 0.0), weight)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_full(assert_close, strength):
    layer = LAYERS["conv3x3"]()
    module = train(FullModule, layer)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    merged_weight, merged_bias = (tensor.detach() for tensor in module.get_merged_weight(strength))
    module.apply_to()
    tensors, _ = saved(module)
    assert_close(
        patched_weight(AdapterSpec("diff"), {"diff": tensors["diff"]}, weight, strength),
        merged_weight,
    )
    assert_close(
        patched_weight(AdapterSpec("diff"), {"diff_b": tensors["diff_b"]}, bias, strength),
        merged_bias,
    )


@pytest.mark.parametrize("layer", [nn.LayerNorm(16), nn.GroupNorm(4, 16)], ids=["layer", "group"])
def test_norm(assert_close, layer):
    module = train(NormModule, layer)
    tensors, _ = saved(module)
    weight, bias = (tensor.detach() for tensor in module.get_merged_weight(0.5))
    assert_close(
        patched_weight(
            AdapterSpec("norm"), {"w_norm": tensors["w_norm"]}, layer.weight.detach(), 0.5
        ),
        weight,
    )
    assert_close(
        patched_weight(
            AdapterSpec("norm"), {"b_norm": tensors["b_norm"]}, layer.bias.detach(), 0.5
        ),
        bias,
    )


TLORA_ROLES = {
    "q_layer.weight": "tlora_q",
    "p_layer.weight": "tlora_p",
    "lambda_layer": "tlora_lambda",
}
TLORA_BASE = {
    "base_q": "tlora_base_q",
    "base_p": "tlora_base_p",
    "base_lambda": "tlora_base_lambda",
}


def t_lora(layer, **settings):
    """A T-LoRA that has moved a little from where it began."""
    module = TLoraModule("lycoris_x", layer, 1.0, lora_dim=4, alpha=2, **settings)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("org_module"):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return module.eval()


@pytest.mark.parametrize("block", ["principal", "middle", "last"])
@pytest.mark.parametrize("layer_name", ["linear", "square", "conv1x1", "wide"])
def test_t_lora(assert_close, layer_name, block):
    """What it began as is found among the singular parts of the weight, whichever it was."""
    layer = nn.Linear(32, 24) if layer_name == "wide" else LAYERS[layer_name]()
    module = t_lora(layer, sig_type=block)
    tensors = {
        TLORA_ROLES[name]: tensor.detach()
        for name, tensor in module.state_dict().items()
        if name in TLORA_ROLES
    }
    for strength in (1.0, 0.5, -0.7, 2.0):
        change = (
            patched_weight(AdapterSpec("tlora", 2.0), tensors, layer.weight.detach(), strength)
            - layer.weight.detach()
        )
        truth = module.get_diff_weight(strength, layer.weight.shape)[0].detach()
        assert_close(change, truth, 2e-5)


@pytest.mark.parametrize("start", ["random", "another model"])
def test_a_t_lora_that_began_elsewhere_is_refused(start):
    layer = nn.Linear(96, 64)
    module = t_lora(layer, use_data_init=start != "random")
    tensors = {
        TLORA_ROLES[name]: tensor.detach()
        for name, tensor in module.state_dict().items()
        if name in TLORA_ROLES
    }
    weight = layer.weight.detach() if start == "random" else nn.Linear(96, 64).weight.detach()
    with pytest.raises(AdapterError, match="not the singular vectors of this model's weight"):
        patched_weight(AdapterSpec("tlora", 2.0), tensors, weight, 1.0)


def test_a_t_lora_that_says_what_it_began_as_needs_no_base(assert_close):
    layer = nn.Linear(24, 32)
    module = t_lora(layer, use_data_init=False)
    tensors = {
        TLORA_ROLES[name]: tensor.detach()
        for name, tensor in module.state_dict().items()
        if name in TLORA_ROLES
    }
    tensors |= {role: getattr(module, name).detach() for name, role in TLORA_BASE.items()}
    change = patched_weight(AdapterSpec("tlora_with_base", 2.0), tensors, torch.zeros(32, 24), 1.0)
    assert_close(change, module.get_diff_weight(1.0)[0].detach(), 1e-6)
