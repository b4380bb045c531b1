"Targets other than classes through every door of the kit, and a new one from a few lines."
import inspect
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from finetune_nb.core.errors import FinetuneError
from finetune_nb.core.metric import Metric
from finetune_nb.core.settings import settings
from finetune_nb.data.audit import audit
from finetune_nb.data.registry import TASKS, load_task
from finetune_nb.data.targets.target import TARGETS, Target, target_from
from finetune_nb.data.task import Task
from finetune_nb.experiments.engine import run_study
from finetune_nb.experiments.presets.compare import compare, compare_study
from finetune_nb.experiments.report import conclusions, save_report
from finetune_nb.experiments.train import prepare_train
from finetune_nb.models.bundle import load_bundle, save_bundle
from finetune_nb.training.learner import evaluate, pretrained_learner

NAMES = ("pages", "angles")


@pytest.fixture(scope="module")
def ini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    run, paths = "profile = smoke\nworkers = 1", f"cache = {folder/'cache'}\nreports = {folder/'reports'}"
    (file := folder/"settings.ini").write_text(f"[run]\n{run}\n[paths]\n{paths}\n")
    return file


@pytest.fixture(scope="module", params=NAMES)
def learn(request):
    learn = pretrained_learner(load_task(request.param), labels=64, device="cpu", offline="yes")
    from finetune_nb.recipes.fit import fit_recipe
    from finetune_nb.recipes.library import recipe
    learn.before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    fit_recipe(learn, recipe("full", lr=3e-3), steps=12)
    return learn


@pytest.mark.parametrize("name", NAMES)
def test_tasks_are_the_same_every_time_and_their_budgets_are_nested(name):
    task, again = load_task(name), getattr(import_module(TASKS[name]), name)()
    assert task.data_hash == again.data_hash
    assert all(np.array_equal(task.targets[s], again.targets[s]) for s in task.targets)
    few, many = [set(task.budget(n, 3).tolist()) for n in (20, 90)]
    assert few < many and len(few) == 20
    assert target_from(task.target.to_dict()).to_dict() == task.target.to_dict()


@pytest.mark.parametrize("name,primary", zip(NAMES, ("map", "mae")))
def test_compare_study_and_report(name, primary, ini, tmp_path):
    got = compare(name, ["full", "linear_probe"], labels=40, seeds=2, rates=1, settings_file=ini, quiet=True)
    metric = got.result.metric_of()
    assert got.result.primary == f"test_{primary}" and metric.better == load_task(name).target.metrics[primary].better
    assert all(v is not None for a in got.arms for v in a["per_seed"])
    first, *_, last = conclusions(got)
    assert metric.points(1.).split()[-1] in first and last.startswith("baseline without a network, ")
    assert got.to_dict()["baseline"][primary] == pytest.approx(got.baseline[primary])
    html = save_report(got, tmp_path/"out")["report.html"].read_text(encoding="utf-8")
    assert "baseline without a network" in html and metric.label() in html
    # The same arms as a study: nothing is trained again, and every resample of rows can be scored.
    study = compare_study(name, ["full", "linear_probe"], labels=40, rates=1, unit="labelled items")
    again = run_study(study, seeds=2, settings_file=ini, quiet=True)
    assert again.values("full") == got.result.values("full")
    rows, draw = again.rows("full", again.seeds[0]), np.random.default_rng(0)
    whole = load_task(name).target.metrics[primary].score(rows)
    drawn = [draw.integers(len(rows["y"]), size=len(rows["y"])) for _ in range(5)]
    some = [load_task(name).target.metrics[primary].score({k: v[i] for k, v in rows.items()}) for i in drawn]
    assert whole == pytest.approx(again.values("full")[0], abs=1e-2)
    assert np.mean(some) == pytest.approx(whole, rel=.2) and len(set(some)) > 1


def test_a_budget_that_nobody_names_is_the_usual_one_of_the_target(ini):
    for name, usual in (("digits", 10), ("pages", 300), ("angles", 300)):
        arm = prepare_train(dict(task=name, recipe="linear_probe"), settings(ini), "store")
        assert arm.make(0, lr=1e-3).config["labels"] == usual == load_task(name).target.usual_labels


@pytest.mark.parametrize("name", NAMES)
def test_an_audit_finds_a_planted_copy_and_leaves_out_what_needs_classes(name):
    from finetune_nb.data.corruptions import derived
    task = load_task(name)
    small = derived(task, "small", keep={s: np.arange(60) for s in task.targets})
    found = audit(small)
    assert "labels" not in found.about["checks"] and len(found.findings())
    with pytest.raises(FinetuneError, match="needs classes"): audit(small, checks=["labels"])
    twice = derived(task, "twice", keep=dict(train=np.r_[np.arange(60), 7], valid=np.arange(60), test=np.arange(60)))
    assert "exact repeat" in {r["kind"] for r in audit(twice, checks=["copies"]).rows}
    found.items(); found.gallery(2)


def test_evaluate_bundle_and_answers(learn, tmp_path):
    target = learn.task.target
    got = evaluate(learn, "test", limit=100)
    assert list(got)[:2] == list(target.metrics) and got["n"] == 100 and np.isfinite(got["loss"])
    bundle = load_bundle(save_bundle(learn, tmp_path/"b"))
    answers = bundle.predict(learn.task.items["test"].array[:6])
    if target.vocab: assert all(n in target.vocab and .5 <= p <= 1 for a in answers for n, p in a)
    else: assert all(abs(v) < 200 and unit == "degrees" for v, unit in answers)
    rows = target.statistics(bundle.outputs(learn.task.items["test"].array), learn.task.targets["test"])
    assert target.score(rows)[target.primary] == pytest.approx(evaluate(learn, "test")[target.primary], rel=.02)
    learn.validate(); learn.show_results(max_n=4)


def test_explanations_where_they_make_sense(learn):
    from finetune_nb.explain.attribution import gradcam, integrated_gradients, pick_items
    from finetune_nb.explain.calibration import calibration
    from finetune_nb.explain.confusion import confusions
    from finetune_nb.explain.layers import layer_changes
    frame = layer_changes(learn, learn.before, limit=100)
    assert frame.probe_after.notna().all() and (frame.probe_after <= 1).all()
    x, _ = pick_items(learn, [0, 1])
    maps = gradcam(learn, x, target=0)
    assert maps.values.shape[0] == 2 and np.abs(integrated_gradients(learn, x, target=0, steps=32).gap()).max() < 1
    maps.plot()
    for what in (lambda: calibration(learn), lambda: confusions(learn.before, learn)):
        with pytest.raises(FinetuneError, match="needs a task whose target is 'classes'"): what()


@pytest.mark.parametrize("name", NAMES)
def test_what_needs_classes_says_so_in_one_line(name, ini):
    from finetune_nb.experiments.presets.rank_models import rank_models
    from finetune_nb.training.imbalance import class_scores, set_loss
    learn = pretrained_learner(load_task(name), labels=20, device="cpu", offline="yes")
    for what in (lambda: set_loss(learn, "focal"), lambda: class_scores(learn, "test"),
                 lambda: rank_models(name, labels=5, settings_file=ini)):
        with pytest.raises(FinetuneError, match="'classes'") as e: what()
        assert "\n" not in str(e.value)


def test_ruined_networks_and_too_few_rows():
    pages, angles = (load_task(n).target for n in NAMES)
    bad = angles.statistics(torch.full((3, 1), torch.nan), torch.tensor([1., 2, 3]))
    assert np.isnan(angles.score(bad)["mae"]) and angles.metrics["mae"].finite(angles.score(bad)["mae"]) == 1e9
    assert angles.score(angles.statistics(torch.ones(1, 1), torch.ones(1)))["r2"] is None
    y = np.eye(12, dtype=np.uint8)
    for output in (torch.full((12, 12), torch.nan), torch.zeros(12, 12)):
        assert pages.score(pages.statistics(output, y))["map"] == pytest.approx(1/12)
    assert pages.score(pages.statistics(torch.zeros(2, 12), np.zeros((2, 12))))["map"] is None


# A target of one's own: ordered levels, one output for each step from one level to the next.
@dataclass
class Ordinal(Target):
    "One of several ordered levels of each item."
    vocab: list  # levels, lowest first
    name = "ordinal"
    metrics = {"level_error": Metric("mean level error", "lower", 0., float("inf"), "levels", .05,
                                     "a twentieth of a level", "mean of |answer - truth|",
                                     lambda rows: float(np.abs(rows["level"] - rows["y"]).mean())),
               "exact": Metric("exact", score=lambda rows: float((rows["level"] == rows["y"]).mean()))}

    @property
    def n_outputs(self): return len(self.vocab) - 1
    def encode(self, raw): return np.asarray(raw, dtype=np.int64)
    def tensor(self, y): return y
    def steps(self, y): return (torch.as_tensor(y)[:, None] > torch.arange(self.n_outputs, device=y.device)).float()
    def loss(self): return lambda output, y, reduction="mean": self.item_loss(output, y, reduction)
    def item_loss(self, output, y, reduction="none"):
        each = binary_cross_entropy_with_logits(output, self.steps(y), reduction="none").mean(1)
        return {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction]
    def activation(self, output): return output.sigmoid()
    def level(self, output): return (output > 0).sum(1)
    def decode(self, output): return [self.vocab[i] for i in self.level(output)]
    def statistics(self, output, y):
        return dict(level=self.level(output).cpu().numpy(), y=torch.as_tensor(y).cpu().numpy())
    def shown(self, y): return self.vocab[int(y)]
    def numbers(self, y): return self.steps(torch.as_tensor(y)).double().numpy()
    def outputs_for(self, mean): return torch.logit(torch.as_tensor(mean).float().clamp(1e-4, 1 - 1e-4))


def stars():
    "Digits as marks: 0 to 4 by twos."
    digits = load_task("digits")
    return Task("stars", digits.modality, Ordinal(["bad", "poor", "fair", "good", "great"]), digits.items,
                {s: y//2 for s, y in digits.targets.items()}, source="digits, two by two")


def test_a_new_target_of_under_60_lines_works_in_compare(ini, monkeypatch, tmp_path):
    assert len(inspect.getsource(Ordinal).splitlines()) + len(inspect.getsource(stars).splitlines()) < 60
    monkeypatch.setitem(TASKS, "stars", __name__); monkeypatch.setitem(TARGETS, "ordinal", Ordinal)
    got = compare("stars", ["full", "linear_probe"], labels=60, seeds=2, rates=1, settings_file=ini, quiet=True)
    assert got.result.primary == "test_level_error" and got.result.metric_of().better == "lower"
    chance = load_task("stars").target.chance(load_task("stars").targets["test"])["level_error"]
    assert max(got["full"]["per_seed"]) < chance and got["full"]["verdict"] == "reference"
    page = save_report(got, tmp_path)["report.html"].read_text(encoding="utf-8")
    assert "levels" in conclusions(got)[0] and "mean level error, levels" in page
