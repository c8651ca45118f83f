"""The catalogs: every sentence the code asks for is there, in every language, with the same gaps;
none is there for nobody; and no error is raised with a sentence of its own.
"""

import ast
import json
import pickle
import string
import weakref
from pathlib import Path

import pytest
from lora_locksmith.messages import (
    LOCALES,
    Message,
    Speaker,
    as_sentence,
    catalog,
    joined,
    languages,
    message,
    packed,
    text_of,
    translate,
    translations,
    unpacked,
)

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] not in ("tests", "dev.py", "messages.py", ".dev", "build")
)
FORMS = {"one", "other"}
# What is asked for by ids put together: joints by their names, and the words of tables, which the
# tests of those tables look for (tests/key_maps/test_conventions.py, test_layer_words.py,
# test_metadata.py, test_presets.py, test_weight_presets.py).
PUT_TOGETHER = (
    "conventions.",
    "joints.",
    "layers.",
    "metadata.field_",
    "metadata.label_",
    "metadata.section_",
    "metadata.trainer_",
    "presets.layer_",
    "presets.name_",
    "weight_presets.title_",
)
# no words of a language, so the same in all
MUTE = {"joints.line", "joints.nothing"}


def gaps(template) -> set[str]:
    """The names of a template's gaps, of all its forms."""
    texts = [template] if isinstance(template, str) else template.values()
    return {name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name}


def needed(template) -> set[str]:
    """The values without which a template is not a sentence: its gaps, and what chooses a form."""
    return gaps(template) | (set() if isinstance(template, str) else {"count"})


def calls(path: Path):
    """(id, names of the values, where) of every sentence that a file asks for by its id."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            id = node.args[0].value
            if isinstance(id, str) and id in catalog("en"):
                names = {keyword.arg for keyword in node.keywords}
                yield id, names, f"{path.relative_to(ROOT)}:{node.lineno}"


def constants() -> set[str]:
    """Every text constant in the code."""
    return {
        node.value
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_sentence_of_a_catalog_is_asked_for():
    used = constants()
    unused = {id for id in catalog("en") if id not in used and not id.startswith(PUT_TOGETHER)}
    assert not unused


def test_every_gap_is_filled_where_a_sentence_is_asked_for():
    faults = [
        (where, id, wanted - names)
        for path in CODE
        for id, names, where in calls(path)
        if None not in names and not names >= (wanted := needed(catalog("en")[id]))
    ]
    assert not faults


def test_every_id_in_the_code_is_in_the_catalog():
    rooms = {path.stem for path in (LOCALES / "en" / "messages").glob("*.json")}
    missing = [
        (str(path.relative_to(ROOT)), node.lineno, node.args[0].value)
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("message", "speak")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value not in catalog("en")
    ]
    assert rooms and not missing


@pytest.mark.parametrize("language", [name for name in languages() if name != "en"])
def test_every_sentence_is_in_every_language_with_the_same_gaps(language):
    english, other = catalog("en"), catalog(language)
    assert other.keys() == english.keys()
    assert not {id for id in english if gaps(english[id]) != gaps(other[id])}
    assert not {id for id in english if english[id] == other[id] and id not in MUTE}


@pytest.mark.parametrize("language", languages())
def test_forms_are_those_that_are_chosen_from(language):
    for id, template in catalog(language).items():
        if not isinstance(template, str):
            assert "other" in template and template.keys() <= FORMS, id


@pytest.mark.parametrize("path", sorted((LOCALES / "en" / "messages").glob("*.json")), ids=str)
def test_catalogs_are_sorted_so_that_they_are_found_and_merged(path):
    for language in languages():
        names = list(json.loads((LOCALES / language / "messages" / path.name).read_text("utf-8")))
        assert names == sorted(names)


def test_a_message_is_its_english_sentence_and_says_it_in_other_languages():
    said = message("planning.no_clip")
    assert said == "it belongs to a text encoder, and no CLIP is connected"
    assert translate(said, "zh") != said and Speaker("zh")(said) == translate(said, "zh")
    assert translate(said, "xx") == said and translate("plain", "zh") == "plain"


def test_messages_within_messages_are_said_in_the_same_language():
    inner = message("planning.no_clip")
    outer = as_sentence(joined([inner, "x", message("planning.part_missing", part=inner)]))
    chinese = translate(outer, "zh")
    assert translate(inner, "zh") in chinese and inner not in chinese
    assert str(outer).startswith("It belongs") and outer.endswith("is missing.")
    assert translate(message("planning.part_missing", part=ValueError(inner)), "zh") == (
        translate(message("planning.part_missing", part=inner), "zh")
    )


def test_an_error_keeps_its_message():
    said = message("planning.no_clip")
    assert text_of(ValueError(said)) is said and text_of(ValueError(3)) == "3"


def test_the_translations_of_a_document_are_those_of_the_messages_in_it():
    said = message("planning.no_clip")
    document = {"a": [said, "plain", {"b": (said,)}], "c": 1, message("planning.no_model"): 2}
    both = (said, message("planning.no_model"))
    assert translations(document) == {"zh": {str(text): translate(text, "zh") for text in both}}
    assert json.loads(json.dumps(document))["a"][0] == said


def test_a_message_survives_copying_into_another_process():
    said = message("planning.part_missing", part=message("planning.no_clip"))
    again = pickle.loads(pickle.dumps(said))
    assert isinstance(again, Message) and translate(again, "zh") == translate(said, "zh")


def test_a_message_kept_as_json_is_the_same_message_again():
    inner = message("planning.part_missing", part=ValueError(message("planning.no_clip")))
    whole = as_sentence(joined([inner, "plain", message("report.placed", placed=1, count=2000)]))
    for said in (inner, whole, joined([whole, whole], "line"), as_sentence("x", stop=False)):
        again = unpacked(json.loads(json.dumps(packed(said))))
        assert isinstance(again, Message) and again == said
        assert translate(again, "zh") == translate(said, "zh")
    assert packed("plain") == "plain" and unpacked("plain") == "plain"
    with pytest.raises(KeyError):
        unpacked({"_Sentence": ["planning.gone", {}]})


def test_an_error_in_a_message_is_not_kept_with_all_it_saw():
    class Seen:
        """What a frame of the traceback holds."""

    seen = Seen()
    gone = weakref.ref(seen)
    try:
        raise ValueError("x", seen)
    except ValueError as error:
        said = message("planning.tensors_do_not_fit", fault=error)
    del seen
    assert gone() is None and "x" in said


def test_what_is_missing_is_an_error_of_the_caller():
    with pytest.raises(KeyError):
        message("planning.no_such_sentence_anywhere")
    with pytest.raises(KeyError):
        message("planning.part_missing")
