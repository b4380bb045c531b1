"""Changed and audited data go through training like any other, and real collections are audited where they are present
beside the repository."""

import numpy as np
import pytest
import torch

from finetune_nb.recipes.fit import fit_recipe
from finetune_nb.data.audit import audit
from finetune_nb.data.corruptions import CHANGES, change_task
from finetune_nb.data.registry import load_task
from finetune_nb.data.modalities.image import IMAGES, ArrayImages
from finetune_nb.data.modalities.text import TEXTS, Texts
from finetune_nb.data.targets.classes import Classes
from finetune_nb.data.task import SPLITS, Task
from tests.helpers import ROOT

DATA = ROOT.parent/"shared"/"data"
real = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data here")]
ARGS = dict(label_noise=.2, duplicates=.3, long_tail=4, subset=.5, only={"classes": ["3", "8"]}, shuffle_labels=None)


def words(n=24):
    "Two classes of short texts, all different."
    of = {s: [f"{s} {w} number {i}" for i in range(n) for w in ("cats", "firs")] for s in SPLITS}
    items, labels = {s: Texts(t) for s, t in of.items()}, [0, 1]*n
    return Task("words", TEXTS, Classes(["3", "8"]), items, {s: labels for s in SPLITS},
                shifts={"loud": (Texts(t.upper() for t in of["test"]), labels)})


# `cleaned` changes nothing where nothing is wrong
@pytest.mark.parametrize("name", [c for c in CHANGES if c != "cleaned"])
@pytest.mark.parametrize("make", [lambda: load_task("digits"), words], ids=["images", "texts"])
def test_each_change_keeps_the_rest(name, make):
    task = make()
    before = {s: task.targets[s].copy() for s in SPLITS}
    got, same, other = [change_task(task, {name: ARGS[name]}, seed=s) for s in (0, 0, 1)]
    assert got.data_hash == same.data_hash != task.data_hash
    assert all((got.targets[s] == same.targets[s]).all() for s in SPLITS)
    assert name == "only" or got.data_hash != other.data_hash
    for s in SPLITS:
        # the given task is left alone
        assert (task.targets[s] == before[s]).all() and len(got.items[s]) == len(got.targets[s])
        if s != "train" and name not in ("only", "shuffle_labels"):
            assert got.items[s] is task.items[s] and (got.targets[s] == task.targets[s]).all()
    for items, y in got.shifts.values(): assert len(items) == len(y) and (np.asarray(y) == got.targets["test"]).all()
    assert len(got.history) == 1 and got.history[0]["note"].startswith(name)
    assert type(got) is type(task) and not task.history
    assert len(got.dataloaders(bs=8).one_batch()[1]) == 8 and got.test_dl("valid").one_batch()[0].shape[0] > 0


def test_a_copy_of_the_test_is_found_and_leaves():
    digits = load_task("digits")
    x, y = {s: digits.items[s].array[:150].clone() for s in SPLITS}, {s: digits.targets[s][:150].copy() for s in SPLITS}
    for at, split, of in ((3, "test", 10), (4, "valid", 11)):
        x["train"][at], y["train"][at] = x[split][of], y[split][of]
    x["valid"][20], y["valid"][20] = x["test"][21], y["test"][21]
    x["train"][7] = (x["train"][6].float()*.8 + 20).to(torch.uint8); y["train"][7] = y["train"][6]
    task = Task("leaky", IMAGES, digits.target, {s: ArrayImages(i) for s, i in x.items()}, y)
    found = audit(task, near=.999, checks=("copies",))
    assert {(r["kind"], r["split"], r["index"]) for r in found.rows} == {
        ("exact leak", "train", 3), ("exact leak", "train", 4), ("exact leak", "valid", 20),
        ("near repeat", "train", 7)}
    good, dropped = found.cleaned()
    assert [len(good.targets[s]) for s in SPLITS] == [147, 149, 150] and len(dropped) == 4
    assert good.data_hash not in ("", found.about["data"])
    assert good.history[0]["parent"] == found.about["data"]


def test_classes_that_are_missing_or_tiny_are_no_obstacle():
    digits = load_task("digits")
    y = {s: digits.targets[s].copy() for s in SPLITS}
    seven = y["train"] == 7
    keep = {"train": np.flatnonzero((y["train"] < 4) | (np.cumsum(seven) <= 2) & seven)[:200],
            "valid": np.flatnonzero(y["valid"] < 2)[:40], "test": np.flatnonzero(y["test"] < 4)[:80]}
    task = Task("few", IMAGES, digits.target, {s: ArrayImages(digits.items[s].array[k]) for s, k in keep.items()},
                {s: y[s][k] for s, k in keep.items()})
    found = audit(task)
    assert "7" in found.about["classes_not_judged"] and found.findings().valid["missing class"] == 8
    alone = Task("alone", IMAGES, Classes(["a", "b"]), {s: ArrayImages(digits.items[s].array[:9]) for s in SPLITS},
                 {s: [0]*9 for s in SPLITS})
    assert (audit(alone).findings().loc["one class alone", list(SPLITS)] == 1).all()


def test_changed_data_trains_like_any_other():
    from finetune_nb.recipes.library import recipe
    from finetune_nb.training.learner import pretrained_learner
    task = change_task(load_task("digits"), [{"subset": .2}, "shuffle_labels"])
    learn = pretrained_learner(task, "zoo_resnet_short", device="cpu")
    fit_recipe(learn, recipe("linear_probe", lr=1e-2), steps=4)
    assert learn.task.data_hash == task.data_hash


class TestRealCollections:
    pytestmark = real

    def test_sign_photos(self):
        checks = ("copies", "odd", "classes", "drift")
        found = audit(load_task(DATA/"sign_digits"), folder=DATA/"sign_digits", checks=checks)
        table = found.findings()
        assert table.loc[["exact leak", "near leak"], list(SPLITS)].to_numpy().sum() == 0
        assert table.test["inputs drift"] == 0
        assert not len(found.files[found.files.finding == "unreadable"])

    def test_requests_leak_and_contradict(self):
        "CLINC150 has the same requests in training and test, and some under two intents."
        import pandas as pd
        parts = {s: pd.read_csv(DATA/"clinc150"/f"{f}.csv") for s, f in zip(SPLITS, ("train", "val", "test"))}
        names = sorted(set(parts["train"].intent))
        task = Task("clinc150", TEXTS, Classes(names), {s: Texts(t.text) for s, t in parts.items()},
                    {s: [names.index(i) for i in t.intent] for s, t in parts.items()})
        found = audit(task, near=1., checks=("copies",))
        table = found.findings()
        assert table.train["exact leak"] > 20 and table.train["conflicting labels"] > 0
        good, dropped = found.cleaned()
        assert len(good.targets["test"]) == len(task.targets["test"])
        gone = (dropped.split == "train").sum()
        assert len(good.targets["train"]) == len(task.targets["train"]) - gone
