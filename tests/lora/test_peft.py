"""Adapters that PEFT itself creates and saves, against the weights PEFT merges."""

import copy

import peft
import pytest
import torch
from lora_locksmith.adapters.spec import AdapterError, AdapterSpec
from lora_locksmith.lora.math.apply import patched_weight
from peft.tuners.boft.layer import BOFTLayer
from torch import nn

# PEFT warns of the CUDA extension that BOFT would like, and of biases it takes for broken shards.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SPELLINGS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_B.bias": "up_bias",
    "lora_magnitude_vector": "magnitude",
    "oft_R.weight": "oft_R",
}
LAYERS = {
    "linear": lambda: nn.Linear(24, 32),
    "square": lambda: nn.Linear(32, 32),
    "conv1x1": lambda: nn.Conv2d(24, 32, 1),
    "conv3x3": lambda: nn.Conv2d(24, 32, 3, padding=1),
    "conv1d": lambda: nn.Conv1d(24, 32, 3, padding=1),
    "conv3d": lambda: nn.Conv3d(8, 16, 3, padding=1),
}


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        return self.layer(inputs)


def train(layer, config):
    """(the PEFT model with random adapter weights, its saved tensors by canonical role)."""
    config.target_modules = ["layer"]
    model = peft.get_peft_model(Model(copy.deepcopy(layer)), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name or "boft_s" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif "base_layer" not in name:
                parameter.normal_(std=0.2)
    state = peft.get_peft_model_state_dict(model)
    names = {name: name.removeprefix("base_model.model.layer.") for name in state}
    return model, {
        SPELLINGS.get(short, short): state[name].detach().clone() for name, short in names.items()
    }


def merged(model):
    return model.merge_and_unload().layer


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("rank, alpha", [(4, 4), (4, 1), (8, 16)])
@pytest.mark.parametrize("layer_name", LAYERS)
def test_lora(assert_close, layer_name, rank, alpha, use_rslora):
    layer = LAYERS[layer_name]()
    model, tensors = train(layer, peft.LoraConfig(r=rank, lora_alpha=alpha, use_rslora=use_rslora))
    spec = (
        AdapterSpec("lora", scale=alpha / rank**0.5) if use_rslora else AdapterSpec("lora", alpha)
    )
    assert_close(patched_weight(spec, tensors, layer.weight.detach(), 1.0), merged(model).weight)


@pytest.mark.parametrize("rank, alpha", [(4, 4), (4, 1)])
@pytest.mark.parametrize("layer_name", LAYERS)
def test_dora(assert_close, layer_name, rank, alpha):
    layer = LAYERS[layer_name]()
    model, tensors = train(layer, peft.LoraConfig(r=rank, lora_alpha=alpha, use_dora=True))
    assert "magnitude" in tensors
    assert_close(
        patched_weight(AdapterSpec("lora", alpha), tensors, layer.weight.detach(), 1.0),
        merged(model).weight,
    )


def test_lora_of_a_grouped_convolution_is_refused():
    """PEFT's factors mix the groups, which no weight of the grouped layer can (PEFT itself refuses
    to merge them).
    """
    layer = nn.Conv2d(8, 16, 3, groups=2)
    _, tensors = train(layer, peft.LoraConfig(r=4, lora_alpha=2))
    with pytest.raises(AdapterError, match=r"up \[16, 2\], down \[4, 72\]"):
        patched_weight(AdapterSpec("lora", 2), tensors, layer.weight.detach(), 1.0)


@pytest.mark.parametrize("layer_name", ["linear", "conv3x3"])
def test_lora_bias(assert_close, layer_name):
    layer = LAYERS[layer_name]()
    model, tensors = train(layer, peft.LoraConfig(r=4, lora_alpha=2, lora_bias=True))
    truth, bias = merged(model), layer.bias.detach()
    assert_close(
        patched_weight(AdapterSpec("lora", 2), tensors, layer.weight.detach(), 1.0), truth.weight
    )
    assert_close(patched_weight(AdapterSpec("bias_lora", 2), tensors, bias, 1.0), truth.bias)
    only_bias = {"up_bias": tensors["up_bias"]}
    assert_close(
        patched_weight(AdapterSpec("bias_lora", scale=0.5), only_bias, bias, 1.0), truth.bias
    )


@pytest.mark.parametrize("use_effective_conv2d", [False, True])
@pytest.mark.parametrize("rank, alpha", [(4, 4), (4, 1)])
@pytest.mark.parametrize("layer_name", [name for name in LAYERS if name != "conv3d"])
def test_loha(assert_close, layer_name, rank, alpha, use_effective_conv2d):
    layer = LAYERS[layer_name]()
    config = peft.LoHaConfig(r=rank, alpha=alpha, use_effective_conv2d=use_effective_conv2d)
    model, tensors = train(layer, config)
    assert_close(
        patched_weight(AdapterSpec("loha", alpha), tensors, layer.weight.detach(), 1.0),
        merged(model).weight,
    )


LOKR = {
    "w1_w2ab": {"r": 2, "alpha": 1, "decompose_factor": 4},
    "both_decomposed": {"r": 1, "alpha": 3, "decompose_factor": 4, "decompose_both": True},
    "both_full": {"r": 64, "alpha": 16, "decompose_factor": 4},
    "effective_conv": {"r": 2, "alpha": 1, "decompose_factor": 4, "use_effective_conv2d": True},
}


# PEFT has no LoKr of a Conv3d; of a Conv1d it lays out a full w2 as no other tool does (kron of a
# matrix with three dimensions).
@pytest.mark.parametrize("settings", LOKR.values(), ids=LOKR)
@pytest.mark.parametrize("layer_name", ["linear", "square", "conv1x1", "conv3x3"])
def test_lokr(assert_close, layer_name, settings):
    """PEFT scales with alpha / r even when both factors are full, and r is only in the config then:
    hence `scale`.
    """
    layer = LAYERS[layer_name]()
    model, tensors = train(layer, peft.LoKrConfig(**settings))
    spec = AdapterSpec("lokr", scale=settings["alpha"] / settings["r"])
    assert_close(patched_weight(spec, tensors, layer.weight.detach(), 1.0), merged(model).weight)


@pytest.mark.parametrize("feedforward", [False, True])
@pytest.mark.parametrize("layer_name", [name for name in LAYERS if name != "conv1d"])
def test_ia3(assert_close, layer_name, feedforward):
    layer = LAYERS[layer_name]()
    model, tensors = train(
        layer, peft.IA3Config(feedforward_modules=["layer"] if feedforward else [])
    )
    truth = merged(model)
    assert_close(
        patched_weight(AdapterSpec("ia3_peft"), tensors, layer.weight.detach(), 1.0), truth.weight
    )
    told = AdapterSpec("ia3_peft", options=(("feedforward_modules", feedforward),))
    assert_close(patched_weight(told, tensors, layer.weight.detach(), 1.0), truth.weight)
    assert_close(patched_weight(told, tensors, layer.bias.detach(), 1.0), truth.bias)


OFT = {
    "neumann": {},
    "neumann_1": {"num_cayley_neumann_terms": 1},
    "neumann_2": {"num_cayley_neumann_terms": 2},
    "neumann_3": {"num_cayley_neumann_terms": 3},
    "neumann_4": {"num_cayley_neumann_terms": 4},
    "neumann_8": {"num_cayley_neumann_terms": 8},
    "exact": {"use_cayley_neumann": False},
    "shared": {"block_share": True},
    "constrained": {"coft": True, "eps": 0.05},
    "constrained_exact": {"coft": True, "eps": 0.5, "use_cayley_neumann": False},
}


@pytest.mark.parametrize("settings", OFT.values(), ids=OFT)
@pytest.mark.parametrize("layer_name", ["linear", "square", "conv1x1", "conv3x3"])
def test_oft(assert_close, layer_name, settings):
    layer = LAYERS[layer_name]()
    model, tensors = train(layer, peft.OFTConfig(oft_block_size=8, **settings))
    known = {"use_cayley_neumann", "num_cayley_neumann_terms", "coft", "eps"}
    options = tuple((name, value) for name, value in settings.items() if name in known)
    patched = patched_weight(
        AdapterSpec("oft_peft", options=options), tensors, layer.weight.detach(), 1.0
    )
    assert_close(patched, merged(model).weight)


@pytest.mark.parametrize("layer_name", ["linear", "square", "conv1x1", "conv3x3"])
def test_boft(assert_close, layer_name):
    layer = LAYERS[layer_name]()
    model, tensors = train(layer, peft.BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=1))
    assert_close(
        patched_weight(AdapterSpec("boft_peft"), tensors, layer.weight.detach(), 1.0),
        merged(model).weight,
    )


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("layer_name", ["linear", "conv1x1"])
def test_boft_of_several_stages(assert_close, layer_name, stages):
    """PEFT needs a CUDA extension to train these; its own permutations and Cayley map give the
    product it would merge.
    """
    layer = {"linear": nn.Linear(32, 12), "conv1x1": nn.Conv2d(32, 12, 1)}[layer_name]
    _, tensors = train(layer, peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1))
    library = BOFTLayer(layer)
    blocks = torch.randn(stages, 8, 4, 4) * 0.5
    product = torch.eye(32)
    for stage in range(stages):
        permutation = library.perm2mat(
            library.block_butterfly_perm(32, 8 // 2**stage, 2, stages - 1)
        )
        product = (
            permutation
            @ torch.block_diag(*library.cayley_batch(blocks[stage]))
            @ permutation.T
            @ product
        )
    scales = tensors["boft_s"].flatten()
    weight = layer.weight.detach()
    expected = ((weight.flatten(1) @ product.T) * scales[:, None]).reshape(weight.shape)
    assert_close(
        patched_weight(AdapterSpec("boft_peft"), {**tensors, "boft_R": blocks}, weight, 1.0),
        expected,
    )


@pytest.mark.parametrize("kernel", [1, 3])
def test_pefts_oft_on_a_kernel_trains_another_formula_than_it_merges(kernel):
    """The fact behind peft_oft_kernel.convention: without any rotation the layer changes."""
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, kernel, padding=kernel // 2))
    inputs = torch.randn(1, 4, 6, 6)
    before = model(inputs)
    config = peft.OFTConfig(target_modules=["0"], oft_block_size=4, r=0)
    after = peft.get_peft_model(model, config)(inputs)
    assert torch.allclose(before, after, atol=1e-5) == (kernel == 1)
