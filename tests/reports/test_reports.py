"""Golden reports: what a user is told of a file of each trainer, word for word.

LOCKSMITH_ACCEPT_REPORTS=1 writes the reports anew; read what changed before it is kept.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from lora_locksmith.files.hashes import Hashes
from lora_locksmith.report.inspection import inspect_file
from lora_locksmith.report.markdown import DETAILS, markdown
from reports.trained_files import MAKERS, low_rank, write

GOLDEN = Path(__file__).parent / "golden"
ACCEPT = "LOCKSMITH_ACCEPT_REPORTS"
# Left to other tests: lists of thousands of keys, and what the Markdown says already.
LEFT_OUT = ("file", "trained", "metadata")


def main_parts(told: dict) -> dict:
    kept = {name: value for name, value in told.items() if name not in LEFT_OUT}
    kept["loads"] = {name: value for name, value in told["loads"].items() if name != "unplaced"}
    return kept | {
        "metadata": {
            name: told["metadata"][name]
            for name in ("base_model", "resolution", "trainer_version", "problems")
        }
    }


def settled(text: str) -> str:
    """The report without what changes with PEFT's release alone."""
    return re.sub(r"(PEFT version \| )[\w.]+", r"\1x.y.z", text)


@pytest.mark.parametrize("name", MAKERS)
def test_report(comfy, tmp_path, name):
    found = inspect_file(MAKERS[name](tmp_path))
    told = json.loads(found.as_json())
    report = f"{markdown(found)}\n```json\n{json.dumps(main_parts(told), indent=1)}\n```\n"
    golden = GOLDEN / f"{name}.md"
    if os.environ.get(ACCEPT):
        golden.write_text(settled(report), encoding="utf-8", newline="\n")
    assert settled(report) == golden.read_text(encoding="utf-8"), (
        f"read the difference; {ACCEPT}=1 keeps it"
    )


@pytest.mark.parametrize("name", MAKERS)
def test_load_report(comfy, tmp_path, name):
    """What the loader's node shows, in both languages; short where all is right."""
    report = inspect_file(MAKERS[name](tmp_path)).report
    report.path = f"{name}.safetensors"
    english, chinese = report.text(), report.text("zh")
    shown = f"{english}\n\n{chinese}\n"
    golden = GOLDEN / "loading" / f"{name}.txt"
    if os.environ.get(ACCEPT):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(shown, encoding="utf-8", newline="\n")
    assert shown == golden.read_text(encoding="utf-8"), f"read the difference; {ACCEPT}=1 keeps it"
    if not report.remedy and not report.cautions:
        assert len(english.splitlines()) <= 12


@pytest.mark.parametrize("name", ("broken", "kohya_sdxl", "lycoris_lokr"))
def test_report_in_chinese(comfy, tmp_path, name):
    found = inspect_file(MAKERS[name](tmp_path))
    golden = GOLDEN / "zh" / f"{name}.md"
    report = markdown(found, language="zh")
    if os.environ.get(ACCEPT):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(report, encoding="utf-8", newline="\n")
    assert report == golden.read_text(encoding="utf-8"), f"read the difference; {ACCEPT}=1 keeps it"


def test_every_golden_report_is_of_a_file():
    assert {path.stem for path in GOLDEN.glob("*.md")} == set(MAKERS)
    assert {path.stem for path in GOLDEN.glob("loading/*.txt")} == set(MAKERS)


HOSTILE = (
    "x ![p](http://example.invalid/p.png) [l](http://example.invalid) [r][l] <img"
    " src=http://example.invalid> <b>`|`</b>\n\n# T\\"
)


def kinds_of_markup(text: str) -> set[str]:
    """What a Markdown reader makes of the text."""
    from markdown_it import MarkdownIt

    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    return {token.type for block in blocks for token in [block, *(block.children or ())]}


def test_nothing_in_a_file_acts_as_markup(tmp_path):
    """A picture in a stranger's metadata would be fetched from the stranger's server when the
    report is shown.
    """
    folders = json.dumps({f"10_{HOSTILE}": {"n_repeats": 10, "img_count": 25}})
    tags = json.dumps({f"10_{HOSTILE}": {HOSTILE: 25, "other": 3}})
    metadata = {
        "ss_dataset_dirs": folders,
        "ss_tag_frequency": tags,
        "ss_steps": HOSTILE,
        "modelspec.title": HOSTILE,
        HOSTILE: HOSTILE,
    }
    metadata |= {
        "trained_words": HOSTILE,
        "ss_network_args": json.dumps({HOSTILE: HOSTILE}),
        "ss_network_module": f"networks.{HOSTILE}",
    }
    name = f"transformer.transformer_blocks.0.{HOSTILE}"
    known = low_rank({"transformer.transformer_blocks.0.ff.net.0.proj": (12288, 3072)}, 4)
    shapes = {
        **known,
        f"{name}.lora_A.weight": (4, 3072),
        f"{name}.lora_B.weight": (3072, 4),
        f"{HOSTILE}.nothing": (1,),
    }
    found = inspect_file(write(tmp_path / "x.safetensors", shapes, metadata))
    for detail in DETAILS:
        text = markdown(found, detail, Hashes(*[HOSTILE] * 6))
        assert "example.invalid/p.png" in text, "it is told"
        assert not kinds_of_markup(text) & {"image", "link_open", "html_inline", "html_block"}
        assert text.count("\n# T") == 0
