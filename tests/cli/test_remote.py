"""Files at addresses: what is read of them, what is told, and that it is what is told of the same
files on this machine.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pytest
from hollow_files import write_hollow
from lora_locksmith.commands import remote, remote_folder
from lora_locksmith.commands.addresses import is_address, shown_address, without_secrets
from lora_locksmith.commands.parser import run
from lora_locksmith.commands.remote import BEYOND, Remote, inspect_remote
from lora_locksmith.files.header import LoraFileError, NotReached, Unreadable, read_header
from lora_locksmith.messages import Speaker
from lora_locksmith.report.findings import findings_of
from lora_locksmith.report.inspection import inspect_file
from reports.small_files import flux_lora, write_file
from web_server import serving

FINE, PROBLEMS, FAILED = 0, 1, 2
LARGE = 400  # blocks: a header of 200 KB
RS_LORA = {"ss_network_args": json.dumps({"rs_lora": "True"}), "ss_network_alpha": "2"}


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "loras"
    folder.mkdir()
    return folder


@pytest.fixture
def web(folder):
    with serving(folder) as server:
        yield server


def with_alphas(path: Path, together: bool, alpha: float = 7.0, metadata=None) -> Path:
    """A LoRA with an alpha for each module: all before the other tensors, or each with its own."""
    shapes = flux_lora(rank=16)
    alphas = {
        name.replace("lora_A.weight", "alpha"): ("F32",) for name in shapes if "lora_A" in name
    }
    names = [*alphas, *shapes] if together else sorted([*alphas, *shapes])
    every = {name: alphas.get(name) or shapes[name] for name in names}
    value = struct.pack("<f", alpha)
    return write_hollow(path, every, metadata, "F16", dict.fromkeys(alphas, value))


def header_bytes(path: Path) -> int:
    return read_header(path).data_start


def plain(inspection) -> dict:
    """What is told of a file, but for its name."""
    return inspection.as_dict() | {"file": ""}


# how much is read


@pytest.mark.parametrize("blocks", [2, 19, LARGE])
def test_no_more_is_sent_than_the_header_and_64_kb(web, folder, blocks):
    path = write_file(folder / "a.safetensors", flux_lora(blocks=blocks))
    inspection, file = inspect_remote(f"{web.url}/files/a.safetensors")
    assert plain(inspection) == plain(inspect_file(path))
    assert web.sent["/files/a.safetensors"] == file.fetched <= header_bytes(path) + BEYOND
    gets = [asked for asked in web.asked if asked == ("GET", "/files/a.safetensors")]
    assert len(gets) == (1 if header_bytes(path) <= BEYOND else 2)
    assert header_bytes(path) > BEYOND or blocks < LARGE


@pytest.mark.parametrize("blocks", [19, LARGE])
def test_a_server_without_ranges_is_left_behind_the_header(web, folder, blocks):
    path = write_file(folder / "a.safetensors", flux_lora(blocks=blocks, rank=128))
    assert path.stat().st_size > 200_000_000
    inspection, file = inspect_remote(f"{web.url}/plain/a.safetensors")
    assert plain(inspection) == plain(inspect_file(path))
    assert file.fetched <= header_bytes(path) + BEYOND and not file.source.ranges
    # What the system has taken off the server before it hears that nobody reads on.
    assert web.sent["/plain/a.safetensors"] < header_bytes(path) + BEYOND + 8_000_000


@pytest.mark.parametrize("how", ["files", "plain"])
def test_alphas_beside_each_other_are_read_along(web, folder, how):
    path = with_alphas(folder / "a.safetensors", together=True)
    inspection, file = inspect_remote(f"{web.url}/{how}/a.safetensors")
    assert plain(inspection) == plain(inspect_file(path))
    assert inspection.as_dict()["alphas"] == {"7": 57} and file.left == 0
    assert file.fetched <= header_bytes(path) + BEYOND


def test_alphas_behind_what_was_read_take_one_more_request(web, folder):
    path = with_alphas(folder / "a.safetensors", together=True, metadata={"notes": "x" * 70_000})
    inspection, file = inspect_remote(f"{web.url}/files/a.safetensors")
    assert plain(inspection) == plain(inspect_file(path)) and file.left == 0
    assert inspection.as_dict()["alphas"] == {"7": 57}
    assert web.sent["/files/a.safetensors"] == file.fetched <= header_bytes(path) + BEYOND
    ranges = [asked["Range"] for place, asked in web.headers if place == "/files/a.safetensors"]
    assert len(ranges) == 3


def test_scattered_alphas_are_left_and_told(web, folder, capsys):
    path = with_alphas(folder / "a.safetensors", together=False)
    address = f"{web.url}/files/a.safetensors"
    assert run(["inspect", "--json", address]) == FINE
    told = json.loads(capsys.readouterr().out)
    assert told["alphas"] == {} and told["alphas_left"] == 57
    assert told["fetched"] == BEYOND == web.sent["/files/a.safetensors"]
    assert told["loads"]["modules"] == plain(inspect_file(path))["loads"]["modules"]
    assert run(["inspect", address]) == FINE
    line = "a.safetensors: 65,536 of 31,"
    said = capsys.readouterr().err
    assert said.startswith(line) and "Its 57 alphas lie scattered" in said
    assert run(["--lang", "zh", "inspect", address]) == FINE
    assert "57 \u4e2a alpha" in capsys.readouterr().err


def test_where_alphas_decide_what_was_not_read_is_a_caution(web, folder):
    """LyCORIS' rs_lora of two versions differ by their alphas alone."""
    paths = [
        with_alphas(folder / f"{together}.safetensors", together, metadata=RS_LORA)
        for together in (True, False)
    ]
    addresses = [f"{web.url}/files/{path.name}" for path in paths]
    together, scattered = (inspect_remote(address)[0].report.cautions for address in addresses)
    assert together == inspect_file(paths[0]).report.cautions != ()
    (caution,) = scattered
    assert "which were not fetched" in caution and "\u672a\u88ab\u4e0b\u8f7d" in Speaker("zh")(
        caution
    )
    found = findings_of(addresses[1], read=lambda address: remote.read_remote(address, False))
    assert found.cautions == scattered


def test_files_that_differ_by_their_alphas_alone_have_rows_of_their_own(folder):
    """What was found in one was remembered for all with the same header."""
    cautions = [
        findings_of(with_alphas(folder / f"{alpha}.safetensors", True, alpha, RS_LORA)).cautions
        for alpha in (7.0, 2.0)
    ]
    assert cautions[0] and not cautions[1]


# settings beside a file


def test_settings_beside_a_remote_file_count(web, folder):
    path = write_file(folder / "a.safetensors", flux_lora())
    (folder / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 4}')
    inspection, _ = inspect_remote(f"{web.url}/files/a.safetensors?download=true")
    assert plain(inspection) == plain(inspect_file(path))
    assert inspection.as_dict()["scales"] == {"2": 57}
    assert ("GET", "/files/adapter_config.json?download=true") in web.asked


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("files", None),
        ("gated", None),
        ("site", None),
        ("down", "status 503"),
        ("wrong", "another part"),
        ("slow", "did not answer in time"),
    ],
)
def test_settings_that_are_not_there_and_that_cannot_be_had(web, how, told):
    file = Remote(f"{web.url}/{how}/a.safetensors", timeout=0.5 if how == "slow" else 60)
    settings = file.settings()
    if told is None:
        assert settings is None
    else:
        assert isinstance(settings, Unreadable) and told in settings.fault


def test_settings_that_are_no_json_are_told(web, folder):
    write_file(folder / "a.safetensors", flux_lora())
    (folder / "adapter_config.json").write_text("{")
    inspection, _ = inspect_remote(f"{web.url}/files/a.safetensors")
    assert any("adapter_config.json" in caution for caution in inspection.report.cautions)


# faults

FAULTS = {
    "nowhere": ("nothing at this address", "Check the address"),
    "gone": ("nothing at this address", "Check the address"),
    "login": ("refuses access (401)", "log in"),
    "gated": ("refuses access (403)", "log in"),
    "busy": ("status 429", "later"),
    "down": ("status 503", "later"),
    "circle": ("redirects in circles", "Check the address"),
    "site": ("web page", "/resolve/"),
    "sizeless": ("how large the file is", "Download the file"),
    "wrong": ("another part of the file", "Download the file"),
    "cut": ("cannot be reached", "connection"),
}


@pytest.mark.parametrize("how", FAULTS)
def test_what_is_wrong_with_an_address_is_told_with_the_remedy(web, folder, how):
    write_file(folder / "a.safetensors", flux_lora())
    address = f"{web.url}/{how}/a.safetensors?token=a-secret-of-mine"
    with pytest.raises(LoraFileError) as caught:
        inspect_remote(address)
    error = caught.value
    fault, remedy = FAULTS[how]
    assert fault in error.fault and remedy in error.remedy
    assert str(error).startswith(f"{web.url}/{how}/a.safetensors: ")
    assert "secret" not in str(error) and error.__cause__ is None


@pytest.mark.parametrize("how", ["slow", "drip"])
def test_a_server_that_does_not_answer_in_time(web, how):
    with pytest.raises(NotReached, match=r"did not answer in time.*--timeout"):
        inspect_remote(f"{web.url}/{how}/a.safetensors", timeout=0.5)


def test_nobody_there_and_no_such_host(folder):
    with serving(folder) as server:
        url = server.url
    for address in (f"{url}/a.safetensors", "http://host.invalid/a.safetensors?token=a-secret"):
        with pytest.raises(NotReached, match=r"cannot be reached.*Check the address") as caught:
            inspect_remote(address)
        assert "secret" not in str(caught.value)


def test_an_answer_without_end_is_not_read_to_it(web):
    """The header claims ten million bytes, which it may; what comes is no JSON."""
    with pytest.raises(LoraFileError, match=r"not valid JSON|another part"):
        inspect_remote(f"{web.url}/endless/a.safetensors")
    assert web.sent["/endless/a.safetensors"] < 16_000_000


def test_a_file_that_changes_between_two_requests(web, folder):
    write_file(folder / "a.safetensors", flux_lora(blocks=LARGE))
    with pytest.raises(NotReached, match="another file than a moment ago"):
        inspect_remote(f"{web.url}/swapped/a.safetensors")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is empty"),
        (b"\x10", "only 1 byte"),
        (struct.pack("<Q", 1 << 40) + b"{}" * 50, "not a safetensors file"),
        (struct.pack("<Q", 90_000_000) + b"{}" * 50, "cut short"),
        (b"PK\x03\x04" + b"\0" * 90, "PyTorch pickle file or a zip archive"),
        (b'{"error": "no such version of the model"}', "answer in JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "Git LFS pointer"),
        (b"GGUF" + b"\0" * 90, "GGUF"),
    ],
)
@pytest.mark.parametrize("how", ["files", "plain"])
def test_what_is_no_safetensors_file_is_told_as_of_a_file_here(web, folder, content, fault, how):
    (folder / "a.safetensors").write_bytes(content)
    with pytest.raises(LoraFileError, match=fault) as here:
        read_header(folder / "a.safetensors")
    with pytest.raises(LoraFileError) as there:
        inspect_remote(f"{web.url}/{how}/a.safetensors")
    assert (there.value.fault, there.value.remedy) == (here.value.fault, here.value.remedy)
    assert not isinstance(there.value, NotReached)
    assert web.sent[f"/{how}/a.safetensors"] <= len(content)


def test_pickles_are_refused_as_here(web, folder):
    (folder / "a.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 90)
    with pytest.raises(LoraFileError, match="Load it with a node"):
        inspect_remote(f"{web.url}/files/a.ckpt?x=1")


def test_redirects_are_followed_and_secrets_stay_behind(web, folder):
    path = write_file(folder / "a.safetensors", flux_lora())
    with serving(folder, other=web.url) as first:
        inspection, _ = inspect_remote(f"{first.url}/moved/a.safetensors")
        assert plain(inspection) == plain(inspect_file(path))
        user = first.url.replace("//", "//someone:pass-word@")
        with pytest.raises(NotReached) as caught:
            inspect_remote(f"{user}/elsewhere/a.safetensors")
    assert not re.search("secret|pass|someone", str(caught.value))
    assert first.headers[-1][1]["Authorization"].startswith("Basic ")
    assert not any("Authorization" in asked for _, asked in web.headers)


def test_a_token_of_fsspecs_own_settings_is_sent(web, folder, monkeypatch):
    write_file(folder / "a.safetensors", flux_lora())
    settings = {"client_kwargs": {"headers": {"Authorization": "Bearer of-a-test"}}}
    monkeypatch.setitem(fsspec.config.conf, "https", settings)
    inspect_remote(f"{web.url}/files/a.safetensors")
    assert web.headers[-1][1]["Authorization"] == "Bearer of-a-test"
    before = len(web.headers)
    with serving(folder, other=web.url) as first, pytest.raises(NotReached):
        inspect_remote(f"{first.url}/elsewhere/a.safetensors")
    assert len(web.headers) > before, "it is led there"
    assert not any("Authorization" in asked for _, asked in web.headers[before:])


def test_what_is_secret_is_taken_out_of_what_libraries_say(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "of-the-environment")
    address = "https://me:my%20word@host/a?token=abcdef12&sig=xyz98765"
    said = (
        "GET https://cdn.host/a?sig=other-sig (me:my word) token abcdef12 xyz98765"
        " of-the-environment Authorization: Bearer eyJhbGciOi at https://you:two@host/"
    )
    assert without_secrets(said, address) == (
        "GET https://cdn.host/a (***) token *** *** *** Authorization: Bearer *** at https://host/"
    )
    assert shown_address(address) == "https://host/a"
    assert shown_address("hf://user/name@main/a.safetensors") == "hf://user/name@main/a.safetensors"
    assert shown_address("s3://key:secret@bucket/a#1") == "s3://bucket/a#1"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("https://host/a", True),
        ("HF://a/b", True),
        ("memory://a", True),
        (r"C:\loras\a.safetensors", False),
        ("C://loras/a.safetensors", False),
        ("loras/a.safetensors", False),
        ("https:/host/a", False),
        ("", False),
    ],
)
def test_which_texts_are_addresses(text, answer):
    assert is_address(text) is answer


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("nope://a/b.safetensors", "not understood.*Protocol not known"),
        ("zip://a::https://host/b.safetensors", r"chain of file systems \(::\)"),
        ("simplecache::https://host/b.safetensors", "not valid|no such file|chain"),
        ("memory://nowhere/a.safetensors", "nothing at this address"),
        ("https://", "not understood|cannot be reached"),
    ],
)
def test_addresses_that_mean_nothing(address, fault):
    with pytest.raises(LoraFileError, match=fault):
        inspect_remote(address)


def test_a_protocol_whose_library_is_missing_names_it():
    with pytest.raises(NotReached, match=r"gdrive:// need a library of their own\. .*install"):
        inspect_remote("gdrive://a/b.safetensors")


def test_without_fsspec_one_line_says_what_to_install(locksmith, tmp_path):
    (tmp_path / "without" / "fsspec").mkdir(parents=True)
    stub = "raise ModuleNotFoundError('none', name='fsspec')"
    (tmp_path / "without" / "fsspec" / "__init__.py").write_text(stub)
    for command in ("inspect", "scan"):
        told = locksmith(command, "https://host/a", PYTHONPATH=str(tmp_path / "without"))
        assert told.returncode == FAILED and told.stdout == ""
        (line,) = told.stderr.splitlines()
        assert line.startswith("https://host/a: ") and "lora-locksmith[remote]" in line


def test_nothing_of_it_is_imported_for_files_here(locksmith, folder, tmp_path):
    path = write_file(folder / "a.safetensors", flux_lora())
    (tmp_path / "without").mkdir()
    for name in ("fsspec", "aiohttp", "dask", "distributed"):
        (tmp_path / "without" / f"{name}.py").write_text(f"raise AssertionError('{name}')")
    for arguments in (["inspect", path], ["scan", "--no-index", folder]):
        told = locksmith(*arguments, PYTHONPATH=str(tmp_path / "without"))
        assert told.returncode == FINE, told.stderr


# commands


def test_inspect_tells_of_addresses_as_of_files(locksmith, web, folder):
    write_file(folder / "a.safetensors", flux_lora())
    write_file(folder / "b.safetensors", {"backbone.mixer.lora_A.weight": (4, 96)})
    good, part = (f"{web.url}/files/{name}.safetensors" for name in "ab")
    assert (told := locksmith("inspect", good)).returncode == FINE
    here = locksmith("inspect", folder / "a.safetensors")
    assert told.stdout == here.stdout and told.stderr.startswith("a.safetensors: 65,536 of")
    missing = f"{web.url}/files/c.safetensors?token=of-mine"
    several = locksmith("inspect", "--json", good, part, missing, folder / "a.safetensors")
    assert several.returncode == FAILED and several.stderr == ""
    documents = [json.loads(line) for line in several.stdout.splitlines()]
    assert [document["file"] for document in documents] == [
        good,
        part,
        missing.partition("?")[0],
        str(folder / "a.safetensors"),
    ]
    same = documents[0].keys() - documents[3].keys()
    assert same == {"fetched", "alphas_left"} and "nothing at this" in documents[2]["error"]
    assert documents[0]["bytes"] == (folder / "a.safetensors").stat().st_size
    assert locksmith("inspect", part).returncode == PROBLEMS


def test_a_hub_is_read_by_ranges_too(locksmith, web, folder):
    """By its own library, of a repository that is served here."""
    path = write_file(folder / "a.safetensors", flux_lora(blocks=LARGE))
    hub = {"HF_ENDPOINT": web.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_of-a-test"}
    found = locksmith("inspect", "hf://hub/name/a.safetensors", **hub)
    assert found.stdout == locksmith("inspect", path).stdout
    sent = web.sent["/hub/name/resolve/main/a.safetensors"]
    assert sent <= header_bytes(path) + BEYOND
    rows = locksmith("scan", "--json-lines", "hf://hub/name", **hub)
    assert rows.stdout == locksmith("scan", "--json-lines", folder).stdout
    for command, place in (("inspect", "gated/a.safetensors"), ("scan", "gated")):
        refused = locksmith(command, f"hf://hub/{place}", **hub)
        assert refused.returncode == FAILED and "hf auth login" in refused.stderr
        assert "of-a-test" not in refused.stderr and len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--weights", "--hashes"])
def test_what_needs_the_whole_file_is_refused_before_anything_is_read(web, capsys, option):
    address = f"{web.url}/files/a.safetensors"
    assert run(["inspect", "--json", option, address]) == FAILED
    assert f"{option} needs the whole file" in json.loads(capsys.readouterr().out)["error"]
    assert not web.asked


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "ADDRESS", "b.safetensors"),
        ("fix", "ADDRESS"),
        ("merge", "ADDRESS=0.5", "-o", "x"),
        ("resize", "ADDRESS", "-o", "x", "--rank", "2"),
        ("extract", "a", "b", "-o", "ADDRESS"),
        ("inspect", "a", "--against", "ADDRESS"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_other_commands_say_that_they_take_no_address(capsys, arguments):
    address = "https://me:word@host/a.safetensors"
    with pytest.raises(SystemExit) as caught:
        run([argument.replace("ADDRESS", address) for argument in arguments])
    said = capsys.readouterr().err
    assert caught.value.code == FAILED
    assert "https://host/a.safetensors is an address" in said and "word" not in said


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon", "100000"])
def test_a_time_is_a_number_of_seconds(capsys, text):
    with pytest.raises(SystemExit):
        run(["inspect", f"--timeout={text}", "a"])
    assert "a time is a number of seconds above 0" in capsys.readouterr().err


# folders


@pytest.fixture
def library(folder) -> Path:
    """A folder as people have them, settings included."""
    write_file(folder / "good.safetensors", flux_lora())
    write_file(folder / "sub" / "two words" / "n\u4e2d.SAFETENSORS", flux_lora(8))
    write_file(
        folder / "sub" / "broken.safetensors", flux_lora(start="transformer.base_model.model.")
    )
    write_file(folder / "peft" / "adapter_model.safetensors", flux_lora())
    (folder / "peft" / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 4, "bias": 7}')
    (folder / "empty.safetensors").touch()
    (folder / "page.safetensors").write_bytes(b"<!DOCTYPE html><html></html>" * 9)
    (folder / "old.pt").write_bytes(b"PK\x03\x04 whatever")
    (folder / "notes.txt").write_text("no LoRA")
    (folder / "folder.safetensors").mkdir()
    with_alphas(folder / "alphas.safetensors", together=False)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where indices are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def rows(capsys, cache):
    """rows(place, ...) -> (exit code, the rows of a scan of it)."""

    def scanned(place, *options: str) -> tuple[int, list[dict]]:
        code = run(["scan", "--json-lines", *options, str(place)])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return scanned


@pytest.fixture
def memory(library):
    """The same files in fsspec's file system in memory."""
    system = fsspec.filesystem("memory")
    system.put(str(library), "/shelf", recursive=True)
    yield system
    system.rm("/shelf", recursive=True)


def places(web) -> dict[str, str]:
    return {
        "web": f"{web.url}/files/",
        "no slash": f"{web.url}/files/sub/..?token=a-secret",
        "no ranges": f"{web.url}/plain",
        "file": web.folder.as_uri(),
        "memory": "memory://shelf",
    }


@pytest.mark.parametrize("place", ["web", "no slash", "no ranges", "file", "memory"])
def test_a_scan_tells_the_same_rows_wherever_the_files_are(rows, library, web, memory, place):
    expected = rows(library, "--no-index")
    assert expected[0] == PROBLEMS and len(expected[1]) == 8
    assert {row["file"] for row in expected[1]} >= {"sub/two words/n\u4e2d.SAFETENSORS", "old.pt"}
    assert rows(places(web)[place], "--no-index") == expected
    for sent, count in web.sent.items():
        path = library / unquote(sent.removeprefix("/files/"))
        if sent.startswith("/files/") and path.stat().st_size > BEYOND:
            assert count <= header_bytes(path) + BEYOND


def test_settings_are_read_only_where_the_folder_has_some(rows, library, web):
    rows(f"{web.url}/files/", "--no-index")
    settings = [place for asked, place in web.asked if "adapter_config" in place and asked == "GET"]
    assert settings == ["/files/peft/adapter_config.json"]


def files_read(web) -> list[str]:
    names = (path for asked, path in web.asked if asked == "GET")
    return [name for name in names if name.lower().endswith(".safetensors")]


@pytest.mark.parametrize("place", ["web", "file", "memory"])
def test_the_index_keeps_what_did_not_change(rows, library, web, memory, place):
    at = places(web)[place]
    before = rows(at)
    read = files_read(web)
    assert rows(at) == before and files_read(web) == read
    assert len(read) == (7 if place == "web" else 0), "all but the pickle"
    write_file(library / "good.safetensors", flux_lora(rank=8))
    memory.put_file(str(library / "good.safetensors"), "/shelf/good.safetensors")
    (changed,) = [row for row in rows(at)[1] if row["file"] == "good.safetensors"]
    assert changed["rank"] == "8"


def test_changed_settings_are_noticed(rows, library, web):
    def doubts() -> list[str]:
        found = rows(f"{web.url}/files/")[1]
        (row,) = [row for row in found if row["file"] == "peft/adapter_model.safetensors"]
        return row["cautions"]

    assert doubts() == []
    (library / "peft" / "adapter_config.json").write_text("{")
    assert doubts()


def test_a_server_that_tells_nothing_that_changes_is_read_each_time(rows, library, web):
    at = f"{web.url}/untold/"
    assert rows(at) == rows(library, "--no-index")
    size = (library / "good.safetensors").stat().st_size
    write_file(library / "good.safetensors", flux_lora(start="transformed."))
    assert (library / "good.safetensors").stat().st_size == size
    assert rows(at) == rows(library, "--no-index")


def test_what_was_out_of_reach_is_tried_again_the_next_time(rows, library, web, monkeypatch):
    read, down = remote.Web.read, [True]

    def failing(self, start, end):
        if down[0] and "good" in self.address:
            raise ConnectionError("down")
        return read(self, start, end)

    monkeypatch.setattr(remote.Web, "read", failing)
    at = f"{web.url}/files/"
    code, found = rows(at)
    (row,) = [row for row in found if row["file"] == "good.safetensors"]
    assert code == PROBLEMS and "cannot be reached" in row["error"]
    down.clear()
    down.append(False)
    (row,) = [row for row in rows(at)[1] if row["file"] == "good.safetensors"]
    assert row["error"] == ""


@pytest.mark.skipif(not hasattr(__import__("os"), "geteuid"), reason="no permissions to take away")
def test_a_file_here_that_may_not_be_read_is_tried_again_the_next_time(rows, library, monkeypatch):
    """The index remembered the refusal, as rights change no time."""
    from lora_locksmith.files import header

    opened = header.open_file

    def refusing(path, *more):
        if str(path).endswith("good.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(header, "open_file", refusing)
        found = {row["file"]: row["error"] for row in rows(library)[1]}
        assert "Permission denied" in found["good.safetensors"]
    assert {row["file"]: row["error"] for row in rows(library)[1]}["good.safetensors"] == ""


def test_a_folder_below_that_cannot_be_listed_is_named(rows, library, web, monkeypatch, capsys):
    listed = remote_folder.Web.ask

    def failing(self, start, end, kind=""):
        if self.address.endswith("/sub/"):
            raise PermissionError("no")
        return listed(self, start, end, kind)

    monkeypatch.setattr(remote_folder.Web, "ask", failing)
    for name in ("empty", "page", "good", "alphas"):
        (library / f"{name}.safetensors").unlink()
    (library / "old.pt").unlink()
    (library / "peft" / "adapter_config.json").unlink()
    assert run(["scan", "--no-index", f"{web.url}/files/peft/"]) == FINE
    assert run(["scan", "--no-index", f"{web.url}/files/"]) == PROBLEMS
    assert "sub/ is not looked through: the server refuses access" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ("files/good.safetensors", "is a file, not a folder"),
        ("files/notes.txt", "is a file, not a folder"),
        ("files/nowhere/", "nothing at this address"),
        ("gated/", "refuses access"),
        ("slow/", "did not answer in time"),
    ],
)
def test_what_is_no_folder_is_told(web, library, capsys, place, fault):
    assert run(["scan", "--timeout", "2", f"{web.url}/{place}"]) == FAILED
    said = capsys.readouterr()
    assert said.out == "" and fault in said.err and said.err.startswith(f"{web.url}/{place}: ")
    assert web.sent["/files/good.safetensors"] == 0


def test_files_and_nothing_in_other_file_systems_are_told(library, memory, capsys):
    for place in (library.as_uri(), "memory://shelf"):
        assert run(["scan", f"{place}/notes.txt"]) == FAILED
        assert "is a file, not a folder" in capsys.readouterr().err
        assert run(["scan", f"{place}/nowhere"]) == FAILED
        assert "nothing at this address" in capsys.readouterr().err
        assert run(["inspect", f"{place}/sub"]) == FAILED
        assert "it is a folder" in capsys.readouterr().err


def test_a_page_without_links_to_loras_says_so(web, folder, cache, capsys):
    (folder / "notes.txt").touch()
    assert run(["scan", f"{web.url}/files/"]) == FINE
    assert "its page links to no LoRA file" in capsys.readouterr().err


def test_links_that_lead_elsewhere_in_circles_or_nowhere_are_not_followed(folder, web):
    (folder / "good.safetensors").touch()
    links = remote_folder.Links(
        '<a href="a.safetensors">x</a><a>y</a><a href="http://[">z</a><b href="b">b</b>'
    )
    assert links.found == ["a.safetensors", "http://["]
    page = (
        '<a href="../up.safetensors"></a><a href="/files/"></a><a href="."></a>'
        '<a href="http://elsewhere.invalid/files/c.safetensors"></a><a href="x/y.safetensors"></a>'
        '<a href="//[oops"></a><a href="?C=N"></a><a href="good.safetensors#part"></a>'
        '<a href="./deep/"></a><a href="/files/good.safetensors"></a>'
    )
    (folder / "index.html").write_text(page)

    def answer_listed(self, place):
        body = page.encode()
        self.begin(200, Content_Type="text/html", Content_Length=len(body))
        self.wfile.write(body)

    web.RequestHandlerClass.answer_listed = answer_listed
    try:
        found = remote_folder.list_remote(f"{web.url}/listed/")
    finally:
        del web.RequestHandlerClass.answer_listed
    # Each folder looks the same: "deep/" is looked into as far as MAX_DEPTH.
    assert set(found.files) == {
        f"{'deep/' * depth}good.safetensors" for depth in range(remote_folder.MAX_DEPTH + 1)
    }
    assert len(web.asked) < 3 * remote_folder.MAX_DEPTH + 9
