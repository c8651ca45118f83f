"""What one trainer or one kind of adapter means stands in records, tables and the kind's own file:
no other Python names them, but for what is listed here with the reason.
"""

import ast
import re
from pathlib import Path

from lora_locksmith.adapters.registry import kinds
from lora_locksmith.key_maps.dialect import FOLDER

ROOT = Path(__file__).resolve().parent.parent
# Kinds and dialects whose names are words of the field, or of the host, which code is about.
COMMON = {
    *("bias", "comfyui", "diff", "diffusers", "embedding", "full", "fullrank", "identity", "lora"),
    *("lora_flat", "native", "norm", "rows", "set", "shift", "tokens", "bias_lora", "original"),
}
OTHERS = {"sd_?scripts", "split_qkv", "krona", "cdka", "dora", "musubi", "xlabs", "ostris", "oft"}
# file -> {what it names: why it may}
ALLOWED = {
    "adapters/rotation.py": {"OFT": "the title that rotations share unless a kind says another"},
    "adapters/rotations.py": {"oft_R": "the role that several kinds share"},
    "adapters/tensors.py": {"vblora_weights_": "roles that may be empty, which no kind tells yet"},
    "commands/fix.py": {"commands.peft_not_in_place": "PEFT's folder is a form of output"},
    "commands/resize.py": {
        "--dora": "an option of the command",
        "dora": "an option of the command",
        "commands.dora_help": "an option of the command",
    },
    "commands/remote.py": {"PEFT_CONFIG": "the file beside a LoRA"},
    "commands/remote_folder.py": {"PEFT_CONFIG": "the file beside a LoRA"},
    "files/header.py": {"PEFT_CONFIG": "the file beside a LoRA"},
    "lora/copies.py": {
        "dora_norm": "options of the decomposition",
        "dora_axis": "options of the decomposition",
    },
    "lora/io/writer.py": {
        "PEFT_CONFIG": "the file beside a LoRA",
        "PEFT_FILE": "the file beside a LoRA",
    },
    "lora/merge/methods/sparse.py": {"arXiv:1506.02626 (PEFT)": "where a method comes from"},
    "lora/rewrite/convert.py": {
        "PeftTraining": "what adapter_config.json says, a form of output",
        "dora": "whether a module has a magnitude",
        "lora.no_form_for_dora": "whether a module has a magnitude",
    },
    "lora/rewrite/peft_config.py": {
        "PeftTraining": "what adapter_config.json says, a form of output",
        "dora": "whether a module has a magnitude",
        "peft_type": "what adapter_config.json says, a form of output",
        "use_dora": "what adapter_config.json says, a form of output",
    },
    "lora/rewrite/resize.py": {
        "PEFT_FILE": "the file beside a LoRA",
        "dora": "what the option --dora asks for",
        "_refuse_dora": "what the option --dora asks for",
        "lora.dora_not_cut": "what the option --dora asks for",
        "peft_type": "what adapter_config.json says, a form of output",
    },
    "nodes/merge.py": {
        "Where no factors are exact": "a node's help",
        "Needed for DoRA and OFT": "a node's help",
    },
    "nodes/replacements.py": {
        "MusubiTunerLoRALoaderModelOnly": "another pack's node, by its id",
    },
    "nodes/save.py": {
        "lora to kohya": "search words of a node",
        "lora to peft": "search words of a node",
    },
    "planning/disagreement.py": {"PEFT_CONFIG": "the file beside a LoRA"},
    "planning/ignored_keys.py": {
        "boft_order": "a word of bookkeeping.table, and its sentence",
        "planning.key_boft_order": "a word of bookkeeping.table, and its sentence",
    },
    "report/listing.py": {"PEFT_CONFIG": "the file beside a LoRA"},
}
# Where such names belong, and what is no part of the pack.
ELSEWHERE = ("adapters/kinds/", "tests/", "dev.py", ".dev/", "build/")


def names() -> re.Pattern[str]:
    """Every trainer and every kind of adapter, from the records and the registry."""
    known = {path.stem for path in FOLDER.iterdir()} | {kind.name for kind in kinds()}
    words = sorted((known | OTHERS) - COMMON)
    return re.compile("|".join(rf"(?<![a-z])(?:{word})(?![a-z])" for word in words), re.IGNORECASE)


def named(node: ast.AST) -> str:
    """What a piece of code says: a name, or a text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    for field in ("id", "attr", "name", "arg"):
        said = getattr(node, field, None)
        if isinstance(said, str):
            return said
    return ""


def said_in(path: Path):
    """Everything that a file says, its docstrings left out."""
    tree = ast.parse(path.read_text("utf-8"))
    documents = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {named(node) for node in ast.walk(tree) if node not in documents}


def found() -> dict[str, set[str]]:
    """file -> what it says that names a trainer or a kind."""
    pattern = names()
    files = {
        path.relative_to(ROOT).as_posix(): path
        for path in sorted(ROOT.rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith(ELSEWHERE)
    }
    telling = {
        file: {
            text
            for text in said_in(path)
            if pattern.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text))
        }
        for file, path in files.items()
    }
    return {file: texts for file, texts in telling.items() if texts}


def test_no_code_outside_its_record_names_a_trainer_or_a_kind():
    here = found()
    unlisted = {
        (file, text)
        for file, texts in here.items()
        for text in texts
        if not text.startswith(tuple(ALLOWED.get(file, ())) or "\0")
    }
    assert not unlisted
    idle = {
        (file, text)
        for file, texts in ALLOWED.items()
        for text in texts
        if not any(said.startswith(text) for said in here.get(file, ()))
    }
    assert not idle, "what is allowed is there no more"


def test_the_search_finds_names(tmp_path):
    """A trainer's option in code, as it once stood there; not in a docstring."""
    path = tmp_path / "x.py"
    path.write_text('"""lycoris"""\nif "split_qkv" in y:\n    kohya_rule(y)\n', "utf-8")
    assert {text for text in said_in(path) if names().search(text)} == {"split_qkv", "kohya_rule"}
