"""Every recipe on a convolutional network, a vision transformer and BERT: plan and fact agree, what is frozen stays,
what trains moves."""
import copy

import numpy as np
import pytest
import torch
import torch.nn as nn
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat

from finetune_nb.core.errors import RecipeError
from finetune_nb.data.modalities.text import TEXTS
from finetune_nb.models.architecture import create_model
from finetune_nb.recipes.fit import fit_recipe
from finetune_nb.recipes.library import RECIPES, recipe
from finetune_nb.recipes.plan import expand_phases
from finetune_nb.layers.groups import is_norm, layer_groups
from finetune_nb.training.learner import adamw

SUMS = ["surgical", "best_of(linear_probe, full)", "gradual + l2_sp", "ulmfit + bitfit", "gradual + lora + wise_ft"]


def pictures(n): return torch.randn(n, 1, 32, 32)

def cnn():
    return create_model("resnet10t", num_classes=3, channels=(8, 8, 16, 16), stem_width=8, in_chans=1,
                        zero_init_last=False), pictures

def vit():
    return create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, embed_dim=24, num_heads=2, depth=3,
                        in_chans=1, drop_path_rate=.1, proj_drop_rate=.1), pictures


class Logits(nn.Module):
    def __init__(self, model): super().__init__(); self.model = model
    def forward(self, ids): return self.model(ids.as_subclass(torch.Tensor)).logits


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=30, hidden_size=24, num_hidden_layers=3, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=8, type_vocab_size=1, num_labels=3)
    return Logits(transformers.BertForSequenceClassification(config)), lambda n: torch.randint(0, 30, (n, 8))


NETS = {"cnn": cnn, "vit": vit, "bert": bert}


def learner(kind):
    torch.manual_seed(0)
    net, draw = NETS[kind]()
    net.kit_config = dict(architecture={}, input={"size": 32})
    items = list(zip(draw(24), torch.arange(24) % 3))
    dls = DataLoaders(DataLoader(items, bs=8), DataLoader(items, bs=24))
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), opt_func=adamw, train_bn=False, wd_bn_bias=True)
    learn.is_pretrained, learn.seed = False, 0  # nothing was pre-trained here, so `scratch` has nothing to reset
    return learn


def state(model): return {k: v.detach().clone() for k, v in model.state_dict().items()}


def moves(name, p, group, on, r, groups, norms):
    "Should this parameter move in a phase in which the groups `on` train?"
    chosen = group is groups[-1] or {"all": True, "bias": name.endswith("bias"), "adapter": "lora_" in name}[r.part]
    return group.name in on and chosen or r.norm == "train" and id(p) in norms


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("name", [*RECIPES, *SUMS])
def test_plan_and_fact(kind, name):
    learn = learner(kind)
    r = recipe(f"surgical({layer_groups(learn.model)[1].name})" if name == "surgical" else name)
    if r.mixup and kind == "bert":
        learn.task = type("T", (), dict(modality=TEXTS))
        with pytest.raises(RecipeError, match="mixup averages inputs, which texts do not allow"):
            fit_recipe(learn, r, steps=6, lr=1e-2)
        return
    each = 3 * (len(r.best_of) or 1)
    def phases(x): return len(expand_phases(x, layer_groups(learn.model, x.granularity or "stage")))
    steps = each * max(phases(recipe(x)) for x in (r.best_of or [r]))
    states = [state(learn.model)]
    def keep(done): states.append(state(learn.model))
    trace = fit_recipe(learn, r, steps=steps, lr=1e-2, watch=True, on_step=keep)
    done = len(trace.rates)
    assert done and trace.deviation() < 1e-9
    planned = trace.plan.rates[:done]
    assert np.array_equal(planned, trace.rates) or np.abs(planned - trace.rates).max() < 1e-9
    if r.best_of: return  # its parts are tested by themselves
    if r.lora: states[0] = states[1]  # the adapter was put in after the first look; it begins with the first step
    model = learn.model
    groups = layer_groups(model, r.granularity or "stage")
    if not r.lora: check_phases(trace, states, groups, model, r)
    else: check_adapter(trace, states, groups)


def check_phases(trace, states, groups, model, r):
    norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    starts = [*trace.plan.starts, (trace.plan.steps, frozenset(), False)]
    for (first, on, _), (last, *_) in zip(starts, starts[1:]):
        last = min(last, len(trace.rates))
        if first >= last: break
        before, after = states[first], states[last]
        for g in groups:
            for n, p in g.named_params:
                moved = not torch.equal(before[n], after[n])
                # A key's bias drops out of the softmax, so its gradient is zero but for rounding.
                if "key.bias" in n and g.name in on: continue
                what = f"step {first} to {last}: {n} {'moved' if moved else 'stayed'}"
                assert moved == moves(n, p, g, on, r, groups, norms), what
        if r.norm == "frozen":
            mine = {n for g in groups if g.name in on for n, _ in g.named_params}
            for n in before.keys() - {n for n, _ in model.named_parameters()}:
                frozen = not any(m.rpartition(".")[0] == n.rpartition(".")[0] for m in mine) or r.part != "all"
                if frozen: assert torch.equal(before[n], after[n]), f"buffer {n} of a frozen group moved"


def check_adapter(trace, states, groups):
    "The body's own weights stay to the last bit, the additions move."
    first, last = states[1], states[len(trace.rates)]
    head = {n for n, _ in groups[-1].named_params}
    for n in first:
        if "lora_" in n: continue
        assert (n in head) == (not torch.equal(first[n], last[n])), n
    assert any(not torch.equal(first[n], last[n]) for n in first if "lora_B" in n)


@pytest.mark.parametrize("kind", NETS)
def test_interrupted_in_the_middle_of_a_phase(kind, tmp_path):
    "Optimiser state, dropout's random numbers and place in the epoch included."
    def stop(done):
        if done == 11: raise InterruptedError("pulled the plug")
    def fit(**more):
        return fit_recipe(learner(kind), "ulmfit + l2_sp", steps=20, lr=1e-2, curve_points=2, watch=True, **more)
    whole = fit()
    with pytest.raises(InterruptedError): fit(checkpoint=tmp_path, save_every=5, on_step=stop)
    rest = fit(checkpoint=tmp_path)
    assert np.abs(rest.losses - whole.losses).max() < 1e-6 and np.array_equal(rest.rates, whole.rates)
    assert not list(tmp_path.iterdir()), "a finished fit leaves no state behind"
    for k in whole.watched: assert np.allclose(rest.watched[k], whole.watched[k], atol=1e-6)


def test_scratch_needs_to_know_how_to_build_the_network():
    learn = learner("cnn"); learn.is_pretrained = True; del learn.model.kit_config
    with pytest.raises(RecipeError, match="build the network again"): fit_recipe(learn, "scratch", steps=3, lr=1e-2)


def test_a_wrong_recipe_changes_nothing():
    learn = learner("cnn"); before = copy.deepcopy(learn.model.state_dict())
    for bad in ("surgical(nowhere)", recipe("full", rates={"nowhere": 1.})):
        with pytest.raises(RecipeError, match="unknown layer group"): fit_recipe(learn, bad, steps=6, lr=1e-2)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
