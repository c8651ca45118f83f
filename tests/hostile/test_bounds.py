"""Time and memory grow as the file does, and not with what the file claims to be."""

from __future__ import annotations

import json
import os
import threading
import time
import tracemalloc
from contextlib import suppress

import pytest
import seeds
from judge import judge
from lora_locksmith.files.header import (
    MAX_HEADER_BYTES,
    LoraFileError,
    Unreadable,
    adapter_config_beside,
    parse_header,
    read_header,
)
from lora_locksmith.identify.checkpoint import target_model_of_checkpoint
from lora_locksmith.planning.target_model import all_families
from lora_locksmith.report import inspection
from lora_locksmith.report.findings import findings_of
from lora_locksmith.report.library import scan
from lora_locksmith.report.listing import list_files
from lora_locksmith.report.markdown import DETAILS, markdown

STEPS = 300, 1200  # modules
LEAST = 0.05  # seconds of processor time below which a machine's hiccups are all there is
GROWTH = 4 * 2.5  # what four times as much may cost; a quadratic step costs 16 times as much
MAX_TEXT = 8  # times the header: what a report of every key may come to


def everything(path) -> int:
    """The characters of all that is told of a file, read anew."""
    inspection._alike.clear()
    all_families().memory.clear()
    found = inspection.inspect_file(path)
    return len(json.dumps(found.as_dict())) + len(markdown(found, DETAILS[-1]))


def cost(work) -> float:
    """Processor time, the better of two."""
    times = []
    for _ in range(2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("kind", seeds.GROWING)
def test_four_times_the_file_takes_about_four_times_as_long(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    costs = []
    for count in STEPS:
        seeds.write_sparse(path, seeds.GROWING[kind](count))
        costs.append(cost(lambda: everything(path)))
    assert everything(path) < MAX_TEXT * read_header(path).data_start
    assert costs[1] < GROWTH * max(costs[0], LEAST), costs


FAULTY = {
    "a shape of many large numbers": lambda n: '{"a":' + seeds.entry(shape=[2**62] * n) + "}",
    "a name twice, among many": (
        lambda n: "{" + ",".join(f'"{i}":%' for i in range(n)) + f',"{n - 1}":%}}'
    ),
    "many names, all of one place": lambda n: "{" + ",".join(f'"{i}":%' for i in range(n)) + "}",
    "many objects that are nothing": lambda n: '{"a":[' + ",".join(["{}"] * n) + "]}",
    "many quotes of a header in the metadata": lambda n: (
        '{"__metadata__":{' + ",".join(f'"\\"shape{i}":"dtype"' for i in range(n)) + '},"a":%}'
    ),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_a_fault_is_found_in_time_that_grows_with_the_header(kind):
    def refused(count: int) -> None:
        with suppress(LoraFileError):
            parse_header("x", FAULTY[kind](count).replace("%", seeds.entry()).encode(), 4)

    costs = [cost(lambda count=count: refused(count)) for count in (5_000, 20_000)]
    assert costs[1] < GROWTH * max(costs[0], LEAST), costs


def test_memory_grows_with_the_header(tmp_path):
    peaks = []
    for count in STEPS:
        path = seeds.write_sparse(tmp_path / "x.safetensors", seeds.GROWING["blocks"](count))
        inspection._alike.clear()
        tracemalloc.start()
        everything(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0] and peaks[1] < 120 * read_header(path).data_start, peaks


@pytest.mark.skipif(os.name == "nt", reason="a file here takes all of its space")
def test_a_terabyte_that_takes_no_space_is_read_by_its_header(tmp_path):
    wide = 2**38
    path = seeds.write_sparse(
        tmp_path / "x.safetensors", seeds.module(seeds.FLUX.format(0), 1, wide // 4, wide // 4 * 3)
    )
    assert path.stat().st_size > 2**40 and judge(path) == "read"
    cut = seeds.write_sparse(
        tmp_path / "y.safetensors", seeds.module("x", 1, wide, wide), size=2**40
    )
    assert "cut short" in judge(cut)
    # Half a gigabyte that says it is a header.
    with open(tmp_path / "z.safetensors", "wb") as file:
        file.write((500_000_000).to_bytes(8, "little"))
        file.truncate(600_000_000)
    tracemalloc.start()
    assert "not a safetensors file" in judge(tmp_path / "z.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_header_of_100_megabytes(tmp_path):
    """Of spaces, and of nothing that is JSON: read once, no more than a few copies."""
    path = tmp_path / "x.safetensors"
    for text in (
        b"{}" + b" " * (MAX_HEADER_BYTES - 2),
        b'{"a":"' + b"x" * (MAX_HEADER_BYTES - 8) + b'"}',
        bytes(MAX_HEADER_BYTES),
    ):
        path.write_bytes(seeds.packed(text))
        tracemalloc.start()
        findings_of(path)
        assert tracemalloc.get_traced_memory()[1] < 5 * MAX_HEADER_BYTES
        tracemalloc.stop()


def finished(work, seconds: float = 20) -> bool:
    """Whether work ends by itself; it runs in a thread that would not keep the
    tests from ending.
    """
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    told = {}
    assert finished(lambda: told.update({row.file: row.findings.error for row in scan(tmp_path)}))
    assert (
        "not a regular file" in told["pipe.safetensors"]
        and "not a regular file" in told["zero.safetensors"]
        and len(told) == 2
    )
    for content in ("pipe", "device"):
        folder = tmp_path / content
        folder.mkdir()
        config = folder / "adapter_config.json"
        os.mkfifo(config) if content == "pipe" else config.symlink_to("/dev/zero")
        (folder / "x.safetensors").write_bytes(seeds.WHOLE)
        assert finished(
            lambda folder=folder: told.update(
                {folder.name: adapter_config_beside(folder / "x.safetensors")}
            )
        )
        assert (
            isinstance(told[folder.name], Unreadable) and judge(folder / "x.safetensors") == "read"
        )


def test_settings_beside_a_file_that_are_none(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(seeds.sound(seeds.module(seeds.FLUX.format(0))))
    for value in (
        *seeds.VALUES,
        seeds.DEEP,
        "x" * 1_000_000,
        '{"r":' + "9" * 5000 + "}",
        '{"alpha_pattern":[1],"r":"x"}',
    ):
        (tmp_path / "adapter_config.json").write_bytes(value.encode("utf-8", "surrogatepass"))
        assert judge(path) == "read"
    with open(tmp_path / "adapter_config.json", "wb") as file:
        file.truncate(2**33)
    assert isinstance(adapter_config_beside(path), Unreadable)


def test_an_index_of_shards_leads_nowhere_else(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret.safetensors").write_bytes(seeds.WHOLE)
    index = tmp_path / "folder" / "model.safetensors.index.json"
    for name in (
        "../secret.safetensors",
        str(tmp_path / "secret.safetensors"),
        "..",
        "a\0b",
        "x/../../secret.safetensors",
        1,
        None,
    ):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(LoraFileError) as refused:
            target_model_of_checkpoint(index)
        assert "secret" not in refused.value.fault


@pytest.mark.skipif(os.name == "nt", reason="a whole path may have no more here")
def test_names_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("x" * 240 + ".safetensors")
    path.write_bytes(seeds.WHOLE)
    assert judge(path) == "read" and list_files(tmp_path).keys() == {path.name}
