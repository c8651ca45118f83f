"""Make this project's own environment in .dev/, then run its demo, its tests, or a ComfyUI server
with the pack in it.

Needs nothing but Python 3.10 or later:

    python dev.py demo [--once]      show the pack on a tiny FLUX, beside the stock loader
    python dev.py test [ARGUMENT..]  run ruff, then pytest with the arguments (default: all tests)
    python dev.py test --fast        run what needs a minute at most
    python dev.py lint               check style, format and types
    python dev.py bench [--short]    measure speed and memory, as ratios to other ways
    python dev.py mutate [MODULE..]  put faults into the core, and tell which no test notices
    python dev.py hosts [ARGUMENT..] test the pack on every ComfyUI release it claims
    python dev.py server             run a real ComfyUI with the pack and the demo's models
    python dev.py env                only make the environment, and say where things are
    python dev.py docs               build the site of docs/ in .dev/site
    python dev.py pack               pack what ComfyUI's registry gets, as .dev/lora-locksmith.zip
    python dev.py lock               pin what pyproject.toml's groups ask for anew
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TEST_SUPPORT = Path(__file__).absolute().parent / "tests" / "support"
if str(TEST_SUPPORT) not in sys.path:
    sys.path.append(str(TEST_SUPPORT))

import comfy_server  # noqa: E402
import demo  # noqa: E402
from devtools.browser import BROWSER_TESTS, ensure_browser  # noqa: E402
from devtools.comfyui import ensure_comfyui, ensure_hosts  # noqa: E402
from devtools.environment import ensure_environment, environment_python, lock  # noqa: E402
from devtools.front_end import ensure_axe, ensure_front_end, ensure_web_types  # noqa: E402
from devtools.packing import pack  # noqa: E402
from devtools.steps import (  # noqa: E402
    ROOT,
    WORK,
    Fault,
    end_of,
    one_at_a_time,
    run_step,
    say,
    the_only_server,
)
from devtools.type_check import check_types  # noqa: E402

DEMO_BASE = WORK / "demo"
SERVER_LOG = WORK / "demo-server.log"
COMPATIBILITY_TESTS = ROOT / "tests" / "compatibility"
WEB_TYPES_TEST = ROOT / "tests" / "test_web_types.py"
BYTECODE = WORK / "bytecode"

FAST = "--fast"  # of the command test: what needs a minute at most, while one works
# The folders are named as well, so that their files are not even read.
FAST_TESTS = [
    "-m",
    "not (browser or host or trainer or slow)",
    *(
        f"--ignore=tests/{folder}"
        for folder in ("bench", "browser", "compatibility", "host", "hostile", "mutation", "server")
    ),
]
MAX_WORKERS = 4  # processes that run tests side by side; each needs 2 GB and a server of its own


def needs_browser(arguments: list[str]) -> bool:
    """Whether pytest called with these arguments may run the tests in the browser."""
    return may_run(arguments, BROWSER_TESTS)


def named_paths(arguments: list[str]) -> list[Path]:
    """The files and folders that pytest's arguments name."""
    paths = [
        (ROOT / argument.split("::")[0]).absolute()
        for argument in arguments
        if not argument.startswith("-")
    ]
    return [path for path in paths if path.exists()]


def may_run(arguments: list[str], tests: Path) -> bool:
    """Whether pytest called with these arguments may run the tests in this folder or file."""
    paths = named_paths(arguments)
    return not paths or any(
        tests.is_relative_to(path) or path.is_relative_to(tests) for path in paths
    )


def ensure_demo_models(python: Path, comfyui: Path) -> None:
    """Write the demo's tiny models, unless the present program wrote those that are there."""
    writer = TEST_SUPPORT / "tiny_models.py"
    stamp, recipe_of_models = (
        DEMO_BASE / "models" / "made-from.txt",
        hashlib.sha256(writer.read_bytes()).hexdigest(),
    )
    with one_at_a_time():
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == recipe_of_models:
            return
        command = [str(python), str(writer), str(comfyui), str(DEMO_BASE / "models")]
        run_step(
            "a tiny FLUX and LoRA files to load on it (15 s)",
            command,
            f"If it stays so, delete {DEMO_BASE} and try again.",
        )
        stamp.write_text(recipe_of_models, encoding="utf-8")


@contextlib.contextmanager
def demo_server(comfyui: Path) -> Iterator[comfy_server.Server]:
    """A running server with the pack, the tiny models and the demo workflow in
    its workflow list.
    """
    with the_only_server():
        comfy_server.prepare_base(DEMO_BASE, ROOT)
        ensure_demo_models(environment_python(), comfyui)
        demo.save_workflow(DEMO_BASE / "user" / "default" / "workflows" / demo.DEMO_WORKFLOW)
        say(f"Starting the real server with the pack in it (15 s; log in {SERVER_LOG})")
        with comfy_server.Server(environment_python(), comfyui, DEMO_BASE, SERVER_LOG) as server:
            yield server


def command_demo(once: bool) -> int:
    ensure_environment()
    with demo_server(ensure_comfyui()) as server:
        say(f"Running {demo.EXAMPLE.name} three times on a tiny FLUX (15 s)")
        outcome = demo.run_demo(server)
        say(f"\n{demo.BROKEN_LORA}: {outcome.keys} keys such as\n  {outcome.example_key}\n")
        show(outcome)
        if not once:
            stay(server)
    return 0 if outcome.as_promised else 1


def show(outcome: demo.Outcome) -> None:
    say("\n".join(outcome.lines()))
    say("\nThe report of 'Load and Fix LoRA':")
    say("\n".join(f"  | {line}" for line in outcome.report_text.splitlines()))
    if outcome.as_promised:
        say("\nAs promised: the stock loader ignored the file, ours placed every key.")
    else:
        say(f"\nNOT as promised: see the table above and {SERVER_LOG}.")


def stay(server: comfy_server.Server) -> None:
    say(f"\nThe server runs on {server.url} (workflow list: {demo.DEMO_WORKFLOW}). Ctrl-C ends it.")
    server.process.wait()
    raise Fault(f"The server ended by itself.\n{end_of(SERVER_LOG)}")


def command_server() -> int:
    ensure_environment()
    with demo_server(ensure_comfyui()) as server:
        stay(server)
    return 0


def command_test(arguments: list[str]) -> int:
    """Run ruff, then pytest, whose summary stays the last thing printed; the exit code is pytest's,
    or 1 if only ruff found faults.
    """
    python = str(ensure_environment())
    fast = FAST in arguments
    if fast:
        arguments = [argument for argument in arguments if argument != FAST] + FAST_TESTS
    environment = {**os.environ, **of_the_host(), "PYTHONUNBUFFERED": "1", **keeping_bytecode()}
    if not fast:
        ensure_all_judges(arguments)
    faults = lint(python)
    say("pytest")
    side_by_side = workers(arguments)
    if side_by_side:  # threads of several processes would wait for each other
        environment.setdefault("OMP_NUM_THREADS", "1")
    command = [python, "-m", "pytest", *side_by_side, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode or faults


def lint(python: str) -> int:
    """Run ruff's two checks; 1 if any found a fault."""
    say("ruff")
    checks = (["check"], ["format", "--check", "--quiet"])
    codes = [
        subprocess.run([python, "-m", "ruff", *check, str(ROOT)], cwd=ROOT).returncode
        for check in checks
    ]
    if any(codes):
        say(
            "ruff found faults (above), so this run fails whatever else says. Many go away with:"
            f" {python} -m ruff check --fix; {python} -m ruff format"
        )
    return int(any(codes))


def ensure_all_judges(arguments: list[str]) -> None:
    """Get what the tests that pytest's arguments name need besides ComfyUI."""
    if needs_browser(arguments):
        ensure_browser()
        ensure_front_end()
        ensure_axe()
    if may_run(arguments, WEB_TYPES_TEST):
        ensure_web_types()
    if may_run(arguments, COMPATIBILITY_TESTS):
        ensure_hosts()


def keeping_bytecode() -> dict[str, str]:
    """The variables by which Python keeps compiled modules in .dev/, also where this machine tells
    it to keep none: the tests start hundreds of processes, and without bytecode each compiles
    ComfyUI and the trainers' libraries anew, which takes longer than most tests.
    """
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(BYTECODE)}


def workers(arguments: list[str]) -> list[str]:
    """What makes pytest use all cores, for the whole suite; tests of one file stay together, as
    they share a browser. The files come in the order of tests/conftest.py, the longest first:
    xdist's own puts those with few tests last, and these take longest.
    """
    count = min(os.cpu_count() or 1, MAX_WORKERS)
    by_hand = any(
        argument.startswith(("-n", "-s", "--pdb", "--trace", "-p")) for argument in arguments
    )
    return (
        []
        if count < 2 or by_hand or named_paths(arguments)
        else ["-n", str(count), "--dist", "loadfile", "--no-loadscope-reorder"]
    )


def command_bench(arguments: list[str]) -> int:
    """Take the measurements of tests/bench, on the environment's Python and the ComfyUI at hand."""
    return run_in_tests("bench", arguments, PYTHONPATH=str(TEST_SUPPORT))


def command_mutate(arguments: list[str]) -> int:
    """Put small faults into the core, each by itself, and tell which of them no test notices
    (tests/mutation).
    """
    return run_in_tests("mutation", arguments, OMP_NUM_THREADS="1")


def run_in_tests(module: str, arguments: list[str], **variables: str) -> int:
    python = str(ensure_environment())
    environment = {**os.environ, **of_the_host(), **variables}
    command = [python, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT / "tests", env=environment).returncode


def of_the_host() -> dict[str, str]:
    """The variables that say where ComfyUI is, and that nothing is to be downloaded."""
    return {"COMFYUI_PATH": str(ensure_comfyui()), "HF_HUB_OFFLINE": "1"}


def command_hosts(arguments: list[str]) -> int:
    os.environ.setdefault("LOCKSMITH_HOSTS", "all")
    return command_test([str(COMPATIBILITY_TESTS), *arguments])


def command_env() -> int:
    say(f"Python {ensure_environment()}")
    ensure_comfyui()
    return 0


def command_lock() -> int:
    ensure_environment()
    lock()
    return 0


def command_docs() -> int:
    """Build the site; links that lead nowhere are faults."""
    command = [str(ensure_environment()), "-m", "mkdocs", "build", "--quiet"]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    faults = subprocess.run(command, cwd=ROOT, env=quiet).returncode
    if not faults:
        say(f"The site is in {WORK / 'site'}: open index.html there.")
    return faults


def command_pack() -> int:
    say(f"{pack()} is written.")
    return 0


def command_lint() -> int:
    python = str(ensure_environment())
    faults = lint(python)
    say("mypy")
    outcome = check_types(python)
    say(f"{outcome.stdout}{outcome.stderr}".rstrip())
    return faults or outcome.returncode


# What follows these is for pytest, the benchmarks or the mutants.
WITH_ARGUMENTS = {
    "test": command_test,
    "hosts": command_hosts,
    "bench": command_bench,
    "mutate": command_mutate,
}
PLAIN = {
    "server": command_server,
    "env": command_env,
    "lint": command_lint,
    "lock": command_lock,
    "docs": command_docs,
    "pack": command_pack,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "demo", help="the pack beside the stock loader on a tiny FLUX"
    ).add_argument("--once", action="store_true")
    commands.add_parser("test", help="ruff and pytest", add_help=False)
    commands.add_parser("hosts", help="pytest on every ComfyUI release", add_help=False)
    commands.add_parser("bench", help="how fast it is, as ratios", add_help=False)
    commands.add_parser("mutate", help="faults that no test notices", add_help=False)
    commands.add_parser("server", help="ComfyUI with the pack")
    commands.add_parser("env", help="only make the environment")
    commands.add_parser("lint", help="style, format and types")
    commands.add_parser("lock", help="pin the packages of the environment anew")
    commands.add_parser("docs", help="build the site of docs/")
    commands.add_parser("pack", help="pack what ComfyUI's registry gets")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in WITH_ARGUMENTS:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.rest = rest
    return options


def run_command(options: argparse.Namespace) -> int:
    if options.command == "demo":
        return command_demo(options.once)
    if options.command in WITH_ARGUMENTS:
        return WITH_ARGUMENTS[options.command](options.rest)
    return PLAIN[options.command]()


def main() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - dev.py meets whatever Python a machine has
        say(
            f"dev.py needs Python 3.10 or later, and this is {platform.python_version()}. Try for"
            " example: python3.12 dev.py"
        )
        return 2
    for stream in (sys.stdout, sys.stderr):
        # A console may lack letters that a folder's name has.
        stream.reconfigure(errors="backslashreplace")
    options = parse(sys.argv[1:])
    # So that a server started here ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run_command(options)
    except KeyboardInterrupt:
        say("\nStopped.")
        return 130
    except Fault as fault:
        say(f"\n{fault}")
    except (comfy_server.ServerError, comfy_server.PromptError) as fault:
        say(f"\n{fault}\nThe server's log: {SERVER_LOG}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
