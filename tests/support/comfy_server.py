"""Start a real ComfyUI server with this pack in a folder of its own, and talk to it over HTTP
(standard library only).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import deque
from pathlib import Path

PACK_FOLDER = "lora-locksmith"
MODEL_FOLDERS = ("diffusion_models", "text_encoders", "vae", "vae_approx", "loras", "checkpoints")
NOT_PART_OF_THE_PACK = (
    ".dev",
    ".git",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
)


# Seconds in which something must give a sign of life, else it hangs. No measure of how long
# anything takes: machines are busy at times.
PATIENCE = float(os.environ.get("LOCKSMITH_PATIENCE", 600.0))


class ServerError(Exception):
    """The server did not start, or does not answer; the message says where to look."""


class PromptError(Exception):
    """The server refused a prompt, or a node failed; the message is the server's own.

    `node_errors` holds what the server says of each node of a refused prompt (empty when a node
    failed while running).
    """

    def __init__(self, message: str, node_errors: dict | None = None):
        super().__init__(message)
        self.node_errors = node_errors or {}


def prepare_base(base: Path, pack: Path) -> Path:
    """Make the folder a server keeps everything in (models, inputs, outputs, user data), with the
    pack as its only custom node.
    """
    for folder in (
        "input",
        "output",
        "temp",
        "user",
        "custom_nodes",
        *(f"models/{name}" for name in MODEL_FOLDERS),
    ):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK_FOLDER
    if link.is_symlink():
        if link.resolve() == pack.resolve():
            return base
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    try:
        link.symlink_to(pack, target_is_directory=True)
    except OSError:  # Windows allows links only in developer mode
        shutil.copytree(pack, link, ignore=shutil.ignore_patterns(*NOT_PART_OF_THE_PACK))
    return base


def complaints_about_the_pack(log: str) -> list[str]:
    """The lines of a server's log that warn of this pack, or say that it did not load."""
    lines = [line for line in log.splitlines() if "locksmith" in line.lower()]
    return [
        line
        for line in lines
        if re.search(
            r"WARNING|ERROR|CRITICAL|IMPORT FAILED|Cannot import|Error while|Traceback", line
        )
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A ComfyUI server on this machine's loopback address; use it in a `with` statement, or call
    start() and stop().

    The variable FRONT_END_ROOT may name a folder to serve the front end from, in place of the one
    this ComfyUI comes with.
    """

    def __init__(
        self,
        python: Path,
        comfyui: Path,
        base: Path,
        log: Path,
        extra_arguments: tuple[str, ...] = (),
    ):
        self.python, self.comfyui, self.base, self.log = python, comfyui, base, log
        self.extra_arguments = extra_arguments
        self.url = ""
        self.startup_log = ""  # what the server had logged when it first answered
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def command(self, port: int) -> list[str]:
        front_end = (
            ("--front-end-root", os.environ["FRONT_END_ROOT"])
            if os.environ.get("FRONT_END_ROOT")
            else ()
        )
        return [
            str(self.python),
            str(self.comfyui / "main.py"),
            "--cpu",
            "--port",
            str(port),
            "--base-directory",
            str(self.base),
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--database-url",
            f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}",
            *front_end,
            *self.extra_arguments,
        ]

    def start(self, port: int = 0) -> None:
        """Start the process and return when it answers; ServerError with the end of its log if it
        does not. port: 0 for a free one.
        """
        port = port or free_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
            "HF_HUB_OFFLINE": "1",
        }
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command(port),
                cwd=self.base,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.url = f"http://127.0.0.1:{port}"
        try:
            self._wait_until_it_answers()
            self.startup_log = self.log_text()
        except BaseException:
            self.stop()
            raise

    def _wait_until_it_answers(self) -> None:
        """As long as the process lives and does something."""
        signs, deadline = (), time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(
                    f"ComfyUI ended with exit code {self.process.returncode} while"
                    f" starting.\n{self._end_of_log()}"
                )
            try:
                self.get("/system_stats", seconds=5)
            except (OSError, ServerError):
                time.sleep(0.25)
            else:
                return
            if signs != (signs := self._signs_of_life()):
                deadline = time.monotonic() + PATIENCE
        raise ServerError(
            f"ComfyUI did not answer, and did nothing for {PATIENCE:.0f} s.\n{self._end_of_log()}"
        )

    def _signs_of_life(self) -> tuple:
        """How much the process has logged and, where the system tells it in a file, computed."""
        try:
            computed = (
                Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            )
        except OSError:
            computed = []
        return (self.log.stat().st_size, *computed)

    def _end_of_log(self, lines: int = 25) -> str:
        end = deque(self.log_text().splitlines(), maxlen=lines)
        return "\n".join(f"  | {line}" for line in end) + f"\nThe whole log: {self.log}"

    def stop(self) -> None:
        """End the process this object started, gently first."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def log_text(self) -> str:
        """The log, with ComfyUI and its Python but not the folder they are in, which may be called
        as the pack is.
        """
        text = self.log.read_text(encoding="utf-8", errors="replace")
        for place in (self.comfyui, self.python.parent.parent):
            text = text.replace(str(place), place.name)
        return text

    def get_bytes(self, path: str, seconds: float = PATIENCE) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=seconds) as answer:
            return answer.read()

    def get(self, path: str, seconds: float = PATIENCE):
        return json.loads(self.get_bytes(path, seconds))

    def object_info(self) -> dict:
        """Every node the server knows; ServerError if this pack's are not among them."""
        known = self.get("/object_info")
        if not any(name.startswith("Locksmith") for name in known):
            complaints = "\n".join(complaints_about_the_pack(self.startup_log))
            raise ServerError(
                "The server runs, but this pack did not load. What its log says of"
                f" it:\n{complaints}"
            )
        return known

    def queue(self, prompt: dict) -> str:
        """Queue an API prompt and return its id; PromptError if the server refuses it."""
        body = json.dumps({"prompt": prompt, "client_id": uuid.uuid4().hex}).encode()
        request = urllib.request.Request(
            self.url + "/prompt", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as refusal:
            raise _refused_prompt(refusal) from None

    def run(self, prompt: dict) -> dict:
        """Run an API prompt to its end and return its history entry; PromptError if it is refused
        or a node fails.
        """
        prompt_id = self.queue(prompt)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(f"ComfyUI died while running a prompt.\n{self._end_of_log()}")
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry.get("status", {}).get("completed"):
                return entry
            if entry and entry.get("status", {}).get("status_str") == "error":
                raise _failed_prompt(entry)
            time.sleep(0.05)
        raise ServerError(f"The prompt did not end within {PATIENCE:.0f} s.\n{self._end_of_log()}")

    def fetch(self, file: dict) -> bytes:
        """The bytes of an output file as a history entry names it (filename, subfolder, type)."""
        return self.get_bytes(
            "/view?"
            + urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
        )


def _refused_prompt(refusal: urllib.error.HTTPError) -> PromptError:
    text = refusal.read().decode("utf-8", "replace")
    try:
        answer = json.loads(text)
    except ValueError:
        return PromptError(f"HTTP {refusal.code}: {text}")
    node_errors = answer.get("node_errors") or {}
    faults = [
        f"{fault['message']}: {fault['details']}"
        for node in node_errors.values()
        for fault in node["errors"]
    ]
    return PromptError("; ".join(faults) or str(answer.get("error")), node_errors)


def _failed_prompt(entry: dict) -> PromptError:
    for kind, details in entry["status"]["messages"]:
        if kind == "execution_error":
            return PromptError(f"{details['node_type']}: {details['exception_message']}")
    return PromptError(f"the prompt failed: {entry['status']['messages'][-1:]}")


def executed_nodes(entry: dict) -> set[str]:
    """The ids of the nodes a run really executed: all of its prompt's nodes less
    the cached ones.
    """
    cached = [
        details["nodes"]
        for kind, details in entry["status"]["messages"]
        if kind == "execution_cached"
    ]
    return set(entry["prompt"][2]) - {node for nodes in cached for node in nodes}


def prompt_of(workflow: dict, object_info: dict) -> dict:
    """The API prompt of a saved workflow, as the front end would make it, for workflows without
    subgraphs or muted nodes.
    """
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] not in object_info:
            continue  # notes and other nodes that live only in the front end
        inputs = _widget_values(node, object_info[node["type"]])
        inputs |= {
            socket["name"]: origins[socket["link"]]
            for socket in node.get("inputs", [])
            if socket.get("link") is not None
        }
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def _widget_values(node: dict, info: dict) -> dict:
    values = iter(node.get("widgets_values", []))
    found = {}
    sockets = {socket["name"] for socket in node.get("inputs", []) if "widget" not in socket}
    for name, (kind, *rest) in (
        info["input"].get("required", {}) | info["input"].get("optional", {})
    ).items():
        options = rest[0] if rest else {}
        if name in sockets or not (
            isinstance(kind, list) or kind in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")
        ):
            continue
        found[name] = next(values, options.get("default"))
        if options.get("control_after_generate"):
            next(values, None)  # the front end keeps 'fixed' or 'randomize' behind the seed
    return found
