"""What this room says to people stays a message up to where it is shown, and is said in any
language.
"""

import re

import pytest
import torch
from lora_locksmith.adapters.spec import AdapterError
from lora_locksmith.lora.math.faults import first_line
from lora_locksmith.lora.merge.block_weights import read_block_weights
from lora_locksmith.lora.merge.merge import MergeConfig
from lora_locksmith.lora.merge.methods import methods
from lora_locksmith.lora.merge.report import MergeReport
from lora_locksmith.lora.not_finite import NotFinite, check_result
from lora_locksmith.lora.rewrite.rename import Refused, losses_told
from lora_locksmith.messages import Message, message, text_of, translate


def chinese(text: str) -> str:
    """The text in Chinese; it has to be a message."""
    assert isinstance(text, Message)
    return translate(text, "zh")


def test_a_refusal_is_the_message_of_its_reasons():
    error = Refused((message("lora.transposed"), message("lora.replaced_bias")))
    assert str(error) == "; ".join(error.reasons)
    assert all(chinese(reason) in chinese(text_of(error)) for reason in error.reasons)


def test_an_error_within_an_error_is_said_in_the_same_language():
    with pytest.raises(AdapterError) as caught:
        read_block_weights("a..b=1")
    outer = message("joints.about", subject="x", text=first_line(caught.value))
    assert str(caught.value) in outer and str(caught.value) not in chinese(outer)
    assert chinese(text_of(caught.value)) in chinese(outer)


def test_the_first_line_of_a_foreign_error_is_plain():
    assert first_line(RuntimeError("one\ntwo")) == "one" and first_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_numbers_that_are_too_large_are_told(dtype):
    with pytest.raises(AdapterError) as caught:
        check_result(torch.tensor([torch.inf]).to(dtype), "a.weight")
    assert not isinstance(caught.value, NotFinite)
    assert chinese(text_of(caught.value)).startswith("a.weight")


@pytest.mark.parametrize("count, words", [(1, "1 key is left"), (2, "2 keys are left")])
def test_what_is_left_out_is_counted(count, words):
    lost = {f"key{number}": message("lora.base_lacks_it") for number in range(count)}
    said = losses_told(lost)
    assert said.startswith(words) and "\u5e95\u6a21\u4e2d\u6ca1\u6709\u5b83" in chinese(said)
    assert losses_told({}) == ""


def test_every_method_and_option_has_its_words():
    for method in methods().values():
        for text in (method.title, method.text, *(option.text for option in method.options)):
            assert chinese(text) != text


def test_a_merge_is_reported_in_the_language_asked_for():
    report = MergeReport([], MergeConfig())
    english, other = report.markdown(), report.markdown(language="zh")
    assert "weighted sum" in english and english == report.markdown(language="en")
    assert chinese(report.verdict) in other and not re.search(r"\b(weights|merged)\b", other)
