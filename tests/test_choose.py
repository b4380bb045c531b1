"The zoo as shipped, networks of one picture size through every door, and scores that see nothing they should not."
import subprocess, sys

import numpy as np
import pytest
import torch

from finetune_nb.core.errors import FinetuneError
from finetune_nb.core.files import load_tensors, read_json, sha256
from finetune_nb.models.architecture import compute_threads
from finetune_nb.models.bundle import load_bundle, save_bundle
from finetune_nb.models.load import BUNDLED, bundled, load_pretrained
from finetune_nb.models.transferability import SCORES, transfer_score
from finetune_nb.pretraining.zoo import ZOO, card, make
from finetune_nb.experiments.presets.rank_models import look, rank_models
from finetune_nb.data.registry import load_task
from tests.helpers import environment


@pytest.mark.parametrize("name", ZOO)
def test_zoo_is_what_its_card_says(name):
    folder = BUNDLED/name
    config = read_json(folder/"config.json")
    assert name in bundled() and config["sha256"] == sha256(folder/"model.safetensors")
    assert (folder/"README.md").read_text() == card(name, config)
    assert config["training"]["steps"] == ZOO[name]["steps"] and config["architecture"] == ZOO[name]["architecture"]
    assert (folder/"model.safetensors").stat().st_size <= 600_000
    chars = set(config["classes"])
    if ZOO[name]["data"] == "photos":
        assert len(chars) == config["num_classes"] and {c.split()[0] for c in chars} == {"china", "flower"}
    else:
        assert not chars & set("0123456789OoIlSZ")
        assert not any(0x10a0 <= ord(c) <= 0x10ff or 0x531 <= ord(c) <= 0x587 for c in chars), "Georgian or Armenian"
    own = load_pretrained(name, None).eval()
    assert sum(p.numel() for p in own.parameters()) == config["parameters"]
    with torch.no_grad(): out = own(torch.rand(2, 1, 32, 32))
    assert out.shape == (2, len(config["classes"])) and out.std(1).min() > .1, "an untrained classifier"
    assert load_pretrained(name, 7)(torch.rand(2, 1, 32, 32)).shape == (2, 7)


def test_zoo_is_small_and_varied():
    assert len(ZOO) >= 8 and len({ZOO[n]["architecture"]["architecture"] for n in ZOO}) >= 4
    assert sum((BUNDLED/n/"model.safetensors").stat().st_size for n in ZOO) <= 5_500_000
    assert len({sha256(BUNDLED/n/"model.safetensors") for n in ZOO}) == len(ZOO)


def test_the_zoo_command_goes_on_after_being_killed(tmp_path):
    # Stopped in one process, gone on with in another; a handful of its characters, since drawing all of them to choose
    # from takes seconds.
    how = dict(steps=6, size=8, save_every=2, quiet=True, tested=256, chars=list("+>LVYm¢¥"))
    with compute_threads(1):
        make("zoo_resnet_few", tmp_path/"whole", **how)
        assert make("zoo_resnet_few", tmp_path/"parts", **how, stop_after=3) is None
    code = ("import torch, finetune_nb.pretraining.zoo as z; torch.set_num_threads(1)\n"
            f"z.make('zoo_resnet_few', {str(tmp_path/'parts')!r}, **{how})")
    env = environment(tmp_path, OMP_NUM_THREADS="1")
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=200)
    whole, parts = (tmp_path/n/"zoo_resnet_few"/"model.safetensors" for n in ("whole", "parts"))
    assert sha256(whole) == sha256(parts)


def test_a_network_of_one_size_is_rebuilt_in_that_size(tmp_path):
    from finetune_nb.recipes.fit import fit_recipe
    from finetune_nb.training.learner import evaluate, pretrained_learner
    task = load_task("digits")
    (tmp_path/"vit").mkdir()
    tiny = dict(architecture="vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2)
    from finetune_nb.core.files import save_tensors, write_json
    from finetune_nb.models.architecture import create_model
    save_tensors(tmp_path/"vit"/"model.safetensors", create_model(**tiny, num_classes=5).state_dict())
    write_json(tmp_path/"vit"/"config.json", {"architecture": tiny, "num_classes": 5,
                                              "input": dict(size=224, channels=3, mean=[.5]*3, std=[.5]*3)})
    learn = pretrained_learner(task, str(tmp_path/"vit"), labels=1, size=64, device="cpu")
    before = learn.model.blocks[0].mlp.fc1.weight.detach().clone()
    fit_recipe(learn, "scratch", steps=2, lr=1e-3)  # starts by building the network anew
    assert learn.model.pos_embed.shape[1] == 1 + 4*4 and not torch.equal(before, learn.model.blocks[0].mlp.fc1.weight)
    accuracy = evaluate(learn, "valid", 40)["accuracy"]
    back = load_bundle(save_bundle(learn, tmp_path/"b"))
    x = torch.rand(2, 3, 64, 64)
    # The weights are the same bits. The answers are only close: the learner's weights lie channels-last and those of
    # the bundle do not, so sums are taken in another order.
    trained, loaded = learn.model.eval().state_dict(), back.model.state_dict()
    assert trained.keys() == loaded.keys() and all(torch.equal(v, loaded[k]) for k, v in trained.items())
    with torch.no_grad(): want, got = learn.model(x), back.model(x)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert 0 <= accuracy <= 1


def test_scores_see_the_labelled_training_images_alone():
    from dataclasses import replace
    task = load_task("digits")
    net = load_pretrained("zoo_resnet_short", None)
    def spoilt(split, keep=()):
        images, labels = dict(task.items), dict(task.targets)
        wrong = images[split].array.clone(); hide = torch.ones(len(wrong), dtype=bool); hide[list(keep)] = False
        wrong[hide] = 255 - wrong[hide]; labels[split] = np.where(hide, (labels[split] + 1) % 10, labels[split])
        return replace(task, items=images | {split: type(images[split])(wrong)}, targets=labels)
    want = look(task, net, labels=4, seed=2)
    for split in ("valid", "test"):
        for a, b in zip(want, look(spoilt(split), net, labels=4, seed=2)): assert np.array_equal(a, b)
    # The unlabelled rest of the training split plays no part either: its images may be anything.
    budget = task.budget(4, 2)
    images, rest = dict(task.items), torch.ones(len(task.items["train"].array), dtype=bool)
    rest[budget] = False
    changed = images["train"].array.clone()
    changed[rest] = 0
    other = replace(task, items=images | {"train": type(images["train"])(changed)})
    for a, b in zip(want, look(other, net, labels=4, seed=2)): assert np.array_equal(a, b)


def test_scores_depend_on_neither_order_nor_names_of_classes():
    g = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 12)
    x = g.normal(size=(3, 6))[y] * 2 + g.normal(size=(36, 6))
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    order, names = g.permutation(36), np.array([7, 3, 5])
    for s in SCORES:
        tolerance = .09 if s == "linear_probe" else 1e-9  # its parts are drawn by position
        plain = transfer_score(s, x, y, probabilities=p)
        assert abs(plain - transfer_score(s, x[order], y[order], probabilities=p[order])) <= tolerance, s
        assert abs(plain - transfer_score(s, x, names[y], probabilities=p)) <= tolerance, s


def test_a_model_without_its_old_classifier_has_no_leep(tmp_path):
    from finetune_nb.core.files import save_tensors, write_json
    config = read_json(BUNDLED/"zoo_resnet_short"/"config.json")
    (tmp_path/"headless").mkdir()
    tensors = load_tensors(BUNDLED/"zoo_resnet_short"/"model.safetensors")[0]
    save_tensors(tmp_path/"headless"/"model.safetensors",
                 {k: v for k, v in tensors.items() if not k.startswith("fc.")})
    write_json(tmp_path/"headless"/"config.json", {k: v for k, v in config.items() if k != "sha256"})
    table = rank_models("digits", [str(tmp_path/"headless"), "zoo_resnet_short"], labels=3, quiet=True)
    assert np.isnan(table.leep["headless"]) and np.isfinite(table.leep["zoo_resnet_short"])
    assert table.logme["headless"] == pytest.approx(table.logme["zoo_resnet_short"])


def test_a_bad_photo_is_refused_or_left_out(tmp_path, monkeypatch):
    from PIL import Image
    monkeypatch.setenv("FINETUNE_NB_CACHE", str(tmp_path/"cache"))
    draw = np.random.default_rng(0)
    for c in "ab":
        (tmp_path/"photos"/c).mkdir(parents=True)
        for i in range(12):
            picture = draw.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path/"photos"/c/f"{i}.png")
    (tmp_path/"photos"/"a"/"bad.png").write_text("no picture")
    how = dict(models=["zoo_resnet_few"], labels=3, scores=["logme"], quiet=True)
    with pytest.raises(FinetuneError, match="bad.png"): rank_models(tmp_path/"photos", **how)
    assert list(rank_models(tmp_path/"photos", **how, skip_bad=True).index) == ["zoo_resnet_few"]
