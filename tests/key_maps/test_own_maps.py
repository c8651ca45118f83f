"""A user's own tables and records: used like the pack's, and a mistake in one is
named, not fatal.
"""

from __future__ import annotations

import pytest
from lora_locksmith.key_maps.user_maps import own_maps_stamp, read_own_maps
from lora_locksmith.messages import translate
from lora_locksmith.planning.plan import PLACED, make_plan
from lora_locksmith.planning.target_model import TargetModel, denoiser_network
from lora_locksmith.report.load_report import Report

TABLE = (
    "@title Home Made\n[layers.{} = stages.{}]\nmix.qkv 3h h = ask + know + value\nmix.out h h ="
    " answer\n"
)
RECORD = (
    "title Home Trainer\nwrites acme::\nnames diffusers\nform dotted\nroles lora_A.weight"
    " lora_B.weight\n"
)
WEIGHTS = {
    f"diffusion_model.layers.{i}.mix.{name}.weight": shape
    for i in range(2)
    for name, shape in {"qkv": (12, 4), "out": (4, 4)}.items()
}
KEYS = {"acme::stages.1.know.lora_A.weight": (2, 4), "acme::stages.1.know.lora_B.weight": (4, 2)}


@pytest.fixture
def folder(tmp_path):
    for name, text in {"families/home.table": TABLE, "dialects/home.record": RECORD}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def report_with(own):
    target_model = TargetModel([denoiser_network(WEIGHTS, own.families)], own)
    return Report(make_plan(KEYS, {}, target_model), errors=own.errors)


def test_a_model_and_a_trainer_that_only_the_user_knows(folder):
    report = report_with(read_own_maps(folder))
    assert set(report.categories) == {PLACED}
    told = report.explain("acme::stages.1.know.lora_B.weight")
    assert told["targets"] == [
        {
            "weight": "diffusion_model.layers.1.mix.qkv.weight",
            "rows": (4, 4),
            "rows_of_adapter": None,
        }
    ]
    assert told["wrapper"] == "acme::"
    assert report.trainer == "Home Trainer"
    assert report.as_dict()["family_title"] == "Home Made"


def test_without_them_the_keys_are_unknown(tmp_path):
    assert not report_with(read_own_maps(tmp_path)).adapters


@pytest.mark.parametrize(
    "old, new",
    [("@title", "\ufeff@title"), (" ", "\t"), ("\n", "\r\n")],
    ids=["mark", "tabs", "line ends"],
)
def test_what_editors_put_into_text_is_no_mistake(folder, old, new):
    (folder / "families" / "home.table").write_bytes(TABLE.replace(old, new).encode())
    (folder / "dialects" / "home.record").write_bytes(
        RECORD.replace(old.replace("@", ""), new.replace("@", "")).encode()
    )
    assert set(report_with(read_own_maps(folder)).categories) == {PLACED}


FAULTS = {
    "families/bad.table": ("@title Bad\nno shape here\nx = y", "line"),
    "families/worse.table": ("@title Worse\n@encoder\nx h h = y", "line 2"),
    "families/hidden.table.txt": (TABLE, "Rename it to hidden.table"),
    "dialects/bad.record": ("title Bad\nnames native\nform sideways\n", "sideways"),
    "dialects/worse.record": ("colour red\n", "colour"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_with_a_mistake_is_named_and_the_others_work(folder, name):
    (folder / name).write_text(FAULTS[name][0], "utf-8")
    report = report_with(read_own_maps(folder))
    assert set(report.categories) == {PLACED}
    assert name.rpartition("/")[2] in str(report)
    assert FAULTS[name][1] in str(report)


def test_what_is_wrong_with_own_maps_can_be_said_in_other_languages(folder):
    for name, (text, _) in FAULTS.items():
        (folder / name).write_text(text, "utf-8")
    errors = read_own_maps(folder).errors
    assert len(errors) == len(FAULTS)
    for error in errors:
        # Of the English nothing is left but what the file itself says.
        chinese = translate(error, "zh")
        assert (
            "\u672a\u4f7f\u7528\u60a8\u81ea\u5df1\u7684\u6620\u5c04" in chinese
            and " is " not in chinese
            and "Write" not in chinese
        )


def test_a_change_is_noticed(folder):
    before = own_maps_stamp(folder)
    assert own_maps_stamp(folder) == before
    (folder / "families/other.table").write_text(TABLE, "utf-8")
    assert own_maps_stamp(folder) != before
