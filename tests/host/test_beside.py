"""What acts beside a layer is fused, acts under torch.compile and in int8 kernels, and goes on and
off in any order.
"""

from __future__ import annotations

import pytest
import torch
import toy_layers
from many_kinds import load_base, write_base
from safetensors.torch import save_file

CPU = toy_layers.CPU
INPUTS = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))


def close(one, other, tolerance=1e-5):
    return (one - other).norm() <= tolerance * other.norm()


@pytest.fixture
def loras(tmp_path):
    """loras(name, rank) -> a file of a LoRA on the linear layer, of its own numbers."""

    def write(name, rank):
        generator = torch.Generator().manual_seed(sum(name.encode()))
        up, down = (
            torch.randn(36, rank, generator=generator),
            torch.randn(rank, 24, generator=generator),
        )
        path = tmp_path / f"{name}.safetensors"
        save_file(
            {
                "diffusion_model.linear.lora_A.weight": down,
                "diffusion_model.linear.lora_B.weight": up,
            },
            path,
        )
        return path

    return write


@pytest.fixture
def patcher(comfy):
    return toy_layers.patcher()


@pytest.fixture
def ours(host):
    """ours(patcher, (path, strength) ...) -> a clone with each beside its layers, one node after
    the other.
    """

    def load(patcher, *files):
        for path, strength in files:
            patcher = host.load_and_fix(patcher, None, path, strength, bypass=True)[0]
        return patcher

    return load


def of(patcher, run):
    patcher.patch_model(CPU)
    try:
        return run(INPUTS).detach().clone()
    finally:
        patcher.unpatch_model(CPU)


def wanted(host, patcher, *files):
    for path, strength in files:
        patcher = host.load_and_fix(patcher, None, path, strength)[0]
    return of(patcher, patcher.model.diffusion_model.linear)


def test_all_nodes_of_a_chain_are_one_injection_and_one_product(host, patcher, loras, ours):
    from lora_locksmith.nodes.beside import Sum, beside_of

    files = [
        (loras(name, rank), strength)
        for name, rank, strength in (("a", 2, 1.0), ("b", 3, -0.7), ("c", 4, 0.5))
    ]
    loaded, layer = ours(patcher, *files), patcher.model.diffusion_model.linear
    assert len(loaded.injections) == 1
    loaded.patch_model(CPU)
    layer(INPUTS)
    (step,) = beside_of(layer).steps
    assert isinstance(step, Sum) and step.down.shape == (9, 24) and len(step.ups) == 1
    loaded.unpatch_model(CPU)
    assert beside_of(layer) is None and "forward" not in vars(layer)
    assert close(of(loaded, layer), wanted(host, patcher, *files))


def test_compiled_it_follows_every_change_and_compiles_nothing_anew_for_a_strength_or_a_lora_of_the_same_rank(
    host, patcher, loras, ours
):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    a, b = loras("a", 4), loras("b", 4)
    states = {
        "none": (),
        "A": ((a, 1.0),),
        "A at 0.5": ((a, 0.5),),
        "B": ((b, 1.0),),
        "A and B": ((a, 1.0), (b, 0.3)),
        "B at 2": ((b, 2.0),),
    }
    torch._dynamo.reset()
    compiled = torch.compile(patcher.model.diffusion_model.linear, backend=backend)
    made = {}
    for name in ("none", "A", "A at 0.5", "B", "none", "A and B", "B at 2", "none", "A"):
        loaded = patcher.clone()
        loaded.model_options["torch_compile_kwargs"] = {}
        loaded = ours(loaded, *states[name])
        before = len(graphs)
        assert close(of(loaded, compiled), wanted(host, patcher, *states[name])), name
        made[name] = max(len(graphs) - before, made.get(name, 0))
    assert made["none"] and made["A"], "nothing was compiled, which proves nothing"
    assert made["A at 0.5"] == made["B"] == made["B at 2"] == 0
    torch._dynamo.reset()


class OnTop:
    """As the stock bypass does: keeps the forward it finds, and puts it back whatever has happened
    since.
    """

    def inject(self, patcher):
        layer = patcher.model.diffusion_model.linear
        self.below = layer.forward
        layer.forward = lambda x: self.below(x) * 2

    def eject(self, patcher):
        patcher.model.diffusion_model.linear.forward = self.below


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_others_that_replace_the_same_forward_before_or_after(host, patcher, loras, ours, first):
    from comfy.patcher_extension import PatcherInjection

    other, file = OnTop(), (loras("a", 4), 0.7)
    injection = [PatcherInjection(inject=other.inject, eject=other.eject)]
    if first == "ours":
        loaded = ours(patcher, file)
        loaded.set_injections("theirs", injection)
    else:
        loaded = patcher.clone()
        loaded.set_injections("theirs", injection)
        loaded = ours(loaded, file)
    layer = patcher.model.diffusion_model.linear
    plain, changed = of(patcher, layer), wanted(host, patcher, file)
    for _ in range(3):
        under = 2 * changed if first == "ours" else plain + changed
        assert close(of(loaded, layer), under)
        assert close(of(patcher, layer), plain, 0)
    assert close(of(ours(patcher, file), layer), changed)


def test_what_reads_an_int8_weight_without_the_layer(host, comfy, tmp_path):
    """The host folds an activation into its int8 product, and calls no forward."""
    import comfy.ops

    patcher = load_base(
        write_base(tmp_path / "base.safetensors", "int8_tensorwise"), "int8_tensorwise"
    )
    name = "diffusion_model.double_blocks.0.img_mlp.2"
    layer = patcher.model.get_submodule(name)
    outputs, inputs = layer.weight.shape
    generator = torch.Generator().manual_seed(9)
    x, down, up = (
        torch.randn(*shape, generator=generator)
        for shape in ((5, inputs), (4, inputs), (outputs, 4))
    )
    save_file(
        {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "lora.safetensors"
    )
    called = []
    handle = layer.register_forward_hook(lambda *_: called.append(1))

    def read():
        return comfy.ops.linear_input_act(layer, x, "gelu_tanh")

    bare = read()
    for strength in (1.0, -0.7):
        loaded = host.load_and_fix(
            patcher, None, tmp_path / "lora.safetensors", strength, bypass=True
        )[0]
        loaded.patch_model(CPU)
        changed = read() - bare
        loaded.unpatch_model(CPU)
        assert close(
            changed,
            torch.nn.functional.linear(
                comfy.ops.INPUT_ACT_EAGER["gelu_tanh"](x), strength * up @ down
            ),
            1e-4,
        )
    assert torch.equal(read(), bare) and not called, "the layer was called, which proves nothing"
    handle.remove()


@pytest.mark.parametrize("act", ["gelu_tanh", "rms_norm"])
def test_what_the_host_folds_into_a_product_later_on(comfy, act):
    """From 0.36 on `residual + residual_scale * linear(act(x))`, the activation a norm too; what is
    not known is left to the host, and the layer counts as one that did not run.
    """
    import comfy.ops
    import comfy.rmsnorm
    from comfy.weight_adapter.lora import LoRAAdapter
    from lora_locksmith.adapters.kind import ADDED
    from lora_locksmith.nodes.beside import BesideLayer, LayerPart, _folded

    torch.manual_seed(6)
    layer, x = torch.nn.Linear(24, 36).requires_grad_(False), torch.randn(5, 24)
    up, down, residual, scale = (
        torch.randn(*shape) for shape in ((36, 2), (2, 24), (5, 36), (36,))
    )
    adapter = LoRAAdapter(set(), (up, down, 2.0, None, None, None))
    norm = {"act_weight": torch.randn(24), "act_eps": 1e-5} if act == "rms_norm" else {}
    activated = (
        comfy.rmsnorm.rms_norm(x, *norm.values()) if norm else comfy.ops.INPUT_ACT_EAGER[act](x)
    )

    def stock(residual=None, residual_scale=None, **_):
        out = layer(activated)
        return out if residual is None else torch.addcmul(residual, out, residual_scale)

    beside = BesideLayer(layer, [LayerPart(adapter, ADDED, None, (36, 24), None, 0.5)], False)
    layer.forward = beside.forward
    folded = {"residual": residual, "residual_scale": scale}
    product = torch.nn.functional.linear(activated, layer.weight + 0.5 * up @ down, layer.bias)
    assert close(_folded(stock, beside, x, act, norm), product)
    assert close(_folded(stock, beside, x, act, norm | folded), residual + scale * product)
    alone = torch.nn.functional.linear(activated, layer.weight, layer.bias)
    for name, further in ((act, {"unheard_of": 1}), ("unheard of", {})):
        beside.fired = False
        assert torch.equal(_folded(stock, beside, x, name, norm | further), alone)
        assert not beside.fired


def test_layers_that_never_ran_are_told_once_after_a_run(host, patcher, tmp_path, caplog):
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name, (out, inputs) in {"linear": (36, 24), "square": (24, 24)}.items():
        tensors[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(
            2, inputs, generator=generator
        )
        tensors[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    save_file(tensors, tmp_path / "two.safetensors")
    loaded = host.load_and_fix(patcher, None, tmp_path / "two.safetensors", bypass=True)[0]
    loaded = host.load_and_fix(loaded, None, tmp_path / "two.safetensors", bypass=True)[0]
    network = patcher.model.diffusion_model

    def run(*layers):
        caplog.clear()
        loaded.patch_model(CPU)
        for layer in layers:
            layer(INPUTS)
        with caplog.at_level("INFO"):
            loaded.cleanup()
        loaded.unpatch_model(CPU)
        return [
            record.getMessage() for record in caplog.records if "did not run" in record.getMessage()
        ]

    assert run() == [], "nothing ran: it was no run of this model"
    assert run(network.linear, network.square) == []
    (told,) = run(network.linear)
    assert (
        "1 of 2 layers" in told
        and "diffusion_model.square" in told
        and "diffusion_model.linear" not in told
    )
    assert run(network.square) == []
