"""What every test shares: the pack under a fixed name, the real ComfyUI in this process or as a
server, and tiny models on disk.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import comfy_server
import pytest
import times
from devtools import comfyui, steps

ROOT = Path(__file__).resolve().parent.parent
REMEDY = (
    "Run the tests with 'python dev.py test', which gets ComfyUI, or set COMFYUI_PATH to a ComfyUI"
    " folder."
)


def load_module(name: str, file: Path, folder: Path | None = None) -> ModuleType:
    """Import a file under a name of our choice, once; with `folder` it is a package whose
    submodules lie there.
    """
    if name in sys.modules:
        return sys.modules[name]
    locations = [str(folder)] if folder else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=locations)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# ComfyUI imports the pack by its path, and a checkout may be called anything: the tests say
# 'lora_locksmith'. pytest forgets the name 'conftest', so that this file may be imported again; a
# second package would lack the modules that were imported into the first.
load_module("lora_locksmith", ROOT / "__init__.py", ROOT)
load_module("locksmith_dev", ROOT / "dev.py")


CPU = pytest.StashKey[float]()
HOST_FOLDERS = {"browser", "compatibility", "host", "server"}
HOST_FIXTURES = {"comfy", "comfyui_path", "server"}
SLOW_FOLDERS = {"bench", "hostile", "mutation"}
SLOW = 5.0  # seconds of a whole file
TRAINER = re.compile(
    r"^\s*(?:from|import) (?:peft|lycoris|diffusers|trainers|peft_nets|trained_files|sweep)\b",
    re.MULTILINE,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--times",
        action="store_true",
        help="write what each file of tests took into tests/times.txt, and show it",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests; where several processes share the files, those that take longest come
    first.
    """
    taken = times.read()
    for item in items:
        for mark in marks_of(item, taken):
            item.add_marker(mark)
    if hasattr(config, "workerinput"):
        files = dict.fromkeys(times.file_of(item.nodeid) for item in items)
        place = {file: n for n, file in enumerate(times.longest_first(files, taken))}
        items.sort(key=lambda item: place[times.file_of(item.nodeid)])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test, and what it shares with others, draws the same numbers, whatever ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Put the processor's seconds since the last report beside the report's duration."""
    report, now = (yield), times.cpu_seconds()
    report.cpu = now - item.config.stash.get(CPU, now)
    item.config.stash[CPU] = now
    return report


def marks_of(item: pytest.Item, taken: dict[str, times.Time]) -> Iterator[str]:
    """browser: needs one; host: needs ComfyUI; trainer: needs a trainer's library; slow: in a file
    that takes long, as tests/times.txt says, or that it does not know.
    """
    file = times.file_of(item.nodeid)
    folder = Path(file).parts[1] if len(Path(file).parts) > 2 else ""
    if folder == "browser":
        yield "browser"
    if folder in HOST_FOLDERS or HOST_FIXTURES.intersection(getattr(item, "fixturenames", ())):
        yield "host"
    if uses_trainer(item.path):
        yield "trainer"
    if folder in SLOW_FOLDERS or file not in taken or taken[file].clock > SLOW:
        yield "slow"


@cache
def uses_trainer(file: Path) -> bool:
    """Whether a file of tests imports a trainer's library."""
    return bool(TRAINER.search(file.read_text("utf-8")))


def show_times(terminalreporter: pytest.TerminalReporter) -> None:
    states = ("", "passed", "failed", "skipped", "error", "xfailed", "xpassed")
    reports = [report for state in states for report in terminalreporter.stats.get(state, ())]
    taken = times.summed(report for report in reports if isinstance(report, pytest.TestReport))
    times.write(taken)
    terminalreporter.section("times: seconds, of the processor, tests")
    for line in times.lines(taken):
        terminalreporter.write_line(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell what tests measured; whether they run here or in other processes, where printing is not
    seen.
    """
    reports = [
        report for state in ("passed", "failed") for report in terminalreporter.stats.get(state, ())
    ]
    told = [
        value for report in reports for name, value in report.user_properties if name == "measured"
    ]
    if told:
        terminalreporter.section("measured")
        for line in told:
            terminalreporter.write_line(line)
    if terminalreporter.config.getoption("--times"):
        show_times(terminalreporter)


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The folder of the ComfyUI under test."""
    try:
        folder = comfyui.comfyui_at_hand()
    except steps.Fault as fault:
        pytest.fail(str(fault), pytrace=False)
    if folder is None:
        pytest.fail(f"There is no ComfyUI to test with. {REMEDY}", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def comfy(comfyui_path: Path) -> ModuleType:
    """ComfyUI's `comfy` package in this process, on the CPU; its other modules (nodes,
    folder_paths) can be imported from then on.
    """
    ours = sys.modules.get("nodes")
    if ours is not None and Path(ours.__file__ or ROOT).is_relative_to(ROOT):
        pytest.fail(
            "A test imported this pack's folder as 'nodes', ComfyUI's name. Import"
            " lora_locksmith.nodes.",
            pytrace=False,
        )
    from tiny_models import import_comfy

    try:
        return import_comfy(comfyui_path)
    except ImportError as fault:
        pytest.fail(f"ComfyUI in {comfyui_path} does not import: {fault}. {REMEDY}", pytrace=False)


@pytest.fixture(scope="session")
def tiny_models_folder(
    comfy: ModuleType, comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A ComfyUI models folder with the files tiny_models.py writes."""
    from tiny_models import write_models

    folder = tmp_path_factory.mktemp("tiny") / "models"
    write_models(comfyui_path, folder)
    return folder


@pytest.fixture(scope="session")
def server(comfyui_path: Path, tiny_models_folder: Path) -> Iterator[comfy_server.Server]:
    """One running server for all tests; its base folder holds the tiny models and a link to this
    pack.
    """
    base = comfy_server.prepare_base(tiny_models_folder.parent, ROOT)
    with comfy_server.Server(
        Path(sys.executable), comfyui_path, base, base / "server.log"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def shelves_put_back(server: comfy_server.Server) -> Iterator[None]:
    """Removes the LoRA files that a module's tests leave behind: other modules' lists would hold
    them, or not, as the modules happen to be shared out among processes.
    """
    folder = server.base / "models" / "loras"
    before = set(folder.rglob("*"))
    yield
    for path in sorted(set(folder.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.fixture(scope="session")
def object_info(server: comfy_server.Server) -> dict:
    """Every node the server knows, as it declares it."""
    return server.object_info()


@pytest.fixture(scope="session")
def tiny_flux(comfy):
    """make() -> a ModelPatcher over a tiny fp32 FLUX with seeded weights, the same every time."""
    import torch

    def make(dtype=torch.float32):
        import comfy.model_detection
        import comfy.model_patcher
        from tiny_models import flux_state_dict

        weights = {name: weight.float() for name, weight in flux_state_dict().items()}
        config = comfy.model_detection.model_config_from_unet(weights, "")
        config.set_inference_dtype(dtype, None)
        model = config.get_model(weights, "")
        model.load_model_weights(dict(weights), "")
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(
            model.to(dtype), load_device=cpu, offload_device=cpu
        )

    return make


@pytest.fixture(scope="session")
def both(tiny_flux):
    """The tiny FLUX as the host has it and as diffusers does, with the same weights."""
    from truth import flux_twin

    return flux_twin(tiny_flux())
