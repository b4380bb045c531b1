"""A stranger's configuration reaches no constructor with anything but sizes: no connection, no file outside the
folder, no pickle, no code, and one line that says what is wrong."""
import json, pickle, shutil, sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from finetune_nb.core.errors import FinetuneError
from finetune_nb.core.files import read_json, save_tensors, sha256, write_json
from finetune_nb.models.bundle import load_bundle
from finetune_nb.models.catalogue import describe_model
from finetune_nb.models.causal import load_causal
from finetune_nb.models.load import BUNDLED, load_pretrained
from finetune_nb.models.text import load_text_model
from finetune_nb.recipes.ulmfit import load_awd_lm
from finetune_nb.retrieval.index import load_encoder
from finetune_nb.training.adapters import load_adapter

URL, HUB = "http://127.0.0.1:9/weights.pth", "stranger/model"
WATCH = {"on": False, "seen": [], "bait": ""}


def _hook(event, args):
    "Notes what no loading may do, and stops it."
    if not WATCH["on"]: return
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "pickle.find_class"):
        # the standard library pickles its own things when it copies; a model's file would name something else
        if event == "pickle.find_class" and str(args[0]) in ("copyreg", "builtins", "collections"): return
        WATCH["seen"].append((event, str(args)[:100]))
        raise RuntimeError(f"not allowed: {event}")
    if event == "open" and isinstance(args[0], (str, bytes)) and WATCH["bait"] in str(args[0]):
        WATCH["seen"].append((event, str(args[0])))
    if event == "import" and str(args[0]).split(".")[0] == "stranger_code": WATCH["seen"].append((event, str(args[0])))


sys.addaudithook(_hook)


@contextmanager
def watched(bait):
    WATCH.update(on=True, seen=[], bait=str(bait))
    try: yield WATCH["seen"]
    finally: WATCH["on"] = False


class Evil:
    def __reduce__(self): return Path.touch, (Path("ran"),)


@pytest.fixture(scope="module")
def bait(tmp_path_factory):
    "Files that must stay closed: a pickle, a checkpoint, a vocabulary, a module."
    folder = tmp_path_factory.mktemp("bait_do_not_open")
    (folder/"weights.pth").write_bytes(pickle.dumps(Evil()))
    save_tensors(folder/"weights.safetensors", {"x": torch.zeros(1)})
    (folder/"vocab.txt").write_text("[PAD]\n[UNK]\nsecret\n")
    (folder/"stranger_code.py").write_text("raise SystemExit('ran')\n")
    return folder


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    "Folders of each kind that load as they are."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM,
                              PreTrainedTokenizerFast)
    root = tmp_path_factory.mktemp("honest")
    words = ["[PAD]", "[UNK]", "a", "b", "c"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tok = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    sizes = dict(vocab_size=5, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=160)).save_pretrained(root/"bert")
    LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=32)).save_pretrained(root/"llama")
    for n in ("bert", "llama"): tok.save_pretrained(root/n)
    shutil.copytree(BUNDLED/"glyph_resnet", root/"timm"); shutil.copytree(BUNDLED/"docs_lm", root/"awd")
    from finetune_nb.data.targets.classes import Classes
    from finetune_nb.models.bundle import save_bundle
    target = Classes(["x", "y"])
    save_bundle(load_pretrained("glyph_resnet", 2), root/"bundle", target)
    save_bundle(load_text_model(str(root/"bert"), 2), root/"text_bundle", target)
    save_bundle(load_text_model("docs_lm", 2), root/"awd_bundle", target)
    (root/"adapter").mkdir()
    write_json(root/"adapter"/"adapter.json", dict(r=2, lora_alpha=4))
    save_tensors(root/"adapter"/"adapter.safetensors", {"x": torch.zeros(1)})
    return root


def adapter(folder):
    from finetune_nb.layers.groups import layer_groups
    net = load_pretrained("glyph_resnet", 2)
    load_adapter(net, layer_groups(net), folder)


IMAGE = lambda d: load_pretrained(str(d), 3, offline="auto")
TEXT = lambda d: load_text_model(str(d), 3, offline="auto")
WRITER = lambda d: load_causal(str(d), "auto")
LM = lambda d: load_awd_lm(str(d))


# (name, honest folder, file, what is put into it at which key, loader). BAIT stands for the folder of bait.
HOSTILE = [
    ("timm_checkpoint_path", "timm", "config.json", "architecture.checkpoint_path", "BAIT/weights.pth", IMAGE),
    ("timm_checkpoint_safetensors", "timm", "config.json", "architecture.checkpoint_path",
     "BAIT/weights.safetensors", IMAGE),
    ("timm_pretrained", "timm", "config.json", "architecture.pretrained", True, IMAGE),
    ("timm_pretrained_url", "timm", "config.json", "architecture", dict(
        architecture="resnet18", pretrained=True, pretrained_cfg={"url": URL}), IMAGE),
    ("timm_pretrained_file", "timm", "config.json", "architecture", dict(
        architecture="resnet18", pretrained=True, pretrained_cfg={"file": "BAIT/weights.pth"}), IMAGE),
    ("timm_overlay", "timm", "config.json", "architecture.pretrained_cfg_overlay", {"hf_hub_id": HUB}, IMAGE),
    ("timm_cache_dir", "timm", "config.json", "architecture.cache_dir", "BAIT", IMAGE),
    ("timm_hub_name", "timm", "config.json", "architecture.architecture", f"hf-hub:{HUB}", IMAGE),
    ("timm_local_dir", "timm", "config.json", "architecture.architecture", "local-dir:BAIT", IMAGE),
    ("timm_layer_by_path", "timm", "config.json", "architecture.act_layer", "BAIT/stranger_code", IMAGE),
    ("timm_layers_without_end", "timm", "config.json", "architecture.layers", [10**9]*4, IMAGE),
    ("timm_size_without_end", "timm", "config.json", "input.size", 10**9, IMAGE),
    ("timm_layout_model_args", "timm", "config.json", "", dict(
        architecture="resnet10t", pretrained_cfg={}, model_args={"checkpoint_path": "BAIT/weights.pth"}), IMAGE),
    ("timm_layout_args_as_text", "timm", "config.json", "", dict(architecture="resnet10t", model_args="BAIT"), IMAGE),
    ("timm_classes_twice", "timm", "config.json", "architecture.num_classes", 7, IMAGE),
    ("timm_described", "timm", "config.json", "architecture.checkpoint_path", "BAIT/weights.pth", describe_model),
    ("bundle_checkpoint", "bundle", "config.json", "architecture.checkpoint_path", "BAIT/weights.pth", load_bundle),
    ("bundle_url", "bundle", "config.json", "architecture", dict(
        architecture="resnet18", pretrained=True, pretrained_cfg={"url": URL}), load_bundle),
    ("bundle_vision_learner", "bundle", "config.json", "architecture", dict(
        architecture="vision_learner", arch=f"timm:hf-hub:{HUB}", n_in=3), load_bundle),
    ("bundle_input_text", "bundle", "config.json", "input.mean", "BAIT/weights.pth", load_bundle),
    ("bundle_not_a_dict", "bundle", "config.json", "architecture", ["resnet18"], load_bundle),
    ("bundle_unknown_modality", "bundle", "config.json", "modality", "BAIT", load_bundle),
    ("bundle_target_with_more", "bundle", "config.json", "target.file", "BAIT/weights.pth", load_bundle),
    ("text_bundle_quantised", "text_bundle", "config.json", "architecture.config.hidden_act", URL, load_bundle),
    ("text_bundle_code", "text_bundle", "config.json", "architecture.config.auto_map",
     {"AutoConfig": "stranger_code.C"}, load_bundle),
    ("text_bundle_other_kind", "text_bundle", "config.json", "architecture.config.model_type", "detr", load_bundle),
    ("text_bundle_layers", "text_bundle", "config.json", "architecture.config.num_hidden_layers", 10**9, load_bundle),
    ("text_bundle_tokenizer_code", "text_bundle", "tokenizer_config.json", "auto_map",
     {"AutoTokenizer": ["stranger_code.T", None]}, load_bundle),
    ("awd_bundle_size", "awd_bundle", "config.json", "architecture.n_layers", 10**9, load_bundle),
    ("awd_argument", "awd", "config.json", "architecture.encoder_file", "BAIT/weights.pth", TEXT),
    ("awd_lm_size_as_text", "awd", "config.json", "architecture.emb_sz", "BAIT", LM),
    ("bert_code", "bert", "config.json", "auto_map", {"AutoConfig": "stranger_code.C"}, TEXT),
    ("bert_code_of_another_model", "bert", "config.json", "auto_map", {"AutoConfig": f"{HUB}--stranger_code.C"}, TEXT),
    ("bert_timm_inside", "bert", "config.json", "", dict(model_type="timm_wrapper", architecture="resnet18",
        model_args={"checkpoint_path": "BAIT/weights.pth"}), TEXT),
    ("bert_backbone", "bert", "config.json", "", dict(model_type="timm_backbone", backbone="resnet18",
        use_pretrained_backbone=True), TEXT),
    ("bert_pair_of_models", "bert", "config.json", "", dict(model_type="encoder-decoder", encoder={"model_type": HUB},
        decoder={"model_type": HUB}), TEXT),
    ("bert_address_as_word", "bert", "config.json", "hidden_act", URL, TEXT),
    ("bert_kind_as_path", "bert", "config.json", "model_type", "BAIT", TEXT),
    ("bert_tokenizer_code", "bert", "tokenizer_config.json", "auto_map",
     {"AutoTokenizer": ["stranger_code.T", None]}, TEXT),
    ("bert_tokenizer_class", "bert", "tokenizer_config.json", "tokenizer_class",
     "BAIT/stranger_code.T", TEXT),
    ("bert_parts_elsewhere", "bert", "model.safetensors.index.json", "", dict(
        metadata={}, weight_map={"bert.embeddings.word_embeddings.weight": "BAIT/weights.safetensors"}), TEXT),
    ("bert_parts_above", "bert", "model.safetensors.index.json", "", dict(
        metadata={}, weight_map={"bert.embeddings.word_embeddings.weight": "../../weights.pth"}), TEXT),
    ("bert_described", "bert", "config.json", "model_type", "detr", describe_model),
    ("llama_code", "llama", "config.json", "auto_map", {"AutoModelForCausalLM": "stranger_code.M"}, WRITER),
    ("llama_list_instead", "llama", "config.json", "", ["llama"], WRITER),
    ("encoder_parts", "bert", "modules.json", "", [{"type": "stranger_code.Part", "path": "BAIT"}], load_encoder),
    ("encoder_parts_not_a_list", "bert", "modules.json", "", {"type": 3}, load_encoder),
    ("adapter_rank", "adapter", "adapter.json", "r", 10**9, adapter),
    ("adapter_rank_as_text", "adapter", "adapter.json", "r", "BAIT", adapter),
]

# keys without a bearing on the network are left out: the folder loads as if they were not there
IGNORED = [
    ("bert_name", "bert", "config.json", "_name_or_path", HUB, TEXT),
    ("bert_quantised", "bert", "config.json", "quantization_config",
     {"quant_method": "gptq", "modules_in_block": ["BAIT"]}, TEXT),
    ("bert_kernels", "bert", "config.json", "attn_implementation", "stranger/kernels", TEXT),
    ("bert_kernels_inside", "bert", "config.json", "_attn_implementation", "stranger/kernels", TEXT),
    ("bert_weights_file", "bert", "config.json", "transformers_weights", "BAIT/weights.safetensors", TEXT),
    ("bert_adapter", "bert", "adapter_config.json", "", dict(
        peft_type="LORA", base_model_name_or_path=HUB), TEXT),
    ("bert_adapter_path", "bert", "adapter_config.json", "", dict(
        peft_type="LORA", base_model_name_or_path="BAIT"), TEXT),
    ("bert_tokenizer_file", "bert", "tokenizer_config.json", "tokenizer_file", "BAIT/vocab.txt", TEXT),
    ("bert_vocab_file", "bert", "tokenizer_config.json", "vocab_file", "BAIT/vocab.txt", TEXT),
    ("bert_tokens_file", "bert", "tokenizer_config.json", "special_tokens_map_file", "BAIT/vocab.txt", TEXT),
    ("bert_tokenizer_inputs", "bert", "tokenizer_config.json", "init_inputs", ["BAIT/vocab.txt"], TEXT),
    ("llama_generation", "llama", "generation_config.json", "custom_generate", HUB, WRITER),
    ("llama_adapter", "llama", "adapter_config.json", "", dict(
        peft_type="LORA", base_model_name_or_path=HUB), WRITER),
    ("text_bundle_name", "text_bundle", "config.json", "architecture.config._name_or_path", "BAIT", load_bundle),
    ("text_bundle_vocab", "text_bundle", "tokenizer_config.json", "vocab_file", "BAIT/vocab.txt", load_bundle),
]


def hostile(tmp, honest, bait, kind, file, key, value):
    "A copy of an honest folder with one thing changed."
    folder = tmp/"model"
    shutil.copytree(honest/kind, folder)
    value = json.loads(json.dumps(value).replace("BAIT", str(bait)))
    whole = read_json(folder/file) if (folder/file).is_file() else {}
    if not key: whole = value
    else:
        *above, last = key.split(".")
        place = whole
        for k in above: place = place.setdefault(k, {})
        place[last] = value
    write_json(folder/file, whole)
    if file == "model.safetensors.index.json": (folder/"model.safetensors").unlink()
    shutil.copy(bait/"stranger_code.py", folder/"stranger_code.py")
    return folder


@pytest.mark.parametrize("name,kind,file,key,value,load", HOSTILE, ids=[c[0] for c in HOSTILE])
def test_a_hostile_configuration_is_one_line(tmp_path, monkeypatch, honest, bait, name, kind, file, key, value, load):
    folder = hostile(tmp_path, honest, bait, kind, file, key, value)
    monkeypatch.chdir(tmp_path)
    with watched(bait) as seen:
        with pytest.raises(FinetuneError) as e: load(folder)
    assert seen == [] and not (tmp_path/"ran").exists()
    assert "\n" not in str(e.value) and len(str(e.value)) < 900, str(e.value)


@pytest.mark.parametrize("name,kind,file,key,value,load", IGNORED, ids=[c[0] for c in IGNORED])
def test_what_describes_no_network_is_left_out(tmp_path, monkeypatch, honest, bait, name, kind, file, key, value, load):
    folder = hostile(tmp_path, honest, bait, kind, file, key, value)
    monkeypatch.chdir(tmp_path)
    with watched(bait) as seen: load(folder)
    assert seen == [] and not (tmp_path/"ran").exists()


HONEST = [("timm", IMAGE), ("bert", TEXT), ("awd", TEXT), ("awd", LM), ("llama", WRITER), ("bert", load_encoder),
          ("bundle", load_bundle), ("text_bundle", load_bundle), ("awd_bundle", load_bundle), ("timm", describe_model),
          ("bert", describe_model)]


@pytest.mark.parametrize("kind,load", HONEST)
def test_an_honest_folder_loads_without_network(honest, bait, kind, load):
    with watched(bait) as seen: load(honest/kind)
    assert seen == []


def test_the_watch_sees_what_it_looks_for(bait):
    import socket
    with watched(bait) as seen:
        with pytest.raises(RuntimeError): socket.create_connection(("127.0.0.1", 9), timeout=1)
        with pytest.raises(RuntimeError): torch.load(bait/"weights.pth", weights_only=False)
    assert {e for e, _ in seen} >= {"open", "pickle.find_class"} and any(e.startswith("socket") for e, _ in seen)


def test_weights_of_a_bundle_are_those_on_record(tmp_path, honest):
    shutil.copytree(honest/"bundle", tmp_path/"b")
    assert read_json(tmp_path/"b"/"config.json")["sha256"] == sha256(tmp_path/"b"/"model.safetensors")
    save_tensors(tmp_path/"b"/"model.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(FinetuneError, match="is damaged"): load_bundle(tmp_path/"b")
