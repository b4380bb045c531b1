"What several test files need."
import io, os, subprocess, sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]


def environment(tmp, **more):
    "An environment in which the kit's cache lies in `tmp` and nothing of the caller's settings shows."
    env = {k: v for k, v in os.environ.items() if not k.startswith("FINETUNE_NB_")}
    return env | dict(FINETUNE_NB_CACHE=str(Path(tmp)/"cache"), FINETUNE_NB_WORKERS="1", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore") | more


def cli(tmp, *args, limit=300, **env):
    "Run finetune-nb in a process of its own; returns the finished process."
    return subprocess.run([sys.executable, "-m", "finetune_nb.cli", *map(str, args)], cwd=tmp, env=environment(tmp, **env), capture_output=True, text=True, timeout=limit)


def refused(tmp, *args):
    "The one line that bad input gets: status 2, nothing on standard output. In this process, which has the libraries loaded already."
    from finetune_nb.cli import main
    out, err = io.StringIO(), io.StringIO()
    with chdir(tmp), patch.dict(os.environ, environment(tmp), clear=True), redirect_stdout(out), redirect_stderr(err): status = main([str(a) for a in args])
    assert status == 2 and out.getvalue() == "", (status, out.getvalue(), err.getvalue())
    lines = err.getvalue().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err.getvalue()
    return lines[0]


SMALL = ("compare", "digits", "--recipes", "full,linear_probe", "--labels", 1, "--profile", "smoke")


def without_times(summary):
    "A summary with what may differ between two equal runs taken out."
    if isinstance(summary, dict): return {k: without_times(v) for k, v in summary.items() if k not in ("seconds", "train_seconds", "cost", "files")}
    return [without_times(v) for v in summary] if isinstance(summary, list) else summary
