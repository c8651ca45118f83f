"""Create Hook LoRA (fixed) in the real sampler: on plain files what stock's hook does, on all
others what Load and Fix LoRA does.
"""

from __future__ import annotations

import copy
import json
import re

import comfy_server
import demo
import pytest
import torch
from many_kinds import write_base
from safetensors.torch import load_file, save, save_file
from tiny_models import (
    BROKEN_LORA,
    DIFFUSERS_LORA,
    FLUX,
    HIDDEN,
    KOHYA_LORA,
    kohya_lora,
    lora_state_dict,
)

OURS, OURS_STACKED = "LocksmithCreateHookLoRA", "LocksmithCreateHookLoRAStack"
STOCK, STOCK_MODEL_ONLY = "CreateHookLora", "CreateHookLoraModelOnly"
STRENGTH = 0.8
BASE = "hooks_base.safetensors"
MODULES = {
    "transformer.transformer_blocks.0.attn.to_q": (HIDDEN, HIDDEN),
    "transformer.single_transformer_blocks.1.proj_out": (HIDDEN, 5 * HIDDEN),
}
WEIGHTS = {  # of which each is the first rows
    "transformer.transformer_blocks.0.attn.to_q": "double_blocks.0.img_attn.qkv.weight",
    "transformer.single_transformer_blocks.1.proj_out": "single_blocks.1.linear2.weight",
}


@pytest.fixture(scope="module")
def hooked(bench):
    """The bench on the tiny FLUX in fp32, with a negative prompt that counts."""
    folder = bench.server.base / "models" / "diffusion_models"
    save_file({name: one.float() for name, one in load_file(folder / FLUX).items()}, folder / BASE)
    yield Hooked(bench.on_model(BASE))
    (folder / BASE).unlink()


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


class Hooked:
    """Runs the demo's prompt with hooks in the loader's place."""

    def __init__(self, bench):
        self.bench = bench
        self.prompt = demo.without_loader(bench.prompt)
        ids = {spec["class_type"]: name for name, spec in self.prompt.items()}
        self.text, self.sampler = ids["CLIPTextEncode"], ids["KSampler"]
        guidance = self.prompt[ids["FluxGuidance"]]["inputs"]
        negative = {
            "words": node("CLIPTextEncode", clip=self.clip, text="grey, plain"),
            "grey": node("FluxGuidance", conditioning=["words", 0], guidance=guidance["guidance"]),
        }
        self.prompt |= negative
        self.prompt[self.sampler]["inputs"] |= {"negative": ["grey", 0], "cfg": 2.0}

    @property
    def clip(self):
        return self.prompt[self.text]["inputs"]["clip"]

    @property
    def model(self):
        return self.prompt[self.sampler]["inputs"]["model"]

    def run(self, nodes, hooks=("hook", 0), *, clip=False, positive_only=False, more=()):
        """The result with these nodes, of which one gives `hooks`: through Set CLIP Hooks (`clip`;
        "scheduled": the text is encoded for each keyframe), else on the conditionings. more: inputs
        of nodes that are there, by the nodes' ids.
        """
        prompt = copy.deepcopy(self.prompt) | nodes
        hooks = list(hooks)
        if clip:
            prompt["encoder"] = node(
                "SetClipHooks",
                clip=self.clip,
                apply_to_conds=True,
                schedule_clip=clip == "scheduled",
                hooks=hooks,
            )
            for name in (self.text, "words"):
                prompt[name]["inputs"]["clip"] = ["encoder", 0]
        else:
            sampler = prompt[self.sampler]["inputs"]
            for name in ("positive",) if positive_only else ("positive", "negative"):
                prompt[name] = node(
                    "ConditioningSetProperties",
                    cond_NEW=sampler[name],
                    strength=1.0,
                    set_cond_area="default",
                    hooks=hooks,
                )
                sampler[name] = [name, 0]
        for name, inputs in dict(more).items():
            prompt[name]["inputs"] |= inputs
        return self.bench.run(prompt)

    def of(self, kind, lora_name, *, strength_clip=STRENGTH, **where):
        """The latent with one hook of this kind."""
        return self.run({"hook": hook(kind, lora_name, strength_clip)}, **where).latent

    def bare(self):
        return self.bench.run(self.prompt).latent

    def loaded(self, *names, clip=True):
        """The latent with Load and Fix LoRA (stack) in the place of hooks on everything."""
        rows = [
            {"name": name, "strength": STRENGTH, "strength_clip": STRENGTH if clip else 0.0}
            for name in names
        ]
        prompt = copy.deepcopy(self.prompt)
        prompt["stack"] = node(
            "LocksmithLoRAStack",
            model=self.model,
            clip=self.clip,
            loras=json.dumps(rows),
            mode="patch",
        )
        prompt[self.sampler]["inputs"]["model"] = ["stack", 0]
        for name in (self.text, "words"):
            prompt[name]["inputs"]["clip"] = ["stack", 1]
        return self.bench.run(prompt).latent

    def log_of(self, run):
        """What the server logs meanwhile."""
        before = len(self.bench.server.log_text())
        run()
        return self.bench.server.log_text()[before:]


def hook(kind, lora_name, strength_clip=STRENGTH, **more):
    inputs = {"lora_name": lora_name, "strength_model": STRENGTH, "strength_clip": strength_clip}
    if kind == STOCK_MODEL_ONLY:
        del inputs["strength_clip"]
    return node(kind, **inputs, **more)


def keyframes(hooks):
    """Nodes that have hooks act in the second half of the steps alone; the last is 'scheduled'."""
    return {
        "off": node("CreateHookKeyframe", strength_mult=0.0, start_percent=0.0),
        "on": node(
            "CreateHookKeyframe", strength_mult=1.0, start_percent=0.5, prev_hook_kf=["off", 0]
        ),
        "scheduled": node("SetHookKeyframes", hooks=hooks, hook_kf=["on", 0]),
    }


def off(latent, other):
    return float((latent - other).norm() / other.norm())


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dora():
    """PEFT's DoRA of modules that are rows of fused weights, and of one that is not."""
    tensors = lora_state_dict(MODULES, ".lora_A.weight", ".lora_B.weight")
    for seed, (name, (outputs, _)) in enumerate(MODULES.items()):
        tensors[f"{name}.lora_magnitude_vector"] = random(outputs, seed=seed).abs() + 0.5
    return tensors


def lokr():
    tensors = {}
    for seed, (name, (outputs, inputs)) in enumerate(MODULES.items()):
        flat = "lora_unet_" + name.removeprefix("transformer.").replace(".", "_")
        tensors[f"{flat}.lokr_w1"] = random(8, 8, seed=seed) * 0.3
        tensors[f"{flat}.lokr_w2"] = random(outputs // 8, inputs // 8, seed=seed + 9) * 0.3
        tensors[f"{flat}.alpha"] = torch.tensor(1.0)
    return tensors


def oft():
    return {
        "lora_unet_double_blocks_0_img_mlp_0.oft_blocks": random(16, 32, 32) * 0.1,
        "lora_unet_double_blocks_0_img_mlp_0.alpha": torch.tensor(1.0),
    }


def with_encoder(flat=True):
    """kohya's names for the diffusion model and the text encoder, or diffusers' for both. The tiny
    encoder's own layers are zeros, so that one alone would do nothing.
    """
    model = kohya_lora() if flat else lora_state_dict(MODULES, ".lora_A.weight", ".lora_B.weight")
    layer = (
        "lora_te1_text_model_encoder_layers_0_mlp_"
        if flat
        else "text_encoder.text_model.encoder.layers.0.mlp."
    )
    modules = {f"{layer}fc1": (3072, 768), f"{layer}fc2": (768, 3072)}
    roles = (
        (".lora_down.weight", ".lora_up.weight") if flat else (".lora_A.weight", ".lora_B.weight")
    )
    return model | lora_state_dict(modules, *roles)


FILES = {
    "dora": dora,
    "lokr": lokr,
    "oft": oft,
    "encoder": with_encoder,
    "encoder of diffusers": lambda: with_encoder(False),
}


@pytest.fixture
def file(lora_file):
    def write(name):
        lora_file(f"hooked {name}.safetensors", save(FILES[name]()))
        return f"hooked {name}.safetensors"

    return write


@pytest.mark.parametrize("clip", [False, True], ids=["on conditionings", "through CLIP"])
@pytest.mark.parametrize("name", [KOHYA_LORA, DIFFUSERS_LORA])
def test_a_plain_file_is_to_the_bit_what_stocks_hook_makes_of_it(hooked, name, clip):
    ours = hooked.of(OURS, name, clip=clip)
    assert torch.equal(ours, hooked.of(STOCK, name, clip=clip))
    assert off(ours, hooked.bare()) > 1e-2


def test_a_text_encoder_is_to_the_bit_what_stocks_hook_makes_of_it(hooked, file):
    name = file("encoder")
    ours = hooked.of(OURS, name, clip=True)
    assert torch.equal(ours, hooked.of(STOCK, name, clip=True))
    assert off(ours, hooked.of(OURS, name, clip=True, strength_clip=0.0)) > 1e-3


def test_strength_clip_0_is_stocks_model_only(hooked, file):
    name = file("encoder")
    ours = hooked.of(OURS, name, clip=True, strength_clip=0.0)
    assert torch.equal(ours, hooked.of(STOCK_MODEL_ONLY, name, clip=True))


def test_names_stock_does_not_know_do_what_load_and_fix_does(hooked):
    bare = hooked.bare()
    assert torch.equal(hooked.of(STOCK, BROKEN_LORA), bare)
    ours = hooked.of(OURS, BROKEN_LORA)
    assert off(ours, hooked.loaded(BROKEN_LORA)) < 1e-5 < 1e-2 < off(ours, bare)


@pytest.mark.parametrize("name", FILES)
def test_what_the_pack_knows_does_what_load_and_fix_does(hooked, file, name):
    path = file(name)
    ours, loaded = hooked.of(OURS, path, clip=True), hooked.loaded(path)
    assert off(ours, loaded) < 1e-5 < 1e-3 < off(ours, hooked.bare())


def test_stocks_hook_of_a_dora_is_another(hooked, file):
    name = file("dora")
    assert off(hooked.of(STOCK, name), hooked.loaded(name)) > 1e-3


@pytest.fixture
def as_difference(hooked, lora_file):
    """as_difference(name) -> a plain file whose differences are what a DoRA changes, which stock
    reads too.
    """

    def write(name):
        stored = load_file(hooked.bench.server.base / "models" / "diffusion_models" / BASE)
        changes = {}
        for module, tensors in by_module(load_file(hooked.bench.loras / name)).items():
            before = stored[WEIGHTS[module]]
            added = tensors["lora_B.weight"] @ tensors["lora_A.weight"]
            own = before[: len(added)]
            sizes = tensors["lora_magnitude_vector"][:, None]
            change = torch.zeros_like(before)
            change[: len(added)] = sizes * torch.nn.functional.normalize(own + added) - own
            changes[f"diffusion_model.{WEIGHTS[module].removesuffix('.weight')}.diff"] = change
        lora_file("as difference.safetensors", save(changes))
        return "as difference.safetensors"

    return write


def by_module(tensors):
    return {
        module: {
            key.removeprefix(f"{module}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{module}.")
        }
        for module in MODULES
    }


def test_keyframes_on_a_plain_file_are_stocks(hooked):
    def scheduled(kind):
        nodes = {"hook": hook(kind, KOHYA_LORA)} | keyframes(["hook", 0])
        return hooked.run(nodes, ("scheduled", 0)).latent

    ours = scheduled(OURS)
    assert torch.equal(ours, scheduled(STOCK))
    assert min(off(ours, hooked.bare()), off(ours, hooked.of(OURS, KOHYA_LORA))) > 1e-3


def test_a_text_encoder_is_scheduled_as_stocks_hook_schedules_it(hooked, file):
    def scheduled(kind, strength_clip=STRENGTH):
        nodes = {"hook": hook(kind, name, strength_clip)} | keyframes(["hook", 0])
        return hooked.run(nodes, ("scheduled", 0), clip="scheduled").latent

    name = file("encoder")
    ours = scheduled(OURS)
    assert torch.equal(ours, scheduled(STOCK))
    assert off(ours, scheduled(OURS, 0.0)) > 1e-3


@pytest.mark.parametrize("way", ["keyframes", "positive only", "blended"])
def test_a_dora_is_scheduled_as_the_difference_that_it_makes(hooked, file, as_difference, way):
    dora_name = file("dora")
    plain = as_difference(dora_name)

    def sampled(kind, name):
        nodes = {"hook": hook(kind, name)}
        if way == "keyframes":
            return hooked.run(nodes | keyframes(["hook", 0]), ("scheduled", 0)).latent
        return hooked.run(nodes, positive_only=way == "positive only").latent

    ours, stocks = sampled(OURS, dora_name), sampled(STOCK, plain)
    assert off(ours, stocks) < 1e-5 < 1e-3 < off(ours, hooked.bare())


def test_a_hook_on_the_positive_prompt_leaves_the_negative_alone(hooked):
    ours = hooked.of(OURS, KOHYA_LORA, positive_only=True)
    assert torch.equal(ours, hooked.of(STOCK, KOHYA_LORA, positive_only=True))
    assert off(ours, hooked.of(OURS, KOHYA_LORA)) > 1e-3


@pytest.mark.parametrize("order", [("dora", "plain"), ("plain", "dora")])
def test_hooks_on_one_weight_add_up_in_any_order(hooked, file, lora_file, order):
    """Each changes the model's own weight, as with Load and Fix LoRA."""
    plain = lora_state_dict(MODULES, ".lora_A.weight", ".lora_B.weight", seed=5)
    lora_file("plain.safetensors", save(plain))
    names = {"dora": file("dora"), "plain": "plain.safetensors"}
    first, second = (names[one] for one in order)
    nodes = {"first": hook(OURS, first), "hook": hook(OURS, second, prev_hooks=["first", 0])}
    ours = hooked.run(nodes).latent
    assert off(ours, hooked.loaded(*names.values())) < 1e-5
    assert off(ours, hooked.of(OURS, names["dora"])) > 1e-3


def test_a_hook_on_a_model_that_is_patched_changes_the_models_own_weight(hooked, file, lora_file):
    plain = lora_state_dict(MODULES, ".lora_A.weight", ".lora_B.weight", seed=5)
    lora_file("plain.safetensors", save(plain))
    nodes = {
        "hook": hook(OURS, file("dora")),
        "loader": node(
            demo.OUR_LOADER,
            model=hooked.model,
            lora_name="plain.safetensors",
            strength_model=STRENGTH,
            strength_clip=0.0,
            mode="patch",
        ),
    }
    ours = hooked.run(nodes, more={hooked.sampler: {"model": ["loader", 0]}}).latent
    assert off(ours, hooked.loaded("hooked dora.safetensors", "plain.safetensors")) < 1e-5


def test_a_stack_is_the_hooks_in_a_row(hooked, file):
    name = file("encoder")
    rows = [
        {"name": BROKEN_LORA, "strength": STRENGTH},
        {"name": "gone.safetensors", "on": False},
        {"name": name, "strength": STRENGTH, "strength_clip": 0.3},
    ]
    stacked = node(OURS_STACKED, loras=json.dumps(rows))
    in_a_row = {
        "first": hook(OURS, BROKEN_LORA),
        "hook": hook(OURS, name, 0.3, prev_hooks=["first", 0]),
    }
    ours = hooked.run({"hook": stacked}, clip=True).latent
    assert torch.equal(ours, hooked.run(in_a_row, clip=True).latent)
    behind = node(OURS_STACKED, loras=json.dumps(rows[1:]), prev_hooks=["first", 0])
    nodes = {"first": in_a_row["first"], "hook": behind}
    assert torch.equal(ours, hooked.run(nodes, clip=True).latent)


def test_combined_with_stocks_hooks(hooked):
    nodes = {
        "ours": hook(OURS, BROKEN_LORA),
        "stocks": hook(STOCK, KOHYA_LORA),
        "hook": node("CombineHooks2", hooks_A=["ours", 0], hooks_B=["stocks", 0]),
    }
    assert off(hooked.run(nodes).latent, hooked.loaded(BROKEN_LORA, KOHYA_LORA)) < 1e-5


def test_the_log_tells_once_what_loads_on_each_model(hooked, lora_file):
    lost = {"lora_unet_double_blocks_9_img_mlp_0.lora_down.weight": torch.zeros(4, HIDDEN)}
    lora_file("logged.safetensors", save(with_encoder() | lost))
    nodes = {"hook": hook(OURS, "logged.safetensors")}

    def lines(run):
        return re.findall(r"LoRA Locksmith: logged.safetensors as a hook on .*", hooked.log_of(run))

    (line,) = lines(lambda: hooked.run(nodes))
    assert "on the text encoder" not in line and "10 of 11 layers load" in line
    assert " lora_unet_double_blocks_{}_img_mlp_{} (1 key): it would be double_blocks.9" in line
    assert "4 keys are for the text encoder: connect these hooks to Set CLIP Hooks" in line
    again = {hooked.sampler: {"seed": 43}}
    assert not lines(lambda: hooked.run(nodes, more=again))
    (line,) = lines(lambda: hooked.run(nodes, clip=True))
    assert "on the text encoder: 2 of 2 layers load." in line


def test_what_changes_the_size_of_a_weight_is_left_out_and_told(hooked, lora_file):
    wide = lora_state_dict(
        {"transformer.x_embedder": (HIDDEN, 128)}, ".lora_A.weight", ".lora_B.weight"
    )
    plain = lora_state_dict(MODULES, ".lora_A.weight", ".lora_B.weight")
    lora_file("control.safetensors", save(plain | wide))
    lora_file("without.safetensors", save(plain))
    told = hooked.log_of(lambda: hooked.of(OURS, "control.safetensors"))
    assert "it changes the size of a weight, which a hook cannot" in told
    ours = hooked.of(OURS, "control.safetensors")
    assert torch.equal(ours, hooked.of(OURS, "without.safetensors"))


def test_a_quantised_model_is_refused_in_plain_words(hooked):
    folder = hooked.bench.server.base / "models" / "diffusion_models"
    name = "hooks_quantised.safetensors"
    write_base(folder / name, "float8_e4m3fn")
    try:
        with pytest.raises(comfy_server.PromptError, match="hooks cannot change a quantized model"):
            Hooked(hooked.bench.on_model(name)).of(OURS, KOHYA_LORA)
    finally:
        (folder / name).unlink()


@pytest.mark.parametrize("kind", ["one", "stack"])
def test_a_file_that_cannot_be_read_stops_the_node(hooked, lora_file, kind):
    lora_file("web_page.safetensors", b"<!DOCTYPE html><html></html>" * 20)
    rows = json.dumps([{"name": "web_page.safetensors"}])
    made = hook(OURS, "web_page.safetensors") if kind == "one" else node(OURS_STACKED, loras=rows)
    row = "" if kind == "one" else "Row 1: "
    with pytest.raises(comfy_server.PromptError, match=rf"{row}web_page\.safetensors: .*\."):
        hooked.run({"hook": made})


def test_a_hook_without_strength_reads_nothing(hooked, lora_file):
    lora_file("no_lora.safetensors", b"no LoRA at all")
    made = hook(OURS, "no_lora.safetensors", 0.0)
    made["inputs"]["strength_model"] = 0.0
    assert torch.equal(hooked.run({"hook": made}).latent, hooked.bare())


def test_another_file_on_disk_runs_the_node_again(hooked, lora_file):
    lora_file("changing.safetensors", save(kohya_lora()))
    nodes = {"hook": hook(OURS, "changing.safetensors")}
    first = hooked.run(nodes)
    lora_file("changing.safetensors", save(kohya_lora(seed=3)))
    second = hooked.run(nodes)
    assert "hook" in comfy_server.executed_nodes(second.entry)
    assert off(second.latent, first.latent) > 1e-3


def test_the_nodes_are_declared_as_stocks(object_info):
    ours, stocks = object_info[OURS], object_info[STOCK]
    assert ours["input_order"] == stocks["input_order"]
    assert ours["output"] == stocks["output"] == object_info[OURS_STACKED]["output"]
    assert ours["category"] == stocks["category"] == object_info[OURS_STACKED]["category"]
    for name in ("strength_model", "strength_clip"):
        mine, theirs = (one["input"]["required"][name][1] for one in (ours, stocks))
        assert {part: mine[part] for part in theirs} == theirs
