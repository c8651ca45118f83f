"""docs/json.md names every key of the JSON of reports, and no others."""

import re
from pathlib import Path

import torch
from lora_locksmith.lora.by_layer import compared_weights
from lora_locksmith.planning import plan as plans
from lora_locksmith.planning.plan import make_plan
from lora_locksmith.planning.target_model import TargetModel
from lora_locksmith.report.compare import compare_files
from lora_locksmith.report.inspection import inspect_file
from lora_locksmith.report.judgement import BAD, GOOD
from lora_locksmith.report.library import (
    DOUBTFUL,
    MENDED,
    PARTLY,
    PICKLED_FILE,
    UNKNOWN,
    UNREADABLE,
    scan,
)
from lora_locksmith.report.load_report import CATEGORIES, SCHEMA, Report, category_title
from safetensors.torch import save_file

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "json.md").read_text("utf-8")
SOMETIMES = {"acts", "alphas_left", "fetched", "hashes", "stored_hashes", "weights"}


def named(heading: str) -> set[str]:
    """The keys that the first table below a heading describes."""
    section = re.split(r"^#+ ", PAGE.split(f"{heading}\n", 1)[1], flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def test_every_key_of_a_load_report_is_described():
    keys = Report(make_plan({"x.lora_A.weight": (4, 8)}, {}, TargetModel())).as_dict().keys()
    assert named("## A load report") - SOMETIMES == keys


def test_every_key_of_an_inspection_is_described(tmp_path):
    save_file({"x.lora_A.weight": torch.zeros(4, 8)}, tmp_path / "x.safetensors")
    keys = inspect_file(tmp_path / "x.safetensors").as_dict().keys()
    assert named("## An inspection") - SOMETIMES == keys


def test_every_key_of_a_comparison_is_described(tmp_path):
    save_file({"x.lora_A.weight": torch.zeros(4, 8)}, tmp_path / "x.safetensors")
    comparison = compare_files(tmp_path / "x.safetensors", tmp_path / "x.safetensors")
    assert named("## A comparison") - SOMETIMES == comparison.as_dict().keys()
    weights = compared_weights(comparison)
    assert named("### Weights of two files") == weights.keys()


def test_every_key_of_a_row_of_the_library_is_described(tmp_path):
    save_file({"x.lora_A.weight": torch.zeros(4, 8)}, tmp_path / "x.safetensors")
    (row,) = scan(tmp_path)
    described = named("## A row of the library")
    assert described - {"changed", "pickled"} == row.as_dict().keys()


def test_every_state_of_a_row_is_described():
    described = re.search(r"^\| `state` \| (.+) \|$", PAGE.split("row of the library")[1], re.M)[1]
    assert set(re.findall(r"`([^`]+)`", described)) == {
        GOOD, BAD, MENDED, PARTLY, DOUBTFUL, UNKNOWN, PICKLED_FILE, UNREADABLE
    }  # fmt: skip


def test_every_category_is_described():
    assert named("### Categories") == CATEGORIES.keys()
    constants = {
        value for name, value in vars(plans).items() if name.isupper() and value in CATEGORIES
    }
    assert constants == CATEGORIES.keys()
    assert {category: str(category_title(category)) for category in CATEGORIES} == {
        category: category for category in CATEGORIES
    }, "the JSON names them by their titles in English"


def test_the_page_says_the_schema():
    assert f"It is {SCHEMA}." in PAGE
