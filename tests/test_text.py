"""Transformers classifiers on the kit's engine: rates, freezing, padding, loading from folders and from a hub on this
machine."""
import json, sys

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from finetune_nb.core.errors import ModelError
from finetune_nb.models.text import load_text_model
from finetune_nb.recipes.fit import fit_recipe
from finetune_nb.data.modalities.text import TEXTS, Texts, pad_rows
from finetune_nb.data.targets.classes import Classes
from finetune_nb.data.task import Task
from finetune_nb.training.learner import evaluate, pretrained_learner
from tests.helpers import hub as serve, with_hub

KINDS = ("bert", "gpt2", "llama")
WORDS = [["warm", "sunny", "southern", "mild"], ["cold", "snowy", "northern", "icy"]]


def texts(n, start=0):
    def day(i): return f"the {WORDS[i % 2][i // 2 % 4]} wind of day {i} blows " + "over land and sea "*(i % 3)
    rows = [day(i) for i in range(start, start + n)]
    return Texts(rows), [i % 2 for i in range(start, start + n)]


@pytest.fixture(scope="module")
def task():
    parts = {s: texts(n, start) for s, n, start in (("train", 48, 0), ("valid", 16, 48), ("test", 24, 64))}
    items, labels = ({s: p[k] for s, p in parts.items()} for k in (0, 1))
    return Task("winds", TEXTS, Classes(["warm", "cold"]), items, labels)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "kind -> folder with a tiny model and a tokeniser trained on the spot, as their libraries save them."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    root, rows = tmp_path_factory.mktemp("models"), texts(60)[0].texts
    # Wide enough, and without dropout, to be learnt from in a few steps.
    small = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
                 max_position_embeddings=64, initializer_range=.15)
    for kind in KINDS:
        torch.manual_seed(0)
        if kind == "bert":
            raw = Tokenizer(models.WordPiece(unk_token="[UNK]")); raw.pre_tokenizer = pre_tokenizers.Whitespace()
            marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
            raw.train_from_iterator(rows, trainers.WordPieceTrainer(vocab_size=200, special_tokens=marks))
            raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]",
                                                               special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
            tok = transformers.PreTrainedTokenizerFast(
                tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
            config = transformers.BertConfig(vocab_size=len(tok), num_labels=5, hidden_dropout_prob=0., **small)
            model = transformers.BertForSequenceClassification(config)
        else:  # no filler: the kit has to use the end-of-text token
            raw, letters = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
            raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
            trainer = trainers.BpeTrainer(vocab_size=350, special_tokens=["<|end|>"], initial_alphabet=letters)
            raw.train_from_iterator(rows, trainer)
            tok = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", padding_side="left")
            common = dict(vocab_size=len(tok), bos_token_id=0, eos_token_id=0)
            if kind == "gpt2":
                config = transformers.GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=64, initializer_range=.15,
                                                 **common)
                model = transformers.GPT2LMHeadModel(config)
            else:
                config = transformers.LlamaConfig(num_key_value_heads=1, **common, **small)
                model = transformers.LlamaForCausalLM(config)
        model.save_pretrained(root/kind); tok.save_pretrained(root/kind)
    return {k: root/k for k in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["discriminative", "gradual"])
def test_recorded_rates_are_the_planned_ones(task, folders, kind, name):
    learn = pretrained_learner(task, str(folders[kind]), seed=0, bs=16, device="cpu")
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    trace = fit_recipe(learn, name, steps=36, lr=1e-2)
    assert len(learn.groups) > 3 and learn.groups[-1].name == "head"
    np.testing.assert_allclose(trace.rates, trace.plan.rates, rtol=1e-9)
    for g in learn.groups:
        assert any(not torch.equal(p, before[n]) for n, p in g.named_params), f"{g.name} did not move"
    if name == "discriminative":
        low, top = trace.rates[10, 0], trace.rates[10, -1]
        assert np.isclose(top/low, 2.6**(len(learn.groups) - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(task, folders, kind):
    learn = pretrained_learner(task, str(folders[kind]), seed=0, bs=16, device="cpu")
    before = evaluate(learn, "train")["loss"]
    fit_recipe(learn, "full", steps=60, lr=1e-2)
    assert evaluate(learn, "train")["loss"] < before - .1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_does_not_move_by_a_bit(task, folders, kind):
    learn = pretrained_learner(task, str(folders[kind]), seed=0, bs=16, device="cpu")
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    fit_recipe(learn, "linear_probe", steps=6, lr=1e-2, cache=False)
    head = {n for n, _ in learn.groups[-1].named_params}
    moved = {k for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == head


@pytest.mark.parametrize("kind", [*KINDS, "docs_lm"])
def test_padding_does_not_change_the_answer(task, folders, kind):
    model = load_text_model(str(folders.get(kind, kind)), 2).eval()
    input = model.kit_config["input"]
    long = "the cold wind of day 7 blows over land and sea over land and sea"
    rows, pad = input["encode"](["warm wind", long], input["max_length"]), input["pad_id"]
    with torch.no_grad(): alone, both = model(pad_rows(rows[:1], pad)), model(pad_rows(rows, pad, input["pad_side"]))
    assert len(rows[0]) < len(rows[1]) and torch.allclose(alone[0], both[0], atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_body_is_the_saved_one_and_the_head_is_new(folders, kind):
    from safetensors.torch import load_file
    saved = load_file(folders[kind]/"model.safetensors")
    a, b = load_text_model(str(folders[kind]), 5), load_text_model(str(folders[kind]), 5)
    mine = a.model.state_dict()
    body = [k for k in saved if k in mine and k.startswith(a.model.base_model_prefix + ".") and "pooler" not in k]
    assert len(body) > 10 and all(torch.equal(mine[k], saved[k]) for k in body)
    heads = [k for k in mine if not k.startswith(a.model.base_model_prefix + ".") and k.endswith("weight")]
    assert heads and not any(torch.equal(mine[k], b.model.state_dict()[k]) for k in heads)
    assert all(k not in saved or not torch.equal(saved[k], mine[k]) for k in heads)


def test_same_seed_same_run_and_a_score(task, folders):
    runs = []
    for seed in (0, 0, 1):
        learn = pretrained_learner(task, str(folders["bert"]), labels=4, seed=seed, bs=4, device="cpu")
        runs.append(fit_recipe(learn, "full", steps=4, lr=1e-3).losses.tolist())
    assert runs[0] == runs[1] != runs[2]
    assert evaluate(learn, "test")["n"] == 24


def test_the_extra_is_named_when_it_is_missing(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r'pip install "finetune_nb\[text\]"'): load_text_model(str(folders["bert"]), 2)


def test_code_from_the_hub_is_never_run(folders, tmp_path):
    import shutil
    shutil.copytree(folders["bert"], tmp_path/"m")
    code = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    config = json.loads((tmp_path/"m"/"config.json").read_text()) | {"model_type": "mine", "auto_map": code}
    (tmp_path/"m"/"config.json").write_text(json.dumps(config))
    (tmp_path/"m"/"evil.py").write_text(f"open({str(tmp_path/'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    with pytest.raises(ModelError, match="needs code of its own") as e: load_text_model(str(tmp_path/"m"), 2)
    assert "\n" not in str(e.value) and not (tmp_path/"ran").exists()


@pytest.fixture
def hub(folders):
    with serve("kit/winds", {p.name: p.read_bytes() for p in folders["bert"].iterdir()}) as found: yield found


def load(tmp, endpoint, *ways):
    "A line for each of `ways`, (name, offline); importing the libraries is what costs."
    return with_hub(tmp, endpoint, "from finetune_nb.models.text import load_text_model\n"
                                   "from finetune_nb.core.errors import FinetuneError\n"
                                   f"for name, offline in {ways}:\n"
                                   "    try:\n"
                                   "        m = load_text_model(name, 3, offline=offline)\n"
                                   "        ids = m.kit_config['input']['encode'](['warm wind'], 9)[0]\n"
                                   "        print(m.model.classifier.out_features, ids[0])\n"
                                   "    except FinetuneError as e: print('refused:', e)").split("\n")


def test_a_hub_name_loads_once_then_from_its_cache(tmp_path, hub):
    endpoint, asked = hub
    assert load(tmp_path, endpoint, ("kit/winds", "auto")) == ["3 2"]
    assert any(p.endswith("model.safetensors") for p in asked)
    assert not any(p.endswith((".bin", ".pth", ".py")) and "pytorch" in p for p in asked)
    before = len(asked)
    assert load(tmp_path, endpoint, ("kit/winds", "yes")) == ["3 2"]
    assert len(asked) == before, "offline = yes asked the network"


def test_hub_errors_are_one_line(tmp_path, hub):
    lines = [*load(tmp_path, "http://127.0.0.1:9", ("kit/winds", "auto")),
             *load(tmp_path, hub[0], ("kit/none", "auto"), ("kit/winds", "yes"))]
    assert len(lines) == 3, "more than one line for an error"
    for line in lines: assert line.startswith("refused: cannot load the configuration of") and "docs_lm" in line
