"""`fix` as people use it: a folder of broken files in one go, good ones left alone, nothing
overwritten, nothing half done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lora_locksmith import api, cli
from lora_locksmith.commands import fix
from lora_locksmith.files.header import LoraFileError, read_header
from lora_locksmith.messages import Speaker
from lora_locksmith.report.inspection import inspect_file
from reports.small_files import flux_lora
from safetensors.torch import load_file, save_file

CLI = Path(__file__).resolve().parents[2] / "cli.py"
RANK = 2
BROKEN, GOOD = "transformer.base_model.model.", "transformer."


def lora(start, seed=1):
    """A LoRA for FLUX.1 under these prefixes: feed-forward layers of all blocks, and q, k and v of
    one.
    """
    shapes = flux_lora(RANK, start)
    for name in ("to_q", "to_k", "to_v"):
        module = f"{start}transformer_blocks.3.attn.{name}"
        shapes |= {f"{module}.lora_A.weight": (RANK, 3072), f"{module}.lora_B.weight": (3072, RANK)}
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator).half() for key, shape in shapes.items()}


@pytest.fixture(scope="module", autouse=True)
def threads():
    """The command chooses how many threads there are, for its own process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys):
    """run("--to", ...) -> (exit code, one dictionary for each file)."""

    def call(*arguments):
        parser = argparse.ArgumentParser()
        fix.add(parser.add_subparsers(), Speaker())
        code = fix.run(parser.parse_args(["fix", "--json", *map(str, arguments)]))
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return call


@pytest.fixture
def folder(tmp_path):
    """A broken file, a good one, one below, one that is no LoRA, one that is no safetensors."""
    place = tmp_path / "loras"
    (place / "more").mkdir(parents=True)
    save_file(lora(BROKEN), place / "broken.safetensors", {"ss_tag_frequency": "{}"})
    save_file(lora(BROKEN, 2), place / "more" / "below.safetensors")
    save_file(lora(GOOD), place / "good.safetensors")
    return place


def whole(path):
    found = inspect_file(path)
    return not found.gains and found.report.modules["placed"] == found.report.modules["total"] > 0


def test_a_folder_in_one_go(run, folder):
    good = (folder / "good.safetensors").read_bytes()
    code, told = run(folder)
    assert code == 0 and len(told) == 2
    assert not whole(folder / "broken.safetensors") and whole(folder / "broken.comfyui.safetensors")
    assert "unchanged" in told[1]["told"] and (folder / "good.safetensors").read_bytes() == good
    assert "now loads it completely" in told[0]["told"]
    metadata = read_header(folder / "broken.comfyui.safetensors").metadata
    assert (
        metadata["ss_tag_frequency"] == "{}"
        and metadata["locksmith.source"] == "broken.safetensors"
    )
    assert len(metadata["locksmith.source_sha256"]) == 64
    again = run(folder)
    assert [outcome["code"] for outcome in again[1]] == [0, 1, 0]
    assert "already" in again[1][1]["told"] and "--overwrite" in again[1][1]["told"]


def test_people_read_what_was_done_and_a_count_of_the_rest(folder, capsys):
    save_file(
        {f"{part}.conv_in.weight": torch.zeros(4, 4) for part in ("encoder", "decoder")},
        folder / "vae.safetensors",
    )
    assert cli.main(["fix", "--recursive", str(folder), str(folder / "good.safetensors")]) == 1
    told, counts = capsys.readouterr()
    assert [line.partition(": ")[0].rpartition(os.sep)[2] for line in told.splitlines()] == [
        "broken.safetensors",
        "good.safetensors",
        "below.safetensors",
        "vae.safetensors",
        "good.safetensors",
    ]
    assert "models/vae" in told and counts == "5 files: 2 need nothing, 2 written, 1 not written.\n"
    assert cli.main(["fix", "--dry-run", "--in-place", str(folder)]) == 1
    assert "4 files: 2 need nothing, 1 would be written, 1 not written." in capsys.readouterr().err


def test_into_another_folder_and_below(run, folder, tmp_path):
    code, told = run(folder, "--recursive", "--output", tmp_path / "new")
    assert code == 0 and len(told) == 3
    assert whole(tmp_path / "new" / "broken.safetensors") and whole(
        tmp_path / "new" / "more" / "below.safetensors"
    )
    assert not (tmp_path / "new" / "good.safetensors").exists()


def test_in_place_with_a_backup(run, folder):
    file = folder / "broken.safetensors"
    before = file.read_bytes()
    assert run(file, "--in-place", "--backup")[0] == 0
    assert whole(file) and (folder / "broken.safetensors.bak").read_bytes() == before
    file.write_bytes(before)
    code, told = run(file, "--in-place", "--backup")
    assert code == 1 and "already" in told[0]["told"]
    assert file.read_bytes() == before == (folder / "broken.safetensors.bak").read_bytes()


def test_a_backup_alone_is_wrong_use(run, folder):
    with pytest.raises(LoraFileError, match="--in-place"):
        run(folder, "--backup")


def test_a_dry_run_writes_nothing(run, folder):
    before = sorted(folder.rglob("*"))
    code, told = run(folder, "--recursive", "--dry-run")
    assert code == 0 and sum("would be written" in outcome["told"] for outcome in told) == 2
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_tells_that_the_new_file_is_there_already(run, folder):
    taken = folder / "broken.comfyui.safetensors"
    taken.write_bytes(b"mine")
    code, told = run(folder / "broken.safetensors", "--dry-run")
    assert (
        code == 1 and f"there is a {taken.name} already; --overwrite replaces it" in told[0]["told"]
    )
    assert (
        run(folder / "broken.safetensors", "--dry-run", "--overwrite")[0] == 0
        and taken.read_bytes() == b"mine"
    )
    assert run(folder / "broken.safetensors", "--dry-run", "--to", "peft")[0] == 0
    (folder / "broken.peft").mkdir()
    (folder / "broken.peft" / "adapter_model.safetensors").touch()
    assert run(folder / "broken.safetensors", "--dry-run", "--to", "peft")[0] == 1


def test_a_folder_does_not_pass_over_numbers_that_are_none(run, folder):
    tensors = lora(GOOD)
    key = next(key for key in tensors if key.endswith("lora_B.weight"))
    tensors[key][5, 1] = float("nan")
    save_file(tensors, folder / "good.safetensors")
    code, told = run(folder)
    outcome = told[1]
    assert (
        code == 1
        and outcome["file"].endswith("good.safetensors")
        and key in outcome["told"]
        and "NaN" in outcome["told"]
    )


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_settings_beside_a_file_that_nobody_can_read_are_told(run, folder, content):
    (folder / "adapter_config.json").write_bytes(content)
    found = inspect_file(folder / "good.safetensors")
    assert any(
        "adapter_config.json" in caution and "cannot be read" in caution
        for caution in found.report.cautions
    )
    code, told = run(folder / "broken.safetensors")
    assert code == 0 and "The adapter_config.json beside the file cannot be read" in told[0]["told"]
    save_file(
        {
            "lora_unet_double_blocks_0_img_mlp_0.alpha": torch.tensor(1.0),
            "lora_unet_double_blocks_0_img_mlp_0.lora_down.weight": torch.ones(1, 3072),
            "lora_unet_double_blocks_0_img_mlp_0.lora_up.weight": torch.ones(12288, 1),
        },
        folder / "kohya.safetensors",
    )
    assert not inspect_file(folder / "kohya.safetensors").report.cautions, "its strength is in it"


QUICK = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    sys.exit(end.code or ("torch._dynamo" in sys.modules))
"""


def test_folding_a_strength_does_not_load_torchs_compiler(folder):
    """It takes seconds, and is asked for by whatever multiplies tensors without numbers."""
    tensors = lora(GOOD) | {"transformer.transformer_blocks.3.attn.to_q.alpha": torch.tensor(0.5)}
    save_file(tensors, folder / "good.safetensors")
    arguments = [CLI, "fix", folder / "good.safetensors", "--to", "simpletuner"]
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "good.simpletuner.safetensors").is_file()


def test_a_named_dialect_is_written_even_of_a_good_file(run, folder):
    code, told = run(folder / "good.safetensors", "--to", "kohya", "--dtype", "bf16")
    made = load_file(told[0]["written"])
    assert code == 0 and all(key.startswith("lora_unet_") for key in made)
    assert made["lora_unet_double_blocks_3_img_attn_qkv.lora_up.weight"].shape == (9216, 3 * RANK)
    assert made["lora_unet_double_blocks_3_img_attn_qkv.lora_up.weight"].dtype == torch.bfloat16
    code, told = run(folder / "good.safetensors", "--to", "simpletuner")
    assert code == 0 and "already" in told[0]["told"]


@pytest.mark.parametrize("dialect", ["simpletuner", "diffusion_pipe", "diffusers"])
def test_several_ranks_are_told_where_the_trainer_does_not_read_them(run, folder, dialect):
    """SimpleTuner and diffusion-pipe: see key_maps/written.table; diffusers reads them."""
    source, module = folder / "several.safetensors", "transformer.transformer_blocks.3.attn.to_q"
    tensors = lora(GOOD)
    for role, axis in (("lora_A", 0), ("lora_B", 1)):
        key = f"{module}.{role}.weight"
        tensors[key] = torch.cat([tensors[key]] * 2, axis).contiguous()
    for alike in (False, True):
        save_file(lora(GOOD) if alike else tensors, source)
        for options in (["--dry-run"], []):
            code, told = run(source, "--to", dialect, *options)
            warned = not alike and dialect != "diffusers"
            assert code == 0 and ("several ranks" in told[0]["told"]) == warned


def test_the_same_names_are_not_enough_where_the_strength_would_be_read_elsewhere(run, folder):
    settings = {
        "lora_adapter_metadata": json.dumps(
            {"transformer.r": RANK, "transformer.lora_alpha": 3 * RANK}
        )
    }
    source = folder / "scaled.safetensors"
    save_file(lora(GOOD), source, settings)
    assert "already" in run(source, "--to", "diffusers")[1][0]["told"]
    code, told = run(source, "--to", "simpletuner")
    name = "transformer.transformer_blocks.3.attn.to_q.lora_B.weight"
    assert code == 0 and torch.equal(
        load_file(told[0]["written"])[name], 3 * load_file(source)[name]
    )
    assert "lora_adapter_metadata" not in read_header(told[0]["written"]).metadata


def test_a_text_encoder_without_a_name_is_left_out_when_told(run, folder):
    source = folder / "with_clip.safetensors"
    clip = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    save_file(
        lora(GOOD)
        | {
            f"{clip}.lora_A.weight": torch.ones(RANK, 768),
            f"{clip}.lora_B.weight": torch.ones(768, RANK),
        },
        source,
    )
    code, told = run(source, "--to", "peft")
    assert (
        code == 1
        and "no names for the text encoder clip_l" in told[0]["told"]
        and "--drop" in told[0]["told"]
    )
    code, told = run(source, "--to", "peft", "--drop")
    assert (
        code == 1 and told[0]["told"].startswith("2 keys are left out (") and told[0]["lost"] == 2
    )
    assert whole_for_us(told[0]["written"])


def test_peft_gets_a_folder_with_its_settings(run, folder):
    code, told = run(folder / "good.safetensors", "--to", "peft")
    assert code == 0 and told[0]["written"].endswith("adapter_model.safetensors")
    config = json.loads((folder / "good.peft" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == RANK
    assert whole_for_us(folder / "good.peft" / "adapter_model.safetensors")
    assert run(folder / "good.safetensors", "--to", "peft", "--in-place")[0] == 1


def whole_for_us(path):
    report = inspect_file(path).report
    whole = report.modules["placed"] == report.modules["total"] > 0
    return whole and report.trainer == "PEFT" and "in the file's header" in report.strength_source


def test_what_cannot_be_read_or_said_does_not_stop_the_rest(run, folder):
    (folder / "a_text.safetensors").write_text("no LoRA at all")
    save_file({"anything": torch.zeros(3)}, folder / "b_other.safetensors")
    tensors = lora(GOOD) | {
        "transformer.nowhere.lora_A.weight": torch.zeros(4, 8),
        "transformer.nowhere.lora_B.weight": torch.zeros(8, 4),
    }
    save_file(tensors, folder / "c_partly.safetensors")
    code, told = run(folder)
    assert code == 2 and [outcome["code"] for outcome in told] == [2, 1, 0, 1, 0]
    assert "nowhere" in told[3]["told"] and "holds no known LoRA" in told[1]["told"]
    code, told = run(folder / "c_partly.safetensors", "--drop")
    assert (
        code == 1 and told[0]["told"].startswith("2 keys are left out (") and told[0]["lost"] == 2
    )
    assert not [key for key in load_file(told[0]["written"]) if "nowhere" in key]


def test_a_file_that_fits_several_models_is_not_guessed_at(run, tmp_path):
    save_file(
        {
            "transformer.blocks.0.lora_A.weight": torch.ones(2, 3),
            "transformer.blocks.0.lora_B.weight": torch.ones(3, 2),
        },
        tmp_path / "a.safetensors",
    )
    code, told = run(tmp_path)
    assert code == 1 and "--against" in told[0]["told"]


def test_models_that_would_get_other_names_are_not_chosen_between(run, tmp_path):
    shapes = {}
    for block in range(2):
        for layer in (
            "to_q",
            "to_k",
        ):  # as FLUX.1, Qwen-Image and others have them, fused in one and not in the other
            name = f"transformer.transformer_blocks.{block}.attn.{layer}"
            shapes |= {f"{name}.lora_A.weight": (2, 3072), f"{name}.lora_B.weight": (3072, 2)}
    save_file(
        {key: torch.ones(shape).half() for key, shape in shapes.items()}, tmp_path / "a.safetensors"
    )
    code, told = run(tmp_path / "a.safetensors", "--to", "kohya")
    assert (
        code == 1
        and "its keys would differ: Qwen-Image, Mage-Flow. " in told[0]["told"]
        and "--against" in told[0]["told"]
    )
    assert len(list(tmp_path.iterdir())) == 1


def probably_flux(start: str) -> dict[str, torch.Tensor]:
    """Attention that FLUX.1 has, and others too, in a size that nobody published."""
    attention = ("to_q", "to_k", "to_v")
    double = (*attention, "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    tensors = {}
    for block in range(2):
        layers = [f"transformer_blocks.{block}.attn.{layer}" for layer in double]
        layers += [f"single_transformer_blocks.{block}.attn.{layer}" for layer in attention]
        for layer in layers:
            tensors[f"{start}{layer}.lora_A.weight"] = torch.ones(2, 640)
            tensors[f"{start}{layer}.lora_B.weight"] = torch.ones(640, 2)
    return tensors


def test_a_file_that_is_most_likely_for_one_model_is_written_for_it(run, tmp_path):
    save_file(probably_flux("transformer."), tmp_path / "a.safetensors")
    code, told = run(tmp_path / "a.safetensors", "--to", "kohya")
    assert code == 0, told
    keys = load_file(told[0]["written"]).keys()
    assert any(key.startswith("lora_unet_double_blocks_0_img_attn_qkv") for key in keys)


def test_where_keys_would_differ_for_less_likely_models_that_is_said(run, tmp_path):
    save_file(probably_flux("base_model.model."), tmp_path / "a.safetensors")
    code, told = run(tmp_path / "a.safetensors", "--to", "diffusers")
    assert code == 0, told
    assert told[0]["told"].startswith("The keys are those of FLUX.1, which the file is most likely")
    assert "; for FLUX.2 they would differ." in told[0]["told"], "by its title"
    written = api.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    assert written.caution.startswith("The keys are those of FLUX.1")


def test_a_file_that_keeps_its_names_with_a_doubt_is_counted_among_those_that_have_them(
    folder, capsys
):
    module = "transformer.transformer_blocks.3.attn.to_q"
    tensors = lora(GOOD)
    for role, axis in (("lora_A", 0), ("lora_B", 1)):
        key = f"{module}.{role}.weight"
        tensors[key] = torch.cat([tensors[key]] * 2, axis).contiguous()
    alone = folder / "alone"
    alone.mkdir()
    save_file(tensors, alone / "several.safetensors")
    assert cli.main(["fix", "--to", "simpletuner", str(alone)]) == 0
    told, counts = capsys.readouterr()
    assert "several ranks" in told and counts == "1 file: 1 has these names already.\n"
    assert [path.name for path in alone.iterdir()] == ["several.safetensors"]
