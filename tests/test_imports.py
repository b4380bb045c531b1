"Importing the kit changes nothing that belongs to somebody else."
import subprocess, sys

CODE = """
import fastai.vision.all, fastai.text.all, pandas, torch
from fastai.learner import Learner
import fastai.callback.core, fastai.data.core, fastai.optimizer
watched = [Learner, fastai.callback.core.Callback, fastai.data.core.DataLoaders, fastai.optimizer.Optimizer,
           torch.nn.Module, torch.Tensor, torch.optim.Optimizer, pandas.DataFrame]
before = {c: dict(vars(c)) for c in watched}
import importlib, pkgutil, finetune_nb, finetune_nb.all as kit
for name in kit.__all__: getattr(kit, name)
for m in pkgutil.walk_packages(finetune_nb.__path__, "finetune_nb."):
    if not any(w in m.name for w in ("student_worker", "check_worker", "__main__")): importlib.import_module(m.name)
def ours(v): return getattr(v, "__module__", "").startswith("finetune_nb")
changed = [f"{c.__name__}.{k}" for c in watched for k, v in vars(c).items()
           if before[c].get(k) is not v and ours(v)]
lost = [f"{c.__name__}.{k}" for c in watched for k in before[c] if k not in vars(c)]
print(changed, lost, Learner.freeze_to.__module__)
"""

def test_importing_everything_leaves_fastai_and_torch_as_they_are():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().endswith("[] [] fastai.learner"), done.stdout + done.stderr
