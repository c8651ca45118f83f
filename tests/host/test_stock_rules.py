"""What stock.table says the stock loader reads is what ComfyUI's own loader does
read, key for key.
"""

from __future__ import annotations

import random
from functools import cache
from importlib import import_module

import comfy_models
import pytest
import torch
from lora_locksmith.files.header import Header
from lora_locksmith.identify.stock_loader import stock_names, stock_placed
from lora_locksmith.key_maps.dialect import DENOISER, dialects
from lora_locksmith.key_maps.table import flatten, generalise
from lora_locksmith.planning.names import prefix_for, spell
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import (
    Network,
    TargetModel,
    denoiser_network,
    encoder_networks,
)

# One model of each family: what differs between them is in the key maps, which are compared for
# all.
MODELS = tuple(
    {model.family: name for name, model in reversed(comfy_models.MODELS.items())}.values()
)
WITH_ENCODERS = {
    "sd15": "sd15",
    "sdxl": "sdxl",
    "sd3_medium": "sdxl",
    "flux1_dev": "flux1",
    "hunyuandit": "hunyuandit",
    "anima": "anima",
}
RANK = 2


def kinds_of(out: int, inner: tuple[int, ...]) -> dict[str, dict[str, tuple[int, ...]]]:
    """The endings of adapters and the shapes of their tensors, for a module of this shape; the last
    ones are no whole adapters.
    """
    down, up = (RANK, *inner), (out, RANK, *(1 for _ in inner[1:]))
    flat, columns = (out, RANK), (RANK, inner[0])
    kohya, peft = (
        {".lora_down.weight": down, ".lora_up.weight": up},
        {
            ".lora_A.weight": down,
            ".lora_B.weight": up,
        },
    )
    return {
        "kohya": {**kohya, ".alpha": ()},
        "locon": {
            ".lora_down.weight": columns,
            ".lora_up.weight": flat,
            ".lora_mid.weight": (RANK, RANK, 1, 1),
        },
        "peft": peft,
        "peft bias": {**peft, ".lora_B.bias": (out,)},
        "peft dora": {**peft, ".lora_magnitude_vector.weight": (out,)},
        "peft default": {
            ".lora_A.default.weight": down,
            ".lora_B.default.weight": up,
            ".alpha": (),
        },
        "peft other": {".lora_A.other.weight": down, ".lora_B.other.weight": up},
        "old diffusers": {".lora.down.weight": down, ".lora.up.weight": up, ".lora.alpha": ()},
        "processors": {"_lora.down.weight": down, "_lora.up.weight": up},
        "linear layer": {
            ".lora_linear_layer.down.weight": down,
            ".lora_linear_layer.up.weight": up,
        },
        "mochi": {".lora_A": down, ".lora_B": up, ".alpha": ()},
        "xlabs": {".down.weight": down, ".up.weight": up},
        "dora": {**kohya, ".alpha": (1,), ".dora_scale": (out, 1)},
        "reshape": {**peft, ".reshape_weight": (2,)},
        "loha": {
            ".hada_w1_a": flat,
            ".hada_w1_b": columns,
            ".hada_w2_a": flat,
            ".hada_w2_b": columns,
            ".alpha": (),
        },
        "lokr": {".lokr_w1": (1, 1), ".lokr_w2": (out, *inner), ".alpha": ()},
        "lokr factors": {
            ".lokr_w1": (1, 1),
            ".lokr_w2_a": flat,
            ".lokr_w2_b": columns,
            ".alpha": (),
            ".dora_scale": (1, inner[0]),
        },
        "glora": {
            ".a1.weight": columns[::-1],
            ".a2.weight": columns,
            ".b1.weight": flat,
            ".b2.weight": columns,
        },
        "oft": {".oft_blocks": (1, out, out), ".rescale": (out, 1), ".alpha": ()},
        "boft": {".oft_blocks": (1, 1, out, out), ".rescale": (out, 1)},
        "oft of two dimensions": {".oft_blocks": (out, out), ".alpha": ()},
        "kohya oft": {".oft_blocks.0": (1, out, out), ".alpha": ()},
        "peft oft": {".oft_R.weight": (1, 3)},
        "ia3": {".weight": (out,), ".on_input": ()},
        "diff": {".diff": (out, *inner), ".diff_b": (out,)},
        "norm": {".w_norm": (out, *inner), ".b_norm": (out,)},
        "set": {".set_weight": (out, *inner)},
        "lora and diff": {**kohya, ".alpha": (), ".diff": (out, *inner)},
        "lora and bias": {**peft, ".diff_b": (out,)},
        "two spellings": {**kohya, **peft},
        "lone alpha": {".alpha": ()},
        "lone magnitude": {".dora_scale": (out, 1)},
        "lone bias norm": {".b_norm": (out,)},
        "lone lokr half": {".lokr_w2_b": columns},
        "lone cores": {".hada_t1": (RANK, RANK, 1, 1), ".hada_t2": (RANK, RANK, 1, 1)},
    }


KINDS = tuple(kinds_of(1, (1,)))


class Place:
    """A model, and perhaps a CLIP, in the host and as our target model."""

    def __init__(self, host, name: str, encoder: str = ""):
        import comfy.model_patcher
        import comfy.sd

        self.host, cpu = host, torch.device("cpu")
        self.model = comfy.model_patcher.ModelPatcher(
            comfy_models.network(name), load_device=cpu, offload_device=cpu
        )
        self.clip = None
        if encoder:
            self.clip = comfy.sd.CLIP(no_init=True)
            self.clip.cond_stage_model = text_encoder(encoder)
        self.target_model = target_model_of(name, encoder)

    def compare(self, keys: dict[str, tuple[int, ...]]) -> set[str] | None:
        """Our answer for a file with these keys must be the host's, which is returned; None where
        the host's loader raises.

        Then both say so; which of several faults it stumbles over first is the host's own affair.
        """
        ours = stock_placed(make_plan(keys, {}, self.target_model))
        # The host reads numbers off these; of the others it takes names only.
        read = (".alpha", ".reshape_weight")
        tensors = {
            key: torch.ones(shape) if key.endswith(read) else torch.empty(shape, device="meta")
            for key, shape in keys.items()
        }
        theirs = self.host.stock_placed(
            self.model, self.clip, self.host.LoraFile(tensors, Header({}, {}), None)
        )
        assert bool(ours.fails) == bool(theirs.fails), (ours.fails, theirs.fails)
        if theirs.fails:
            assert not ours and not theirs
            assert ours.fails.partition(" ")[0] in keys or ours.fails.endswith("is missing")
            return None
        assert sorted(ours - theirs) == [] and sorted(theirs - ours) == []
        return theirs


@cache
def target_model_of(name: str, encoder: str) -> TargetModel:
    """As host.target_model_of makes it, but without the buffers that are in no file: stock does not know
    them, and no trainer does.
    """
    networks = [denoiser_network(comfy_models.shapes(name))] if name else []
    return TargetModel(
        networks + (encoder_networks(comfy_models.encoder_shapes(encoder)) if encoder else [])
    )


def text_encoder(name: str):
    encoder = comfy_models.ENCODERS[name]
    options = {"device": torch.device("meta"), "dtype": torch.bfloat16, "model_options": {}}
    return encoder.build(import_module(encoder.module), options)


@pytest.fixture
def place(host):
    def make(name: str, encoder: str = "") -> Place:
        try:
            return Place(host, name, encoder)
        except comfy_models.NotInThisComfyUI as missing:
            pytest.skip(str(missing))

    return make


@pytest.mark.parametrize("name", comfy_models.MODELS)
def test_the_key_map_of_a_model(place, name):
    import comfy.lora

    there = place(name)
    ours = stock_names(there.target_model.networks[DENOISER], there.target_model)
    theirs = comfy.lora.model_lora_keys_unet(there.model.model, {}).keys()
    assert sorted(ours - theirs) == [] and sorted(theirs - ours) == []


@pytest.mark.parametrize("name", MODELS)
def test_the_key_map_of_a_model_drawn_from_its_table(place, name):
    import comfy.lora

    there = place(name)
    real = there.target_model.networks[DENOISER]
    # A norm's lone scale is drawn as a weight: no adapter but a difference can be on it.
    known = [
        module
        for module, weight in real.modules.items()
        if not weight.endswith((".bias", ".scale")) and real.family.find(flatten(module))
    ]
    is_reference = Network(
        DENOISER,
        real.prefix,
        {f"{real.prefix}{module}.weight": (1, 1) for module in known},
        real.family,
        is_reference=True,
    )
    ours, theirs = (
        stock_names(is_reference, TargetModel([is_reference])),
        comfy.lora.model_lora_keys_unet(there.model.model, {}).keys(),
    )
    assert sorted(ours - theirs) == []
    assert len(ours) > 0.9 * sum(not name.endswith((".bias", ".scale")) for name in theirs)


@pytest.mark.parametrize("name", comfy_models.ENCODERS)
def test_the_key_map_of_a_clip(host, name):
    import comfy.lora
    import comfy.sd

    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model = text_encoder(name)
    target_model = target_model_of("", name)
    ours = set().union(
        *(stock_names(network, target_model) for network in target_model.networks.values())
    )
    theirs = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}).keys()
    assert sorted(ours - theirs) == [] and sorted(theirs - ours) == []


@cache
def sample_of(target_model: TargetModel) -> TargetModel:
    """The same model with one or two modules of each pattern, which the dialects
    can spell quickly.
    """
    network, chosen = target_model.networks[DENOISER], {}
    for module, weight in network.modules.items():
        chosen.setdefault(generalise(flatten(module))[0], []).append(weight)
    weights = {
        weight: network.weights[weight]
        for found in chosen.values()
        for weight in {found[0], found[-1]}
    }
    sample = TargetModel([denoiser_network(weights)])
    assert sample.family is target_model.family
    return sample


def spelled_keys(
    target_model: TargetModel, dialect, kinds: list[str]
) -> dict[str, tuple[int, ...]]:
    """A file in a dialect's names with these kinds of adapters in turn."""
    keys = {}
    for index, spelled in enumerate(spell(target_model, target_model.networks[DENOISER], dialect)):
        out, *inner = spelled.shape
        endings = kinds_of(out, tuple(inner) or (1,))[kinds[index % len(kinds)]]
        keys |= {spelled.module + ending: shape for ending, shape in endings.items()}
    return keys


@pytest.mark.parametrize("name", MODELS)
def test_every_dialect_with_every_kind_of_adapter(place, name):
    there, placed = place(name), 0
    sample = sample_of(there.target_model)
    ways = {
        (
            prefix_for(sample, sample.networks[DENOISER], dialect),
            dialect.names,
            dialect.form,
        ): dialect
        for dialect in dialects().values()
    }
    for dialect in ways.values():
        # Each dialect begins with another kind, so that every module has several.
        order = random.Random(f"{name} {dialect.name}").sample(KINDS, len(KINDS))
        placed += len(there.compare(spelled_keys(sample, dialect, order)) or ())
    assert placed


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_by_itself(place, kind):
    there = place("flux1_dev")
    for dialect in ("kohya", "diffusers", "diffusers_old", "simpletuner_broken"):
        placed = there.compare(
            spelled_keys(sample_of(there.target_model), dialects()[dialect], [kind])
        )
        assert not placed or dialect != "simpletuner_broken"


def test_parts_of_adapters_at_random(place):
    """Any parts, with numbers that are none or several: where the host raises, both say it, and
    where not, both place the same.
    """
    there, chance = place("flux1_dev"), random.Random("parts")
    known = sorted(stock_names(there.target_model.networks[DENOISER], there.target_model))
    endings = {
        ending: shape for kind in kinds_of(8, (8,)).values() for ending, shape in kind.items()
    }
    endings |= dict.fromkeys(
        (".lora_mid.weight", ".hada_t1", ".oft_diag", ".scalar", ".bias", ".lora_down.bias"), (8, 8)
    )
    answers = []
    for _ in range(400):
        keys = {}
        for module in chance.sample(known, 2):
            for ending in chance.sample(sorted(endings), chance.randrange(1, 9)):
                shape = (
                    chance.choice([(), (1,), (0,), (2,), (1, 1)])
                    if ending.endswith("alpha")
                    else endings[ending]
                )
                keys[module + ending] = shape
        answers.append(there.compare(keys))
    assert 100 < answers.count(None) < 390 and sum(map(bool, answers)) > 10


def test_broken_adapters_stop_the_stock_loader(place):
    there, raised = place("flux1_dev"), 0
    for endings in kinds_of(3072, (3072,)).values():
        # Stock looks for one ending and takes the rest for granted: 15 downs, 3 parts of LoHa, 3 of
        # GLoRA.
        for lost in endings:
            keys = {
                f"transformer.transformer_blocks.0.attn.to_k{ending}": shape
                for ending, shape in endings.items()
                if ending != lost
            }
            raised += there.compare({**keys, "lora_unet_img_in.diff": (1, 1)}) is None
    assert raised == 21
    module = "transformer.proj_out"
    assert (
        there.compare(
            {
                f"{module}.lora_A.weight": (1, 1),
                f"{module}.lora_B.weight": (1, 1),
                f"{module}.alpha": (3,),
            }
        )
        is None
    )


@pytest.mark.parametrize("name", WITH_ENCODERS)
def test_mixed_files(place, name):
    """Modules of the model and its text encoders, by right and wrong names, with whole, broken and
    foreign adapters.
    """
    there = place(name, WITH_ENCODERS[name])
    chance = random.Random(name)
    known = sorted(
        set().union(
            *(
                stock_names(network, there.target_model)
                for network in there.target_model.networks.values()
            )
        )
    )
    known += [
        "lora_te1_nothing",
        "transformer.foo.0",
        "lora_unet_double_blocks_0",
        "",
        "unet",
        "base_model.model.x_embedder",
    ]
    raised = placed = 0
    for _ in range(30):
        keys = {}
        for module in chance.sample(known, 40):
            endings = kinds_of(8, (8,))[chance.choice(KINDS)]
            kept = (
                endings
                if chance.random() < 0.98
                else chance.sample(sorted(endings), len(endings) - 1)
            )
            keys |= {module + ending: endings[ending] for ending in kept}
        answer = there.compare(keys)
        raised += answer is None
        placed += len(answer or ())
    assert raised and placed > 500


def test_a_whole_networks_alpha_is_nobodys(place):
    there = place("flux1_dev")
    module = "norm_out.linear"
    keys = {
        f"{module}.lora_A.weight": (4, 3072),
        f"{module}.lora_B.weight": (6144, 4),
        "diffusion_model.alpha": (),
    }
    assert there.compare(keys) == {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}


def test_control_loras(place):
    keys = {}
    for block in range(2):
        for module in ("linear1", "linear2", "modulation.lin"):
            keys |= {
                f"single_blocks.{block}.{module}{end}": (4, 4)
                for end in (".lora_A.weight", ".lora_B.weight", ".lora_B.bias")
            }
        keys[f"single_blocks.{block}.norm.key_norm.scale"] = (128,)
    keys |= {
        "img_in.lora_A.weight": (4, 128),
        "img_in.lora_B.weight": (3072, 4),
        "img_in.reshape_weight": (2,),
        "img_in.foo": (1,),
    }
    placed = place("flux1_dev").compare(keys)
    assert keys.keys() - placed == {"img_in.reshape_weight", "img_in.foo"}
    assert place("flux1_dev").compare(keys | {"img_in.lora_A.weight": (4,)}) is None
    assert place("flux1_dev").compare(keys | {"img_in.lora_B.weight": ()}) is None
    del keys["img_in.lora_B.weight"]
    assert place("flux1_dev").compare(keys) is None


def test_uso(place):
    keys = {}
    for block in range(19):
        for lora in ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2"):
            keys |= {
                f"double_blocks.{block}.processor.{lora}.{end}.weight": (4, 4)
                for end in ("up", "down")
            }
    without = place("flux1_dev").compare(keys)
    for block in range(38):
        for lora in ("qkv_lora", "proj_lora"):
            keys |= {
                f"single_blocks.{block}.processor.{lora}.{end}.weight": (4, 4)
                for end in ("up", "down")
            }
    assert without == set() and place("flux1_dev").compare(keys) == keys.keys()


@pytest.mark.parametrize("first", ["k", "q"])
def test_wan_fun(place, first):
    modules = (
        f"lora_unet__blocks_0_cross_attn_{first}",
        "lora_unet__blocks_1_ffn_0",
        "lora_unet_blocks_2_ffn_0",
    )
    keys = {
        f"{module}{ending}": shape
        for module in modules
        for ending, shape in kinds_of(8, (8,))["kohya"].items()
    }
    assert len(place("wan21_t2v_1_3b").compare(keys)) == (9 if first == "k" else 3)


def test_a_users_own_model_is_known_by_its_native_names(host, tmp_path):
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "acme.table").write_text(
        "@title Acme\n\nroad.runner  h h  = coyote\n", "utf-8"
    )
    target_model = TargetModel(
        [
            denoiser_network(
                {"diffusion_model.road.runner.weight": (8, 8)}, host.own_maps(tmp_path).families
            )
        ]
    )
    assert target_model.family.name == "acme"
    names = (
        "diffusion_model.road.runner",
        "lora_unet_road_runner",
        "transformer.coyote",
        "lora_unet_coyote",
        "transformer.road.runner",
    )
    keys = {
        f"{name}{ending}": shape
        for name in names
        for ending, shape in kinds_of(8, (8,))["peft"].items()
    }
    assert {
        key.rsplit(".", 2)[0] for key in stock_placed(make_plan(keys, {}, target_model))
    } == set(names[:2])
