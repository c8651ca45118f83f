"""What is written for a trainer is read back by the trainer's own code: the outputs of its layers
are those of the source.
"""

import copy

import pytest
import torch
from lora_locksmith.lora.from_plan import adapter_of
from lora_locksmith.lora.io.writer import write_as
from lora_locksmith.lora.math.apply import patched_weight
from lora_locksmith.lora.rewrite.rename import Refused
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
H, CLOSE = 128, 2e-4
NATIVE, DIFFUSERS = (
    "double_blocks_0_img_mlp_0",
    "transformer_blocks.0.ff.net.0.proj",
)  # one layer, [4H, H], by two names
WEIGHT = "diffusion_model.double_blocks.0.img_mlp.0.weight"


def some(*shape):
    return torch.randn(shape) * 0.2


PAIR = {"lora_down.weight": (4, H), "lora_up.weight": (4 * H, 4)}
LOHA = {"hada_w1_a": (4 * H, 3), "hada_w1_b": (3, H), "hada_w2_a": (4 * H, 3), "hada_w2_b": (3, H)}
LOKR = {"lokr_w1": (16, 8), "lokr_w2_a": (32, 2), "lokr_w2_b": (2, 16)}
BOTH = {"lokr_w1_a": (16, 2), "lokr_w1_b": (2, 8), "lokr_w2_a": (32, 2), "lokr_w2_b": (2, 16)}
GLORA = {"a1.weight": (H, 4), "a2.weight": (4, H), "b1.weight": (4 * H, 4), "b2.weight": (4, H)}
PEFT = {"peft_type": "LOHA", "r": 3, "alpha": 5}
# shapes of the tensors, numbers among them, and PEFT's settings beside the file
SOURCES = {
    "LoRA": (PAIR, {"alpha": 3.0}, None),
    "LoRA without alpha": (PAIR, {}, None),
    "LoRA with rslora in its settings": (
        PAIR,
        {},
        {"peft_type": "LORA", "r": 4, "lora_alpha": 3, "use_rslora": True},
    ),
    "LoRA with a scalar": (PAIR, {"alpha": 3.0, "scalar": 0.4}, None),
    "DoRA": (PAIR | {"dora_scale": (4 * H, 1)}, {"alpha": 3.0}, None),
    "LoHa": (LOHA, {"alpha": 2.0}, None),
    "LoHa without alpha": (LOHA, {}, None),
    "LoHa of PEFT": (LOHA, {}, PEFT),
    "LoHa with a scalar": (LOHA, {"alpha": 2.0, "scalar": 0.4}, None),
    "DoRA on LoHa": (LOHA | {"dora_scale": (4 * H, 1)}, {}, None),
    "LoKr": (LOKR, {"alpha": 5.0}, None),
    "LoKr without alpha": (LOKR, {}, None),
    "LoKr of PEFT": (LOKR, {}, PEFT | {"peft_type": "LOKR", "exclude_modules": None}),
    "LoKr of four factors": (BOTH, {}, None),
    "LoKr of whole factors": ({"lokr_w1": (16, 8), "lokr_w2": (32, 16)}, {}, None),
    "LoKr of whole factors by PEFT": (
        {"lokr_w1": (16, 8), "lokr_w2": (32, 16)},
        {},
        PEFT | {"peft_type": "LOKR", "exclude_modules": None},
    ),
    "GLoRA": (GLORA, {"alpha": 2.0}, None),
    "GLoRA without alpha": (GLORA, {}, None),
    "OFT": ({"oft_blocks": (32, 16, 16)}, {"alpha": 0.001}, None),
    "OFT without alpha": ({"oft_blocks": (32, 16, 16), "rescale": (4 * H, 1)}, {}, None),
    "BOFT without alpha": ({"oft_blocks": (5, 16, 32, 32)}, {}, None),
    "full difference": ({"diff": (4 * H, H), "diff_b": (4 * H,)}, {}, None),
}


@pytest.fixture(scope="module")
def target_model(both):
    weights = {name: tuple(weight.shape) for name, weight in both.native.model.state_dict().items()}
    return TargetModel(
        [
            denoiser_network(
                {
                    name: shape
                    for name, shape in weights.items()
                    if name.startswith("diffusion_model.")
                }
            )
        ]
    )


def source(target_model, shapes, numbers, config):
    torch.manual_seed(4)
    tensors = {f"lora_unet_{NATIVE}.{role}": some(*shape) for role, shape in shapes.items()}
    tensors |= {
        f"lora_unet_{NATIVE}.{role}": torch.tensor(number) for role, number in numbers.items()
    }
    for name, tensor in tensors.items():
        if name.endswith(("dora_scale", "rescale")):
            tensor.add_(1.0)
    return (
        make_plan(
            {name: tuple(tensor.shape) for name, tensor in tensors.items()},
            {},
            target_model,
            config_beside=config,
        ),
        tensors,
    )


def truth(plan, tensors, layer):
    """(weight, bias) that the source makes of the layer."""
    made = {"weight": layer.weight.detach(), "bias": layer.bias.detach()}
    for adapter in plan.adapters:
        spec, roles = adapter_of(
            adapter, {role: tensors[key] for role, key in adapter.roles.items()}, None
        )
        made[adapter.parameter] = patched_weight(spec, roles, made[adapter.parameter], 1.0)
    return made["weight"], made["bias"]


def assert_outputs_agree(layer, after, expected):
    """The error of the layer's outputs, as a part of what the adapter changes in them."""
    x = torch.randn(7, H, generator=torch.Generator().manual_seed(1))
    before, should = layer(x), torch.nn.functional.linear(x, *expected)
    assert (should - before).norm() > 1e-2 * before.norm()
    error = (after(x) - should).norm() / (should - before).norm()
    assert error < CLOSE, f"{error:.1e}"


def read_by_lycoris(path, twin):
    """The twin under LyCORIS' own reader of its files."""
    from lycoris import create_lycoris_from_weights

    network, _ = create_lycoris_from_weights(1.0, str(path), twin)
    assert len(network.loras) == 1
    network.apply_to()
    network.loras[0].eval()
    return network


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_lycoris_reads_what_is_written_for_it(both, target_model, tmp_path, name):
    plan, tensors = source(target_model, *SOURCES[name])
    written = write_as(plan, tensors, tmp_path / "new.safetensors", "lycoris")
    twin = copy.deepcopy(both.twin)
    layer = both.twin.get_submodule(DIFFUSERS)
    network = read_by_lycoris(written.path, twin)
    assert network is not None and {key.partition(".")[0] for key in load_file(written.path)} == {
        "lycoris_" + DIFFUSERS.replace(".", "_")
    }
    assert_outputs_agree(layer, twin.get_submodule(DIFFUSERS), truth(plan, tensors, layer))


@pytest.mark.parametrize("role", ["diff_b", "lora_up.bias"])
def test_a_bias_that_lycoris_would_leave_out_is_refused(both, target_model, tmp_path, role):
    plan, tensors = source(target_model, PAIR | {role: (4 * H,)}, {"alpha": 3.0}, None)
    with pytest.raises(Refused, match="lycoris reads diff_b only beside diff"):
        write_as(plan, tensors, tmp_path / "new.safetensors", "lycoris")
    assert not list(tmp_path.iterdir())


def read_by_huggingface(written, twin):
    """A copy of the twin under PEFT's own reader, or that of diffusers."""
    from peft import PeftModel

    twin = copy.deepcopy(twin)
    if written.dialect == "peft":
        return PeftModel.from_pretrained(twin, written.path.parent).base_model.model.eval()
    twin.load_lora_adapter(
        str(written.path.parent), weight_name=written.path.name, prefix="transformer"
    )
    return twin.eval()


LOADED_BY_DIFFUSERS = [name for name in SOURCES if name.startswith("LoRA")] + [
    "DoRA",
    "LoKr of four factors",
]


@pytest.mark.parametrize("dialect", ["diffusers", "simpletuner", "onetrainer_diffusers", "peft"])
@pytest.mark.parametrize("name", LOADED_BY_DIFFUSERS)
@torch.no_grad()
def test_diffusers_and_peft_read_what_is_written_for_them(
    both, target_model, tmp_path, name, dialect
):
    plan, tensors = source(target_model, *SOURCES[name])
    written = write_as(plan, tensors, tmp_path / "new.safetensors", dialect)
    layer = both.twin.get_submodule(DIFFUSERS)
    assert_outputs_agree(
        layer,
        read_by_huggingface(written, both.twin).get_submodule(DIFFUSERS),
        truth(plan, tensors, layer),
    )


@pytest.mark.parametrize("dialect", ["peft", "diffusers"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
@torch.no_grad()
def test_what_training_took_off_the_base_is_taken_off_again(
    both, target_model, tmp_path, init, dialect
):
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 3, "init_lora_weights": init}
    plan, tensors = source(target_model, PAIR, {}, settings)
    written = write_as(plan, tensors, tmp_path / "new.safetensors", dialect)
    layer = both.twin.get_submodule(DIFFUSERS)
    assert_outputs_agree(
        layer,
        read_by_huggingface(written, both.twin).get_submodule(DIFFUSERS),
        truth(plan, tensors, layer),
    )
