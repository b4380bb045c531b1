"The hub's loading code against a small server on this machine that answers as the hub does."
import hashlib, os, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from safetensors.torch import save

from finetune_nb.models.architecture import create_model
from tests.helpers import environment

NAME = "resnet10t"


@pytest.fixture
def hub():
    "A hub with one model; `asked` collects the paths that were requested."
    data = save(create_model(NAME, num_classes=1000).state_dict())

    class Handler(BaseHTTPRequestHandler):
        asked = []
        def do_HEAD(self): self.answer(False)
        def do_GET(self): self.answer(True)
        def log_message(self, *a): pass
        def answer(self, body):
            self.asked.append(self.path)
            found = self.path.startswith("/timm/") and self.path.endswith("/resolve/main/model.safetensors")
            self.send_response(200 if found else 404)
            content = data if found else b""
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if body: self.wfile.write(content)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Handler.asked
    server.shutdown()


def load(tmp, endpoint, offline="auto"):
    code = (f"from finetune_nb.all import load_pretrained, FinetuneError\n"
            f"try: m = load_pretrained('{NAME}', 3, offline='{offline}'); print(m.fc.out_features, m.layer1[0].conv1.weight.abs().sum().item() > 0)\n"
            f"except FinetuneError as e: print('refused:', e)")
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp, HF_ENDPOINT=endpoint, HF_HOME=str(tmp/"hf"), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1"),
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_weights_come_from_the_hub_once_then_from_its_cache(tmp_path, hub):
    endpoint, asked = hub
    assert load(tmp_path, endpoint) == "3 True"
    assert any(p.endswith("model.safetensors") for p in asked) and not any(p.endswith((".bin", ".pth")) for p in asked)
    before = len(asked)
    assert load(tmp_path, endpoint, offline="yes") == "3 True"
    assert len(asked) == before, "offline = yes asked the network"


def test_unreachable_hub_is_one_line(tmp_path):
    line = load(tmp_path, "http://127.0.0.1:9")
    assert line.startswith("refused: cannot get the weights of 'resnet10t' from the hub") and "\n" not in line and "glyph_resnet" in line


def test_offline_without_cache_is_one_line(tmp_path):
    assert "offline = yes and not in the local cache" in load(tmp_path, "http://127.0.0.1:9", offline="yes")


def test_its_own_classifier_comes_along_if_asked(tmp_path, hub):
    endpoint, _ = hub
    code = f"from finetune_nb.all import load_pretrained\nm = load_pretrained('{NAME}', None); print(m.fc.out_features, m.fc.weight.abs().sum().item() > 0)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path/"hf"), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1"),
                          capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "1000 True", done.stderr


def test_listing_and_describing_ask_nobody_and_see_the_cache(tmp_path, hub):
    endpoint, asked = hub
    load(tmp_path, endpoint)
    before = len(asked)
    code = ("from finetune_nb.models.catalogue import describe_model, list_models\n"
            f"t = list_models('*resnet10t*').set_index('name'); print(bool(t.here['{NAME}.c3_in1k']), bool(t.here.drop('{NAME}.c3_in1k').any()))\n"
            "print(len(list_models('*bert*')) >= 4, describe_model('openai-community/gpt2').parameters > 1e8)")
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path/"hf"), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1"),
                          capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "False", "True", "True"], done.stdout + done.stderr
    assert len(asked) == before, "listing asked the network"
