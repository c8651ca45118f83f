"""Faults that were found once, each by the smallest file that shows it."""

from __future__ import annotations

import pytest
import seeds
from judge import judge
from lora_locksmith.commands import parser
from lora_locksmith.files.header import LoraFileError
from lora_locksmith.identify.checkpoint import target_model_of_checkpoint


def test_superscripts_are_no_numbers(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(seeds.SUPERSCRIPTS)
    assert judge(path) == "read"


@pytest.mark.parametrize("value", ["[]", "[[]]"])
def test_network_arguments_that_are_a_list(tmp_path, value):
    path = tmp_path / "x.safetensors"
    path.write_bytes(seeds.CORPUS[f"metadata: metadata all {value!r}"])
    assert parser.run(
        ["resize", str(path), "--rank", "1", "-o", str(tmp_path / "a.safetensors")]
    ) in (0, 1, 2)


def test_an_index_of_shards_without_names(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": ""}}')
    with pytest.raises(LoraFileError):
        target_model_of_checkpoint(index)
