"""Keys are taken apart into module, adapter name and role, whoever spelled them."""

import subprocess
import sys
from pathlib import Path

import pytest
from lora_locksmith.planning.keys import parse_key, role_spellings

SPELLED = {
    "lora_unet_x_to_q.lora_down.weight": ("lora_unet_x_to_q", "", "down", "lora_down.weight"),
    "transformer.base_model.model.blocks.0.attn.to_k.lora.down.weight": (
        "transformer.base_model.model.blocks.0.attn.to_k",
        "",
        "down",
        "lora.down.weight",
    ),
    "unet.x.attn1.processor.to_q_lora.up.weight": (
        "unet.x.attn1.processor.to_q",
        "",
        "up",
        "_lora.up.weight",
    ),
    "text_encoder.x.q_proj.lora_linear_layer.up.weight": (
        "text_encoder.x.q_proj",
        "",
        "up",
        "lora_linear_layer.up.weight",
    ),
    "base_model.model.x.lora_A.weight": ("base_model.model.x", "", "down", "lora_A.weight"),
    "x.lora_A.default.weight": ("x", "default", "down", "lora_A.<adapter>.weight"),
    "x.lora_A.default_0.default.weight": (
        "x",
        "default_0.default",
        "down",
        "lora_A.<adapter>.weight",
    ),
    "x.lora_B.my_style.bias": ("x", "my_style", "up_bias", "lora_B.<adapter>.bias"),
    "x.lora_B": ("x", "", "up", "lora_B"),
    "x.lora_magnitude_vector": ("x", "", "magnitude", "lora_magnitude_vector"),
    "x.lora_magnitude_vector.weight": ("x", "", "magnitude", "lora_magnitude_vector.weight"),
    "x.lora_magnitude_vector.default.weight": (
        "x",
        "default",
        "magnitude",
        "lora_magnitude_vector.<adapter>.weight",
    ),
    "x.magnitude": ("x", "", "magnitude", "magnitude"),
    "double_blocks.0.processor.qkv_lora1.down.weight": (
        "double_blocks.0.processor.qkv_lora1",
        "",
        "down",
        "down.weight",
    ),
    "single_blocks.0.processor.qkv_lora.up.weight": (
        "single_blocks.0.processor.qkv",
        "",
        "up",
        "_lora.up.weight",
    ),
    "blocks.0.mlp.down.lora_A.weight": ("blocks.0.mlp.down", "", "down", "lora_A.weight"),
    "x.base_layer.bias": ("x", "", "bias", "base_layer.bias"),
    "x.modules_to_save.default.weight": (
        "x",
        "default",
        "weight",
        "modules_to_save.<adapter>.weight",
    ),
    "x.lokr_w1": ("x", "", "lokr_w1", "lokr_w1"),
    "x.lokr_w1_a.default": ("x", "default", "lokr_w1_a", "lokr_w1_a.<adapter>"),
    "x.oft_R.weight": ("x", "", "oft_R", "oft_R.weight"),
    "oft_unet_x.oft_blocks.2": ("oft_unet_x", "", "oft_blocks.2", "oft_blocks.2"),
    "blocks.3.diff_m": ("blocks.3.modulation", "", "diff", "diff_m"),
    "blocks.3.norm3.diff_b": ("blocks.3.norm3", "", "diff_b", "diff_b"),
    "transformer.lora_alpha": ("transformer", "", "alpha", "lora_alpha"),
    "x.a1.weight": ("x", "", "a1", "a1.weight"),
    "alpha": ("", "", "alpha", "alpha"),  # of the whole file
    "lora_alpha": ("", "", "alpha", "lora_alpha"),
    ".lora_A.weight": ("", "", "down", "lora_A.weight"),
    "x_lora.alpha": ("x", "", "alpha", "_lora.alpha"),  # not the module x_lora with an alpha
    "x.alpha.mine": ("x", "mine", "alpha", "alpha.<adapter>"),
    "x.lora_A.weight.weight": ("x", "weight", "down", "lora_A.<adapter>.weight"),
    "x.lora_A.lora_B.weight": (
        "x.lora_A",
        "",
        "up",
        "lora_B.weight",
    ),  # the longest spelling at the end wins
    "x.lora_A.scale": (
        "x",
        "scale",
        "down",
        "lora_A.<adapter>",
    ),  # an adapter may be called as a role is
    # `weight` is a role too: behind a marker, and a name between them, it is not
    "a.lora_magnitude_vector.my.style.weight": (
        "a",
        "my.style",
        "magnitude",
        "lora_magnitude_vector.<adapter>.weight",
    ),
    "lora_A.weight": (
        "lora_A",
        "",
        "weight",
        "weight",
    ),  # a module may be called anything; the role needs a module before it
}


@pytest.mark.parametrize("key", SPELLED)
def test_spelling(key):
    assert parse_key(key) == SPELLED[key]


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "..",
        "weight",
        ".weight",
        "lora_A",
        "x",
        "x.y",
        "bundle_emb.token.vectors",
        "x." + "y" * 100_000,
    ],
)
def test_what_is_no_role_has_none_and_raises_nothing(key):
    parsed = parse_key(key)
    assert parsed == (key, "", None, "") or parsed.role == "weight"


def test_a_name_of_more_words_than_any_key_has():
    """The role stands at the end, whatever stands before it."""
    module = ".".join(map(str, range(100)))
    assert parse_key(f"{module}.lora_A.a.b.weight") == (
        module,
        "a.b",
        "down",
        "lora_A.<adapter>.weight",
    )
    assert parse_key(f"{module}.lora_A.{module}.weight").role == "weight"


def test_every_spelling_of_the_table_is_read_as_its_role():
    for tail, (role, addition) in role_spellings().exact.items():
        assert parse_key(f"some.module.{tail}") == (
            f"some.module{'.' + addition if addition else ''}",
            "",
            role,
            tail,
        )


def test_every_ending_that_is_glued_to_a_module_is_read_as_its_role():
    for ending, stays, role in role_spellings().glued:
        assert parse_key(f"some.module{ending}") == (
            f"some.module{ending[:stays]}",
            "",
            role,
            ending[stays:].removeprefix("."),
        )


def test_every_spelling_with_an_adapters_name_is_read_as_its_role():
    for (marker, last), role in role_spellings().named.items():
        ending = f".{last}" if last else ""
        assert parse_key(f"some.module.{marker}.my.style{ending}") == (
            "some.module",
            "my.style",
            role,
            f"{marker}.<adapter>{ending}",
        )


@pytest.mark.parametrize(
    "lines",
    ["up x\n\ndown x", "up a\n# y\ndown x*.b x*.b # z\nup x*.b", "up x@a\nup x@b", "up x*\ndown x"],
)
def test_a_spelling_of_two_roles_is_refused_with_its_line(tmp_path, lines):
    path = tmp_path / "roles.table"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=(
            rf"roles.table, line {len(lines.splitlines())}: x\S* already belongs to another role."
            r" Remove one"
        ),
    ):
        role_spellings(path)


def test_a_spelling_may_stand_twice_for_one_role(tmp_path):
    path = tmp_path / "roles.table"
    path.write_text("up x x*.b\nup x*.b y # up z", encoding="utf-8")
    assert set(role_spellings(path).exact) == {"x", "x.b", "y"}


def test_header_only_work_imports_no_torch():
    root = Path(__file__).resolve().parents[2]
    code = (
        "import importlib.util, sys\nspec = importlib.util.spec_from_file_location('pack',"
        f" r'{root / '__init__.py'}', submodule_search_locations=[r'{root}'])\nmodule ="
        " importlib.util.module_from_spec(spec); sys.modules['pack'] = module;"
        " spec.loader.exec_module(module)\nfrom pack.planning.plan import make_plan\nfrom"
        " pack.report.load_report import Report\nfrom pack.planning.target_model import"
        " TargetModel\nprint(Report(make_plan({'lora_unet_single_blocks_0_linear1.lora_down.weight': (4,"
        " 8)}, {}, TargetModel())).as_json())\nassert not {'torch', 'comfy', 'safetensors', 'numpy'}"
        " & sys.modules.keys(), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("tail", ["lora_A.weight", "lora_B.weight", "lora_up.weight"])
def test_the_endings_of_most_keys_are_known_at_a_glance(tail):
    """A longer spelling that merely ends in the same letters must not slow every file down."""
    assert tail in role_spellings().final
    assert parse_key(f"blocks.0.super{tail}").spelling != tail
