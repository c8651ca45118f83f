"""How well a file loads: the one word that reports, rows and badges go by."""

import pytest
from lora_locksmith.report.findings import Findings
from lora_locksmith.report.judgement import judged
from lora_locksmith.report.library import LibraryRow
from lora_locksmith.report.listing import Stamp


@pytest.mark.parametrize(
    ("placed", "total", "more", "state"),
    [
        (4, 4, {}, "good"),
        (3, 4, {}, "part"),
        (4, 4, {"cautions": ["it may be weak"]}, "part"),
        (3, 4, {"mismatch": "this is an SDXL LoRA"}, "bad"),
        (0, 4, {"cautions": ["it may be weak"]}, "bad"),
        (0, 0, {}, "bad"),
    ],
)
def test_a_file_is_judged_by_what_loads_and_what_is_doubtful(placed, total, more, state):
    assert judged(placed, total, **more) == state


LOADS = {"made_for": "FLUX.1", "placed": 4, "total": 4}


@pytest.mark.parametrize(
    ("name", "findings", "state", "verdict"),
    [
        ("a.safetensors", LOADS, "good", "loads"),
        ("a.safetensors", LOADS | {"gains": ("one",)}, "mended", "loads"),
        ("a.safetensors", LOADS | {"cautions": ("x",), "gains": ("one",)}, "doubtful", "loads"),
        ("a.safetensors", LOADS | {"placed": 3, "cautions": ("x",)}, "partly", "3 of 4"),
        ("a.safetensors", LOADS | {"placed": 0}, "bad", "0 of 4"),
        ("a.safetensors", {"total": 4}, "untold", "unknown model"),
        ("a.safetensors", {}, "bad", "no LoRA"),
        ("a.safetensors", {"error": "cut off"}, "unreadable", "cannot be read"),
        ("a.PT", {"error": "a pickle"}, "pickled", "cannot be read"),
    ],
)
def test_a_row_of_a_library_says_how_well_its_file_loads(name, findings, state, verdict):
    row = LibraryRow(name, Stamp(1, 1, 0), Findings(**findings))
    assert row.state == row.as_dict()["state"] == state
    assert row.has_problem == (state != "good")
    assert verdict in row.verdict
