"""In which language the command line speaks: what is asked for with --lang, else the environment."""

import argparse
import json
import re
from pathlib import Path

import pytest
from lora_locksmith.commands import parser
from lora_locksmith.commands.language import (
    OF_ARGPARSE,
    VARIABLES,
    chosen_language,
    words_of_argparse,
    wrapped,
)
from lora_locksmith.messages import Speaker, message
from safetensors.torch import save_file
from tiny_models import kohya_lora

CHINESE = re.compile("[\u4e00-\u9fff]")
COMMANDS = ("inspect", "scan", "compare", "fix", "merge", "resize", "extract")


@pytest.fixture(autouse=True)
def no_language(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys):
    """run("scan", ...) -> (exit code, output, errors)."""

    def call(*arguments):
        try:
            code = parser.run(list(map(str, arguments)))
        except SystemExit as stopped:
            code = stopped.code
        texts = capsys.readouterr()
        return code, texts.out, texts.err

    return call


@pytest.mark.parametrize(
    ("arguments", "environment", "language"),
    [
        ([], {}, "en"),
        (["--lang", "zh", "scan"], {}, "zh"),
        (["scan", ".", "--lang=zh"], {"LANG": "de_DE.UTF-8"}, "zh"),
        (["--lang", "en"], {"LC_ALL": "zh_CN.UTF-8"}, "en"),
        (["--lang", "xx"], {"LC_ALL": "zh_CN.UTF-8"}, "en"),
        (["--lang"], {"LC_ALL": "zh_CN.UTF-8"}, "en"),
        ([], {"LC_ALL": "", "LC_MESSAGES": "zh_TW", "LANG": "en_US.UTF-8"}, "zh"),
        ([], {"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ([], {"LANG": "zh_CN.UTF-8"}, "zh"),
        ([], {"LANG": "zh-Hans"}, "zh"),
        ([], {"LANG": "fr_FR"}, "en"),
    ],
)
def test_the_option_counts_before_the_environment(arguments, environment, language):
    assert chosen_language(arguments, environment) == language


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_is_in_the_language(run, command):
    for arguments in (["--lang", "zh", *command, "--help"], [*command, "--help", "--lang", "zh"]):
        if arguments[0] == "--help":
            arguments = ["--lang", "zh", "--help"]
        code, out, err = run(*arguments)
        assert code == 0 and not err and out.startswith("\u7528\u6cd5")
        prose = re.sub(r"(?m)^  +-.*?(  |$)|\{.*?\}", "", out)
        assert not re.search(r"\b(show|default|folder|exit code|the|file that)\b", prose)
    assert run(*command, "--help")[1].startswith("usage: ")


def test_an_error_of_use_is_in_the_language(run, tmp_path):
    code, out, err = run("scan", "--lang", "zh")
    assert code == 2 and not out and "\u7f3a\u5c11\u5fc5\u9700\u7684\u53c2\u6570\uff1aFOLDER" in err
    code, out, err = run("--lang", "zh", "resize", "a", "-o", "b", "--rank", "0")
    assert (
        code == 2 and err.count("\n") == 1 and "\u53c2\u6570 --rank\uff1a\u79e9\u5e94\u4e3a" in err
    )
    code, out, err = run("merge", "a", "-o", tmp_path / "b" / "c", "--lang", "zh")
    assert code == 2 and CHINESE.search(err) and err.endswith("\u3002\n")
    assert "Nothing was written" not in err and "there is no folder" not in err


def test_the_environment_chooses(run, monkeypatch):
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert CHINESE.search(run("--help")[1])
    assert not CHINESE.search(run("--lang", "en", "--help")[1])


def test_a_report_is_in_the_language_and_its_json_is_not(run, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file(kohya_lora(), file)
    english = run("fix", file, "--json", "--dry-run", "--to", "kohya")
    assert run("fix", file, "--json", "--dry-run", "--to", "kohya", "--lang", "zh") == english
    assert not CHINESE.search(english[1]) and json.loads(english[1])["told"]
    _, out, _ = run("fix", file, "--dry-run", "--to", "kohya", "--lang", "zh")
    assert CHINESE.search(out) and "would be" not in out
    _, out, err = run("scan", tmp_path, "--no-index", "--lang", "zh")
    assert CHINESE.search(out.splitlines()[0]) and CHINESE.search(err)


def test_argparse_says_its_own_words_in_the_language_only_meanwhile():
    """A version of Python may say something otherwise; what this one says, it says so."""
    before = argparse._, argparse.ngettext
    with words_of_argparse(Speaker("zh")):
        assert argparse._("usage: ") == "\u7528\u6cd5\uff1a"
        assert argparse._("nobody says this") == "nobody says this"
    assert (argparse._, argparse.ngettext) == before
    source = Path(argparse.__file__).read_text("utf-8")
    unknown = {id for id in OF_ARGPARSE if str(message(id)) not in source}
    assert len(unknown) <= 2


@pytest.mark.parametrize("width", [7, 10, 31])
def test_wide_letters_are_two_columns(width):
    text = "\u5c06\u4efb\u610f LoRA \u5408\u5e76\uff0c\u5199\u5165\u6587\u4ef6\u3002--exact \u4fdd\u7559\u5b8c\u6574\u3002"
    lines = wrapped(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert not [line for line in lines if line[0] in "\uff0c\u3002"]
    wide = [sum(1 + (letter >= "\u2e80") for letter in line) for line in lines]
    assert max(wide) <= width + 2
