"""The routes the front end asks, on the real server: one file, the library, saving; what they
refuse, and that nothing waits for them.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sqlite3
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from functools import partial
from pathlib import Path

import comfy_models
import comfy_server
import pytest
from hollow_files import write_hollow
from PIL import Image
from reports.small_files import flux_lora
from routes import Routes
from safetensors.torch import load_file, save
from tiny_models import BROKEN_LORA, CLIP_L, DIFFUSERS_LORA, FLUX, simpletuner_broken_lora

SDXL = {
    f"lora_unet_input_blocks_8_1_transformer_blocks_{block}_attn2_to_k.lora_{side}.weight": shape
    for block in range(10)
    for side, shape in (("down", (4, 2048)), ("up", (1280, 4)))
}
BRIEF = {
    "file",
    "bytes",
    "verdict",
    "state",
    "family",
    "made_for",
    "trainer",
    "kinds",
    "rank",
    "placed",
    "total",
    "stock",
    "gains",
    "losses",
    "problem",
    "error",
    "changed",
    "cautions",
    "contradiction",
    "trainer_guessed",
    "pickled",
    "has_picture",
    "trigger_words",
}
OUTSIDE = [
    "../secret.safetensors",
    "/etc/passwd",
    "sub/../simpletuner_broken_keys.safetensors",
    "./simpletuner_broken_keys.safetensors",
    "a\0b",
    "none.safetensors",
    "",
    "..",
    "\udcff",
    "C:\\x.safetensors",
    "//" + BROKEN_LORA,
]


@pytest.fixture(scope="module")
def routes(server) -> Routes:
    return Routes(server)


@pytest.fixture
def loras(server):
    """The loras folder; what a test puts into it is removed."""
    folder = server.base / "models" / "loras"
    before = set(folder.rglob("*"))
    yield folder
    for path in sorted(set(folder.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def refused(answer: tuple[int, dict], status: int) -> str:
    """What a refusal says; it must have HTTP's number `status`, a fault and a remedy."""
    found, told = answer
    assert found == status, told
    assert told.keys() == {"error", "remedy"} and len(told["error"]) > 5 and len(told["remedy"]) > 5
    assert "Traceback" not in told["error"]
    return f"{told['error']}. {told['remedy']}"


# file


def test_a_file_is_told_in_brief(routes, loras):
    write_hollow(loras / "brief.safetensors", flux_lora(start="transformer.base_model.model."))
    status, told = routes.ask("file", name="brief.safetensors")
    assert status == 200 and told.keys() == BRIEF | {"fit", "advised", "words_to_use"}
    assert told["fit"] is None and told["advised"] is None
    assert (
        told["file"] == "brief.safetensors"
        and told["error"] == ""
        and told["kinds"] == "LoRA"
        and told["rank"] == "4"
    )
    assert (
        (told["placed"], told["total"], told["stock"]) == (57, 57, 0)
        and told["verdict"] == "loads"
        and told["problem"] is True
    )
    assert (
        told["gains"] == ["57 layers load that the stock loader leaves out"]
        and "SimpleTuner" in told["trainer"]
        and "FLUX" in told["made_for"]
    )
    assert (
        told["family"] == "flux1" and told["bytes"] == (loras / "brief.safetensors").stat().st_size
    )


def test_the_strength_that_lies_beside_a_file_is_told(routes, loras):
    write_hollow(loras / "advised.safetensors", flux_lora())
    for weight in (0.7, 0.65):  # it may change while the file stays
        text = json.dumps({"activation text": "", "preferred weight": weight})
        (loras / "advised.json").write_text(text, "utf-8")
        told = routes.ask("file", name="advised.safetensors")[1]
        assert told["advised"] == {"value": weight, "file": "advised.json"}


def test_a_file_is_told_in_full(routes, loras):
    words = {
        "ss_tag_frequency": json.dumps({"10_zwx cat": {"zwx cat": 10}}),
        "modelspec.trigger_phrase": "zwx <b>cat</b>",
    }
    write_hollow(loras / "full.safetensors", flux_lora(), words)
    status, told = routes.ask("file", name="full.safetensors", full=1)
    assert status == 200 and told.keys() == BRIEF | {
        "fit",
        "inspection",
        "layer_weights",
        "markdown",
        "advised",
        "words_to_use",
    }
    assert told["words_to_use"] == ["zwx <b>cat</b>", "zwx cat"]
    assert (
        told["inspection"]["file"] == "full.safetensors"
        and told["inspection"]["family"]["name"] == "flux1"
    )
    assert "full.safetensors" in told["markdown"] and "zwx <b>cat</b>" in told["trigger_words"]
    assert str(loras) not in json.dumps(told), (
        "a path of the server is no business of the front end"
    )


def test_numbers_that_json_lacks_do_not_reach_the_front_end(routes, loras):
    shapes = {
        f"transformer.transformer_blocks.0.attn.to_q.{role}": shape
        for role, shape in (
            ("lora_A.weight", (4, 3072)),
            ("lora_B.weight", (3072, 4)),
            ("alpha", ("F32",)),
        )
    }
    values = {name: struct.pack("<f", float("nan")) for name in shapes if name.endswith("alpha")}
    metadata = {
        "ss_network_alpha": "NaN",
        "ss_tag_frequency": '{"a": {"b": NaN}}',
        "ss_x": "\ud800 half a character",
    }
    write_hollow(loras / "nan.safetensors", shapes, metadata, values=values)
    status, told = routes.ask("file", name="nan.safetensors", full=1)
    assert status == 200 and told["inspection"]["health"]


@pytest.mark.parametrize(
    ("lora", "placed", "total", "mismatch"),
    [(BROKEN_LORA, 22, 22, ""), (DIFFUSERS_LORA, 22, 22, ""), ("sdxl.safetensors", 0, 10, "SDXL")],
)
def test_a_file_is_held_against_a_model(routes, loras, lora, placed, total, mismatch):
    write_hollow(loras / "sdxl.safetensors", SDXL)
    for folder in ("diffusion_models", "unet"):  # the second is the host's old word for the first
        status, told = routes.ask("file", name=lora, model_folder=folder, model=FLUX)
        assert status == 200
        fit = told["fit"]
        assert (fit["placed"], fit["total"]) == (placed, total) and "FLUX.1" in fit["model"]
        assert fit["state"] == ("good" if placed else "bad")
        assert (
            bool(fit["mismatch"]) == bool(mismatch) and mismatch.lower() in fit["mismatch"].lower()
        )


def test_a_file_for_the_other_stage_of_a_model_is_told(routes, loras, server, comfy):
    """By the model's name, as shapes do not tell the two apart; it loads all the same."""
    model = "wan2.2_t2v_low_noise_14B.safetensors"
    weights = {
        name.removeprefix("diffusion_model."): shape
        for name, shape in comfy_models.shapes("wan21_t2v_14b").items()
    }
    write_hollow(server.base / "models" / "diffusion_models" / model, weights)
    shapes = {
        f"diffusion_model.blocks.{block}.self_attn.q.lora_{side}.weight": shape
        for block in range(40)
        for side, shape in (("A", (4, 5120)), ("B", (5120, 4)))
    }
    told = {}
    for name in ("mine_high_noise", "mine_low_noise", "mine"):
        write_hollow(loras / f"{name}.safetensors", shapes)
        status, answer = routes.ask(
            "file", name=f"{name}.safetensors", model_folder="diffusion_models", model=model
        )
        assert status == 200 and answer["fit"]["state"] == "good", answer
        told[name] = answer["fit"]["stage"]
    assert told.pop("mine_high_noise") == (
        "It says it is for the high noise model; by its name, the connected model is the low noise"
        " one."
    )
    assert set(told.values()) == {""}


def test_what_belongs_to_a_text_encoder_is_not_missed_in_a_file_of_the_model_alone(routes, loras):
    module = "text_model.encoder.layers.0.self_attn.q_proj"
    encoder = {
        f"lora_te1_{module.replace('.', '_')}.lora_{side}.weight": shape
        for side, shape in (("down", (4, 768)), ("up", (768, 4)))
    }
    tiny = {name: tuple(tensor.shape) for name, tensor in simpletuner_broken_lora().items()}
    write_hollow(loras / "both.safetensors", tiny | encoder)
    told = routes.ask("file", name="both.safetensors", model_folder="diffusion_models", model=FLUX)[
        1
    ]
    assert told["total"] == 23 and told["fit"] == {
        "placed": 22,
        "total": 22,
        "model": told["fit"]["model"],
        "family": told["fit"]["family"],
        "mismatch": "",
        "lacking": "",
        "verdict": "",
        "remedy": "",
        "stage": "",
        "stock": 0,
        "state": "good",
        "needs_clip": False,
    }
    counts = {}
    for clip in "01":
        fit = routes.ask(
            "file", name="both.safetensors", model_folder="diffusion_models", model=FLUX, clip=clip
        )[1]["fit"]
        counts[clip] = fit["placed"], fit["total"], fit["state"], bool(fit["remedy"])
    assert counts == {"0": (22, 23, "part", True), "1": (23, 23, "good", False)}


def test_a_file_of_a_text_encoder_alone_needs_a_clip(routes, loras):
    """It does not fit a model whose file has none: nothing of it would load."""
    module = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    shapes = {f"{module}.lora_down.weight": (4, 768), f"{module}.lora_up.weight": (768, 4)}
    write_hollow(loras / "encoder.safetensors", shapes)
    name, folder = "encoder.safetensors", "diffusion_models"
    fit = routes.ask("file", name=name, model_folder=folder, model=FLUX)[1]["fit"]
    assert (fit["placed"], fit["total"], fit["needs_clip"]) == (0, 0, True)
    whole = routes.ask("file", name=BROKEN_LORA, model_folder=folder, model=FLUX)[1]["fit"]
    assert not whole["needs_clip"]


def test_a_model_whose_header_does_not_tell_what_it_is_gives_no_fit(routes, server):
    models = server.base / "models" / "diffusion_models"
    (models / "old.ckpt").write_bytes(b"PK\x03\x04 a pickle")
    (models / "cut.safetensors").write_bytes((models / FLUX).read_bytes()[:1000])
    shutil.copy(server.base / "models" / "text_encoders" / CLIP_L, models / "encoder.safetensors")
    try:
        for model in ("old.ckpt", "cut.safetensors", "encoder.safetensors"):
            status, told = routes.ask(
                "file", name=BROKEN_LORA, model_folder="diffusion_models", model=model
            )
            assert status == 200 and told["fit"] is None and told["total"] == 22
    finally:
        for model in ("old.ckpt", "cut.safetensors", "encoder.safetensors"):
            (models / model).unlink()


@pytest.mark.parametrize("folder", ["checkpoints", "diffusion_models", "unet_gguf"])
def test_a_model_that_is_not_there_gives_no_fit(routes, folder):
    """As in a workflow that was just opened; unet_gguf is a folder of another pack."""
    status, told = routes.ask("file", name=BROKEN_LORA, model_folder=folder, model="no.safetensors")
    assert status == 200 and told["fit"] is None and told["total"] == 22


@pytest.mark.parametrize("name", OUTSIDE)
def test_only_listed_names_are_read(routes, loras, name):
    (loras.parent / "secret.safetensors").write_bytes(save(simpletuner_broken_lora()))
    try:
        refused(routes.ask("file", name=name), 404 if name else 400)
        refused(routes.ask("file", name=name, full=1), 404 if name else 400)
        if name:
            told = routes.ask(
                "file", name=BROKEN_LORA, model_folder="diffusion_models", model=name
            )[1]
            assert told["fit"] is None
        refused(routes.tell({"name": name, "dialect": "comfyui", "filename": "out"}), 404)
        assert not (loras / "out.safetensors").exists()
    finally:
        (loras.parent / "secret.safetensors").unlink()


@pytest.mark.parametrize(
    "folder",
    ["loras", "vae", "configs", "custom_nodes", "none", "../models", "\0", ""],
)
def test_only_folders_of_models_are_read(routes, folder):
    refused(routes.ask("file", name=BROKEN_LORA, model_folder=folder, model=BROKEN_LORA), 404)


def test_files_that_cannot_be_read_say_why_and_no_pickle_is_opened(routes, loras):
    marker = loras / "opened"
    (loras / "old.pt").write_bytes(b"cposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    for number, name in enumerate(("old2.pkl", "old3.bin", "old4.safetensors")):
        (loras / name).write_bytes((loras / "old.pt").read_bytes() + bytes(number))
    (loras / "empty.safetensors").touch()
    (loras / "page.safetensors").write_bytes(
        b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>" * 9
    )
    rows = routes.library()
    for name in (
        "old.pt",
        "old2.pkl",
        "old3.bin",
        "old4.safetensors",
        "empty.safetensors",
        "page.safetensors",
    ):
        status, told = routes.ask(
            "file", name=name, full=1, model_folder="diffusion_models", model=FLUX
        )
        assert status == 200 and told["verdict"] == "cannot be read" and told["problem"] is True
        assert len(told["error"]) > 20 and ". " in told["error"]
        assert told["inspection"] is None and told["fit"] is None
        assert rows[name]["error"] == told["error"]
    assert "pickle" in rows["old.pt"]["error"] and not marker.exists()


def test_a_file_that_changes_is_read_anew(routes, loras):
    write_hollow(loras / "changing.safetensors", flux_lora(4))
    assert routes.ask("file", name="changing.safetensors", full=1)[1]["rank"] == "4"
    write_hollow(loras / "changing.safetensors", flux_lora(16))
    told = routes.ask("file", name="changing.safetensors", full=1)[1]
    assert told["rank"] == "16" and told["inspection"]["ranks"] == {"16": 57}
    (loras / "changing.safetensors").unlink()
    refused(routes.ask("file", name="changing.safetensors"), 404)


def test_what_is_shown_comes_in_the_language_that_is_asked_for(routes, loras):
    wish = {"name": "nowhere.safetensors"}
    english = refused(routes.ask("file", **wish), 404)
    assert refused(routes.ask("file", **wish, language="xx"), 404) == english
    status, answer = routes.ask("file", **wish, language="zh-TW")
    texts = answer["translations"]["zh"]
    assert status == 404 and f"{answer['error']}. {answer['remedy']}" == english
    assert texts.keys() == {answer["error"], answer["remedy"]}
    assert all(re.search("[\u4e00-\u9fff]", text) for text in texts.values())

    write_hollow(loras / "brief.safetensors", flux_lora())
    full = routes.ask("file", name="brief.safetensors", full=1, language="zh")[1]
    assert full["markdown"] in full["translations"]["zh"]
    assert "translations" not in routes.ask("file", name="brief.safetensors", full=1)[1]


# library


def test_the_library_has_every_file_once_and_can_be_asked_for_in_parts(routes, loras):
    (loras / "sub" / "\u4e2d\u6587").mkdir(parents=True)
    nested = os.path.join(
        "sub",
        "\u4e2d\u6587",
        "<b>'\"& \U0001f511.safetensors" if os.name != "nt" else "nested.safetensors",
    )
    write_hollow(loras / nested, flux_lora())
    rows = routes.library()
    told = routes.ask("library")[1]
    assert (
        told.keys()
        == {"rows", "done", "total", "running", "scan", "before", "same", "error", "dialects"}
        and "comfyui" in told["dialects"]
    )
    assert {nested, BROKEN_LORA, DIFFUSERS_LORA} <= rows.keys() and len(rows) == len(told["rows"])
    assert all(row.keys() == BRIEF for row in rows.values())
    assert rows[nested]["changed"] == pytest.approx((loras / nested).stat().st_mtime)
    brief = routes.ask("file", name=nested)[1]
    brief = {
        key: value for key, value in brief.items() if key not in ("fit", "advised", "words_to_use")
    }
    assert rows[nested] == brief
    last = routes.ask("library", since=told["done"] - 1)[1]
    assert (
        last["rows"] == told["rows"][-1:]
        and last["scan"] == told["scan"]
        and last["done"] == told["done"]
    )
    assert routes.ask("library", since=10**6)[1]["rows"] == []


def test_a_refresh_finds_what_is_new_changed_and_gone_and_reads_nothing_else(routes, loras):
    for name in ("same.safetensors", "changed.safetensors", "gone.safetensors"):
        write_hollow(loras / name, flux_lora(4))
    first = routes.library()
    assert {
        first[name]["rank"]
        for name in ("same.safetensors", "changed.safetensors", "gone.safetensors")
    } == {"4"}
    about = (loras / "same.safetensors").stat()
    (loras / "same.safetensors").write_bytes(bytes(about.st_size))
    os.utime(loras / "same.safetensors", ns=(about.st_atime_ns, about.st_mtime_ns))
    write_hollow(loras / "changed.safetensors", flux_lora(16))
    (loras / "gone.safetensors").unlink()
    write_hollow(loras / "new.safetensors", flux_lora(8))
    assert routes.library(refresh=False) == first, "without a refresh the library stays as it was"
    after = routes.library()
    assert after["same.safetensors"] == first["same.safetensors"]
    assert (
        after["changed.safetensors"]["rank"] == "16"
        and after["new.safetensors"]["rank"] == "8"
        and "gone.safetensors" not in after
    )


def rows_in(index: Path) -> int:
    with closing(sqlite3.connect(index)) as database:
        return database.execute("SELECT count(*) FROM files").fetchone()[0]


@pytest.mark.parametrize("damage", [b"no index at all" * 99, b"", None])
def test_a_damaged_index_costs_nothing_but_time(routes, server, damage):
    index = server.base / "user" / "lora-locksmith" / "library.sqlite"
    before = routes.library()
    assert rows_in(index) == len(before)
    logged = server.log_text().count("library's index was damaged")
    with open(index, "r+b") as file:
        file.truncate(len(damage) if damage is not None else 5000)
        file.write(damage or b"")
    assert routes.library() == before
    assert rows_in(index) == len(before)
    lines = server.log_text().count("library's index was damaged") - logged
    assert lines == (damage != b""), "one line says that it was set aside"


def test_a_folder_where_the_index_should_be_costs_nothing_but_time(routes, server):
    index = server.base / "user" / "lora-locksmith" / "library.sqlite"
    before = routes.library()
    index.rename(index.with_name("away"))
    index.mkdir()
    try:
        assert routes.library() == before and index.is_dir()
    finally:
        index.rmdir()
        index.with_name("away").rename(index)
    assert "cannot be used (it is no file)" in server.log_text()


def test_what_lies_beside_files_is_told_and_told_anew(routes, loras):
    words = {"modelspec.trigger_phrase": "zwx cat"}
    write_hollow(loras / "with.safetensors", flux_lora(), words)
    write_hollow(loras / "without.safetensors", flux_lora())
    (loras / "old.pt").write_bytes(b"PK")
    Image.new("RGB", (8, 8)).save(loras / "with.preview.png")
    (loras / "old.civitai.info").write_text(json.dumps({"trainedWords": ["pickled word"]}))
    rows = routes.library()
    told = {
        name.partition(".")[0]: (row["trigger_words"], row["has_picture"])
        for name, row in rows.items()
    }
    assert told["with"] == (["zwx cat"], True) and told["without"] == ([], False)
    assert told["old"] == (["pickled word"], False)
    (loras / "with.preview.png").unlink()
    Image.new("RGB", (8, 8)).save(loras / "without.webp")
    (loras / "with.txt").write_text("ink wash")
    rows = routes.library()
    assert rows["with.safetensors"]["trigger_words"] == ["ink wash", "zwx cat"]
    assert (
        not rows["with.safetensors"]["has_picture"] and rows["without.safetensors"]["has_picture"]
    )
    for name in ("with.safetensors", "without.safetensors", "old.pt"):
        brief = routes.ask("file", name=name)[1]
        assert {field: brief[field] for field in rows[name]} == rows[name]


def test_rows_come_in_parts_that_are_asked_for(routes, loras):
    for number in range(5):
        write_hollow(loras / f"part {number}.safetensors", flux_lora(4 + number))
    rows = list(routes.library().values())
    found = []
    while len(found) < len(rows):
        status, told = routes.ask("library", since=len(found), most=2, language="zh")
        assert status == 200 and told["done"] == len(rows) and 1 <= len(told["rows"]) <= 2
        texts = told["translations"]["zh"]
        assert all(row["verdict"] in texts for row in told["rows"])
        found += told["rows"]
    assert found == rows


@pytest.mark.parametrize("field", ["since", "most"])
@pytest.mark.parametrize("number", ["-1", "x", "1.5", "9" * 30, "\u0663"])
def test_a_number_of_rows_that_is_none_is_refused(routes, field, number):
    assert f"{field}='" in refused(routes.ask("library", **{field: number}), 400)


@pytest.fixture(scope="module")
def crowd(server):
    """2,400 files in the loras folder, of 300 kinds: no two of them have the same names."""
    folder = server.base / "models" / "loras" / "crowd"
    for number in range(2400):
        inner = folder / f"{number % 12}"
        inner.mkdir(parents=True, exist_ok=True)
        write_hollow(
            inner / f"{number:04}.safetensors",
            flux_lora(4, blocks=15) | {f"of_kind_{number % 300}.weight": (4, 4)},
        )
    yield folder
    shutil.rmtree(folder)


def test_the_server_answers_others_while_a_scan_runs(routes, server, crowd):
    routes.ended()
    for path in crowd.rglob("*.safetensors"):
        os.utime(path)
    before = routes.ask("library")[1]["scan"]
    routes.ask("library", refresh=1)
    answers = 0
    while routes.ask("library", since=10**6)[1]["running"]:
        assert "queue_running" in server.get("/queue")
        assert routes.ask("file", name=BROKEN_LORA)[0] == 200
        answers += 1
    # Where others wait for the scan, it has ended when the first of them is answered.
    assert answers > 1, "others had to wait for the scan"
    assert routes.ended(other_than=before)["done"] > 2400


def test_rows_come_at_once_from_the_index(routes, server, crowd):
    """As after a start: the index is there, and the rows are not. No file is read whose size and
    time are those of before.
    """
    routes.library()
    for path in crowd.rglob("*.safetensors"):
        about = path.stat()
        path.write_bytes(b"")
        os.truncate(path, about.st_size)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    rows = [row for name, row in routes.library().items() if name.startswith("crowd")]
    assert len(rows) == 2400
    assert not [row for row in rows if row["error"]], "a file was read again"


def test_a_scan_tells_how_far_its_rows_are_those_of_the_one_before(routes, loras):
    """Whoever has those need not be told again."""
    names = list(routes.library())
    for changed in (len(names), len(names) // 2, 0):
        if changed < len(names):
            os.utime(loras / names[changed], (1.5e9 + changed, 1.5e9 + changed))
        before = routes.ask("library")[1]["scan"]
        rows = routes.library()
        told = routes.ask("library", since=len(rows))[1]
        assert list(rows) == names and told["before"] == before and told["scan"] != before
        assert told["same"] == changed


# fits


def test_all_files_are_held_against_a_model_by_what_the_library_knows(routes, loras, server, comfy):
    """Family and width tell; what the row of a file does not tell is in neither list."""
    model = "fits_wan_14b.safetensors"
    weights = {
        name.removeprefix("diffusion_model."): shape
        for name, shape in comfy_models.shapes("wan21_t2v_14b").items()
    }
    write_hollow(server.base / "models" / "diffusion_models" / model, weights)
    for name, width in (("wide", 5120), ("narrow", 1536)):
        shapes = {
            f"diffusion_model.blocks.{block}.self_attn.q.lora_{side}.weight": shape
            for block in range(30)
            for side, shape in (("A", (4, width)), ("B", (width, 4)))
        }
        write_hollow(loras / f"{name}.safetensors", shapes)
    write_hollow(loras / "sdxl.safetensors", SDXL)
    (loras / "page.safetensors").write_bytes(b"<!DOCTYPE html>" * 20)
    (loras / "old.pt").write_bytes(b"PK")
    routes.library()
    status, told = routes.ask("fits", model_folder="diffusion_models", model=model)
    assert status == 200 and told.keys() == {"fits", "others", "running"} and not told["running"]
    assert told["fits"] == ["wide.safetensors"]
    mine = {f"{name}.safetensors" for name in ("narrow", "sdxl", "page")}
    assert mine <= set(told["others"]) and "old.pt" not in told["others"]


def test_a_file_that_came_after_the_library_was_read_is_looked_for(routes, loras):
    routes.library()
    (loras / "page_that_came_later.safetensors").write_bytes(b"<!DOCTYPE html>" * 20)
    question = {"model_folder": "diffusion_models", "model": FLUX}
    name = "page_that_came_later.safetensors"
    assert name not in routes.ask("fits", **question)[1]["others"]
    told = routes.ask("fits", refresh=1, **question)[1]
    deadline = time.monotonic() + comfy_server.PATIENCE
    while told["running"]:
        assert time.monotonic() < deadline
        told = routes.ask("fits", **question)[1]
    assert name in told["others"]


@pytest.mark.parametrize("clip", ["", "0", "1"])
def test_what_a_preview_found_counts_before_what_a_row_tells(routes, loras, clip):
    """The tiny model is of no published size, so that only a look at both files tells."""
    tiny = {name: tuple(tensor.shape) for name, tensor in simpletuner_broken_lora().items()}
    looked_at = f"looked_at{clip}.safetensors"
    write_hollow(loras / looked_at, tiny)
    write_hollow(loras / "not_yet.safetensors", tiny)
    routes.library()
    question = {"model_folder": "diffusion_models", "model": FLUX}
    told = routes.ask("fits", **question)[1]
    names = {looked_at, "not_yet.safetensors"}
    assert names.isdisjoint(told["fits"]) and names.isdisjoint(told["others"])
    assert routes.ask("file", name=looked_at, clip=clip, **question)[0] == 200
    told = routes.ask("fits", **question)[1]
    assert names & set(told["fits"]) == {looked_at}
    assert names.isdisjoint(told["others"])


def test_a_model_that_is_not_known_fits_nothing_and_rules_out_nothing(routes):
    told = routes.ask("fits", model_folder="checkpoints", model="nowhere.safetensors")[1]
    assert told["fits"] == told["others"] == []
    assert "models" in refused(routes.ask("fits", model_folder="loras", model=BROKEN_LORA), 404)
    refused(routes.ask("fits", model_folder="checkpoints"), 400)


# save


def test_a_file_is_saved_in_another_tools_names(routes, loras):
    write_hollow(loras / "whole.safetensors", flux_lora(blocks=2))
    wish = {
        "name": "whole.safetensors",
        "dialect": "kohya",
        "filename": "sub/fixed",
        "dtype": "bf16",
    }
    status, told = routes.tell(wish)
    assert status == 200, told
    assert told.keys() == {"file", "report"} and told["file"] == os.path.join(
        "sub", "fixed.safetensors"
    )
    tensors = load_file(loras / told["file"])
    assert all(name.startswith("lora_unet_") for name in tensors) and "compared" in told["report"]
    assert {
        str(tensor.dtype) for name, tensor in tensors.items() if not name.endswith("alpha")
    } == {"torch.bfloat16"}
    assert routes.ask("file", name=told["file"])[1]["verdict"] == "loads", (
        "the host lists the new file at once"
    )
    before = (loras / told["file"]).read_bytes()
    assert "overwrite" in refused(routes.tell(wish), 409)
    assert (loras / told["file"]).read_bytes() == before
    status, _ = routes.tell(wish | {"overwrite": True, "dtype": "fp32"})
    assert status == 200 and (loras / told["file"]).read_bytes() != before
    assert not list(loras.rglob("*.part"))
    status, told = routes.tell(wish | {"dialect": "peft", "filename": "folder", "dtype": ""})
    assert status == 200 and told["file"] == os.path.join("folder", "adapter_model.safetensors")
    assert routes.ask("file", name=told["file"])[1]["verdict"] == "loads"
    refused(routes.tell(wish | {"dialect": "peft", "filename": "folder"}), 409)


def test_what_cannot_be_saved_says_why_and_leaves_nothing(routes, loras):
    rotation = {"diffusion_model.double_blocks.0.img_mlp.0.oft_blocks": (384, 32, 32)}
    write_hollow(
        loras / "rotation.safetensors",
        rotation | flux_lora(blocks=1, start="diffusion_model.transformer."),
    )
    (loras / "empty.safetensors").touch()
    before = set(loras.rglob("*"))
    for name, dialect in (
        ("rotation.safetensors", "diffusers"),
        ("empty.safetensors", "comfyui"),
        (BROKEN_LORA, "none"),
    ):
        refused(routes.tell({"name": name, "dialect": dialect, "filename": "new/deep/out"}), 400)
    assert set(loras.rglob("*")) == before


@pytest.mark.parametrize(
    "filename",
    [
        "../out",
        "/out",
        "",
        " ",
        "sub/",
        "a/../../out",
        "a/../out",
        "..\\out",
        "a\0b",
        "C:out",
        "a\nb",
        "\udc00",
        "a//b",
        ".",
    ],
)
def test_no_name_leads_out_of_the_loras_folder(routes, loras, filename):
    everything = set(loras.parent.parent.rglob("*.safetensors"))
    refused(
        routes.tell(
            {"name": DIFFUSERS_LORA, "dialect": "comfyui", "filename": filename, "overwrite": True}
        ),
        400,
    )
    assert set(loras.parent.parent.rglob("*.safetensors")) == everything


@pytest.mark.skipif(os.name == "nt", reason="Windows allows links only in developer mode")
def test_no_link_leads_out_of_the_loras_folder(routes, loras, tmp_path):
    (loras / "away").symlink_to(tmp_path)
    (loras / "file.safetensors").symlink_to(tmp_path / "file.safetensors")
    for filename in ("away/out", "away", "file"):
        for dialect in ("peft", "comfyui"):
            wish = {
                "name": DIFFUSERS_LORA,
                "dialect": dialect,
                "filename": filename,
                "overwrite": True,
            }
            assert "leads out" in refused(routes.tell(wish), 400)
    assert list(tmp_path.iterdir()) == []


WISH = {"name": DIFFUSERS_LORA, "dialect": "comfyui", "filename": "out"}


@pytest.mark.parametrize(
    "wish",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        b"[" * 60_000,
        b" " * 70_000,
        {},
        {"name": DIFFUSERS_LORA},
        WISH | {"filename": 3},
        WISH | {"overwrite": 1},
        WISH | {"overwrite": "false"},
        WISH | {"dtype": "int8"},
        WISH | {"dtype": None},
        WISH | {"name": [1]},
        WISH | {"dialect": "../x"},
    ],
    ids=range(16),
)
def test_a_wish_that_is_none_is_refused(routes, loras, wish):
    refused(routes.tell(wish), 400)
    assert not (loras / "out.safetensors").exists()


def test_a_fault_of_a_node_is_said_in_another_language(server):
    """The host tells it in English, whoever asks."""
    inputs = {"lora_name": "gone.safetensors", "detail": "modules", "weights": "off"}
    prompt = {
        "1": {"class_type": "LocksmithInspectLoRAKeys", "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    with pytest.raises(comfy_server.PromptError) as refused:
        server.run(prompt)
    (error, *_) = refused.value.node_errors["1"]["errors"]
    text = error["details"].removeprefix("lora_name - ")
    assert "gone.safetensors" in text
    for asked, language in ((text, "zh-CN"), (text, "en"), ("not said by a node", "zh")):
        status, told = said(server, {"text": asked}, language)
        assert (status, told["text"]) == (200, asked)
        known = told.get("translations", {}).get("zh", {})
        assert (asked in known) == (language == "zh-CN")
        assert "gone.safetensors" in known.get(asked, "gone.safetensors")
    assert said(server, {"words": text}, "zh")[0] == 400


def said(server, wish: dict, language: str) -> tuple[int, dict]:
    address = f"{server.url}/lora_locksmith/said?language={language}"
    headers = {"Content-Type": "application/json"}
    return Routes.send(urllib.request.Request(address, json.dumps(wish).encode(), headers))


def test_no_other_site_can_save(routes, loras):
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ):
        refused(routes.tell(WISH, kind), 400)
    for headers in ({"Origin": "http://other.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert routes.tell(WISH, **headers)[0] == 403
    assert routes.ask("save", **WISH)[0] in (404, 405), "asking must not save"
    assert not (loras / "out.safetensors").exists()


# without a server


def test_the_library_spans_all_folders_and_the_first_of_two_files_counts(comfy, tmp_path):
    import folder_paths
    from lora_locksmith.nodes.server.library import listed_files

    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, ("a", "both")), (second, ("both", "sub/b"))):
        for name in names:
            path = folder / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_hollow(path, flux_lora(4 if folder == first else 8, blocks=1))
    before = folder_paths.folder_names_and_paths["loras"]
    folder_paths.folder_names_and_paths["loras"] = (
        [str(first), str(second), str(tmp_path / "none")],
        before[1],
    )
    folder_paths.filename_list_cache.pop("loras", None)
    try:
        files = dict(listed_files(folder_paths.get_filename_list("loras")))
    finally:
        folder_paths.folder_names_and_paths["loras"] = before
        folder_paths.filename_list_cache.pop("loras", None)
    assert {name: Path(path).parent for name, (path, *_) in files.items()} == {
        "a.safetensors": first,
        "both.safetensors": first,
        os.path.join("sub", "b.safetensors"): second / "sub",
    }


@pytest.fixture
def pictured(server):
    """pictured(ending, bytes) -> the name of a listed file with a picture beside it."""
    folder = server.base / "models" / "loras" / "a picture"
    folder.mkdir()

    def write(ending, content):
        lora = folder / "\u753b \u98ce.safetensors"
        write_hollow(lora, flux_lora(4))
        lora.with_suffix(ending).write_bytes(content)
        return "a picture/\u753b \u98ce.safetensors"

    yield write
    shutil.rmtree(folder)


def a_picture(form, size=(900, 600)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, form)
    return buffer.getvalue()


def picture(server, name):
    """(status, type, bytes) of the route's answer."""
    query = urllib.parse.urlencode({"name": name})
    with urllib.request.urlopen(f"{server.url}/lora_locksmith/picture?{query}") as answer:
        return answer.status, answer.headers.get_content_type(), answer.read()


@pytest.mark.parametrize(
    ("ending", "form"),
    [(".png", "PNG"), (".preview.jpg", "JPEG"), (".webp", "WEBP"), (".gif", "GIF")],
)
def test_the_picture_beside_a_file_is_given_small(server, pictured, ending, form):
    status, kind, content = picture(server, pictured(ending, a_picture(form)))
    assert (status, kind) == (200, "image/webp")
    assert Image.open(io.BytesIO(content)).size == (384, 256)


def test_the_first_picture_of_a_film(server, pictured, tmp_path):
    import av

    with av.open(str(tmp_path / "x.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        frame = av.VideoFrame.from_image(Image.new("RGB", (320, 192), (10, 200, 10)))
        for packet in (*stream.encode(frame), *stream.encode()):
            film.mux(packet)
    status, _, content = picture(server, pictured(".mp4", (tmp_path / "x.mp4").read_bytes()))
    red, green, _ = Image.open(io.BytesIO(content)).getpixel((100, 100))
    assert status == 200 and green > 150 > red


@pytest.mark.parametrize("content", [b"", b"no picture", a_picture("PNG")[:60]])
def test_what_is_no_picture_is_none(server, pictured, content):
    assert picture(server, pictured(".png", content))[0] == 204


def test_a_file_without_a_picture_has_none(server):
    assert picture(server, BROKEN_LORA)[0] == 204


@pytest.mark.parametrize("name", ["../../secret.png", "no such file", "/etc/passwd", ""])
def test_only_listed_files_have_pictures(routes, name):
    assert routes.ask("picture", name=name)[0] in (400, 404)


# layer presets


def presets_of(routes: Routes, name: str, **question) -> dict[str, dict]:
    status, told = routes.ask("layer_presets", name=name, **question)
    assert status == 200 and told["file"] == name, told
    return {preset["name"]: preset for preset in told["presets"]}


def test_presets_of_layer_weights_are_those_of_the_files_model(routes, loras):
    write_hollow(loras / "sdxl.safetensors", SDXL)
    write_hollow(loras / "flux.safetensors", flux_lora())
    sdxl, flux = (presets_of(routes, f"{name}.safetensors") for name in ("sdxl", "flux"))
    assert {"SDXL: layout (InstantStyle)", "SDXL-INALL", "no text encoder"} <= sdxl.keys()
    assert "FLUX-DBL-MID6" in flux and not {"SDXL-INALL", "SD-FACE"} & flux.keys()
    assert "NONE" not in sdxl.keys() | flux.keys()
    kinds = {name: sdxl[name]["kind"] for name in ("SDXL: layout (InstantStyle)", "SDXL-INALL")}
    assert kinds == {"SDXL: layout (InstantStyle)": "composition", "SDXL-INALL": "part"}


def test_a_preset_that_is_no_use_for_a_file_says_why(routes, loras):
    """SDXL has ten layers of one block."""
    write_hollow(loras / "sdxl.safetensors", SDXL)
    presets = presets_of(routes, "sdxl.safetensors")
    assert "changes nothing" in presets["SDXL: layout (InstantStyle)"]["fault"]
    assert "leaves nothing" in presets["SDXL: style (B-LoRA)"]["fault"]
    assert "leaves nothing" in presets["SDXL-MIDALL"]["fault"]
    assert "changes nothing" in presets["no text encoder"]["fault"]


def test_what_a_preset_writes_names_only_what_the_file_has(routes, loras):
    """Double blocks alone."""
    write_hollow(loras / "flux.safetensors", flux_lora())
    preset = presets_of(routes, "flux.safetensors")["FLUX-DBL-MID6"]
    assert preset["text"] == "double_blocks=0, double_blocks.7-12=1" and not preset["fault"]
    assert (preset["kept"], preset["changed"], preset["count"]) == (18, 0, 57)


def test_details_tell_what_layer_weights_change(routes, loras):
    write_hollow(loras / "flux.safetensors", flux_lora(blocks=2))
    ask = partial(routes.ask, "file", name="flux.safetensors", full=1)
    weights = ask(layers="double_blocks.1=0.5")[1]["layer_weights"]["denoiser"]
    assert weights and all(name.startswith("double_blocks.1.") for name in weights)
    assert set(weights.values()) == {0.5} and ask()[1]["layer_weights"] == {}
    told = ask(layers="no_such_block=1")[1]
    assert told["layer_weights"] == {} and "no_such_block" in told["cautions"][-1]


def test_presets_come_in_the_language_that_is_asked_for_and_only_for_listed_files(routes, loras):
    write_hollow(loras / "sdxl.safetensors", SDXL)
    told = routes.ask("layer_presets", name="sdxl.safetensors", language="zh")[1]
    texts = told["translations"]["zh"]
    for preset in told["presets"]:
        assert re.search("[\u4e00-\u9fff]", texts[preset["title"]])
        assert preset["about"] in texts and (not preset["fault"] or preset["fault"] in texts)
    refused(routes.ask("layer_presets", name="nowhere.safetensors"), 404)
    refused(routes.ask("layer_presets"), 400)
    (loras / "page.safetensors").write_bytes(b"<!DOCTYPE html>" * 20)
    refused(routes.ask("layer_presets", name="page.safetensors"), 400)
