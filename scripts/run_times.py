"""Run tutorials and labs one after the other, each from an empty cache, and write down how long each takes.

  .venv/bin/python scripts/run_times.py                      all of nbs/tutorials and nbs/labs
  .venv/bin/python scripts/run_times.py nbs/labs/01_*.ipynb  these; entries of the others stay as they are
  .venv/bin/python scripts/run_times.py --outputs            and keep what the tutorials show
  .venv/bin/python scripts/run_times.py --check              write nothing: does each run within the limit?

Times go to nbs/run_times.json, and from there into the heads of the tutorials and the table of
nbs/tutorials/00_start_here.ipynb. Exit status 1 if a notebook fails or takes longer than the limit."""
import argparse, json, os, re, signal, subprocess, sys, tempfile, time
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetune_nb import __version__
from finetune_nb.core.errors import FinetuneError
from finetune_nb.core.files import read_json, write_json, write_text
from finetune_nb.core.settings import settings
from finetune_nb.widgets.tutorial_index import read_series, read_times, seconds_of, series_table, spoken, stated

TABLE = re.compile(r"^\| \| tutorial \|.*?(?=^(?!\|)|\Z)", re.M | re.S)

ROOT = Path(__file__).resolve().parents[1]


def execute(path, profile, cores, patience, outputs=False):
    """(seconds, None) or (seconds, what went wrong) of one run in a process of its own with a cache of its own; with
    `outputs` the notebook keeps what it showed."""
    with tempfile.TemporaryDirectory(prefix="run_times_") as scratch:
        env = {k: v for k, v in os.environ.items() if not k.startswith("FINETUNE_NB_")}
        env |= {f"FINETUNE_NB_{k}": v
                for k, v in dict(PROFILE=profile, CACHE=f"{scratch}/cache", REPORTS=f"{scratch}/reports",
                                 WORKERS=str(cores), OFFLINE="yes").items()}
        have = Path(settings()["cache"])/"models"  # real networks are fetched once: `make real`
        if is_real(path) and have.is_dir():
            Path(scratch, "cache").mkdir()
            Path(scratch, "cache", "models").symlink_to(have, target_is_directory=True)
        env["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).resolve().parents[1]), *filter(None, [env.get("PYTHONPATH")])])
        began = time.perf_counter()
        with open(f"{scratch}/log", "w+") as log:
            keep = ((lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]))
                    if hasattr(os, "sched_setaffinity") else None)
            # The notebook's working directory stays its own folder; what it becomes lands in the scratch one.
            work = subprocess.Popen([sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute",
                                     "--output-dir", scratch, "--ExecutePreprocessor.timeout=-1", str(path)],
                                    env=env, stdout=log, stderr=log, start_new_session=True, preexec_fn=keep)
            try: status = work.wait(timeout=patience)
            except subprocess.TimeoutExpired: status = None
            finally:
                if work.poll() is None:
                    os.killpg(work.pid, signal.SIGTERM)
                    try: work.wait(10)
                    except subprocess.TimeoutExpired: os.killpg(work.pid, signal.SIGKILL); work.wait()
            seconds = time.perf_counter() - began
            log.seek(0); said = [l for l in re.sub(r"\x1b\[[\d;]*m", "", log.read()).splitlines() if l.strip()]
        if status == 0 and outputs: keep_outputs(path, Path(scratch)/path.name)
        if status is None: return seconds, f"stopped after {spoken(seconds)}"
        return seconds, None if status == 0 else (said[-1] if said else f"exit status {status}")


def is_real(path):
    "Has a notebook cells that need real networks?"
    return "#| real" in path.read_text(encoding="utf-8")


def lacks(path):
    "A real network that a notebook names and that is not here; None if it can run."
    from finetune_nb.models.origins import entries, is_here
    text = path.read_text(encoding="utf-8")
    return next((n for n in entries() if n in text and not is_here(n)), None) if is_real(path) else None


def write_notebook(path, nb):
    "Write a notebook as nbdev does."
    write_text(path, json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def keep_outputs(path, executed):
    "Put the executed notebook in the place of `path`, cleaned as nbdev cleans."
    from nbdev.clean import nbdev_clean
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere): nbdev_clean(executed)
    nb = read_json(executed)
    for c in nb["cells"]:
        # warnings name places on this machine
        if c["cell_type"] == "code": c["outputs"] = [o for o in c["outputs"] if o.get("name") != "stderr"]
    write_notebook(path, nb)


def heads(folder, times):
    """Bring the heads of the tutorials and the table of 00_start_here in step with the file; gives the names of what
    changed."""
    changed, table = [], None
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        nb, before = read_json(path), path.read_text(encoding="utf-8")
        if path.name.startswith("00_"): table = series_table(read_series(folder), times)
        entry = times.get(f"{folder.name}/{path.name}")
        for c in nb["cells"]:
            if c["cell_type"] != "markdown": continue
            text = "".join(c["source"])
            new = (TABLE.sub(lambda m, table=table: table + "\n", text) if table and path.name.startswith("00_")
                   else re.sub(r"^\| \*\*Time\*\* \| .*? \|$",
                               f"| **Time** | {stated(seconds_of(times, path), entry['cores'] if entry else 2)} |",
                               text, count=1, flags=re.M))
            if new.rstrip("\n") != text.rstrip("\n"):
                c["source"] = new.rstrip("\n").splitlines(True) if isinstance(c["source"], list) else new.rstrip("\n")
        if json.loads(before) != nb: write_notebook(path, nb); changed.append(path.name)
    return changed


def main(args=None, root=ROOT):
    "Run what is asked for, write the times down, bring heads and table in step."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("notebooks", nargs="*", type=Path, help="which; none for all tutorials and labs")
    p.add_argument("--limit", type=float, default=300, help="seconds that one may take (300)")
    p.add_argument("--profile", choices=("smoke", "fast", "full"), default="fast",
                   help="size of the runs (fast); only fast times are written down")
    p.add_argument("--cores", type=int, default=2, help="processor cores that may be used (2)")
    p.add_argument("--outputs", action="store_true", help="keep what the tutorials show")
    p.add_argument("--check", action="store_true", help="write nothing: only see that each runs within the limit")
    p.add_argument("--heads", action="store_true", help="run nothing: only bring the heads in step with run_times.json")
    a = p.parse_args(args)
    nbs, file = root/"nbs", root/"nbs"/"run_times.json"
    try:
        if a.check and (a.outputs or a.heads):
            raise FinetuneError("--check writes nothing: give it without --outputs and --heads")
        if a.cores < 1 or a.limit <= 0: raise FinetuneError("--cores and --limit must be above 0")
        todo = [] if a.heads else [n.resolve() for n in a.notebooks] or sorted([
            *nbs.glob("tutorials/*.ipynb"), *nbs.glob("labs/*.ipynb")])
        for n in todo:
            if not n.is_file() or n.suffix != ".ipynb": raise FinetuneError(f"no such notebook: {n}")
        read_times(file)  # a damaged file is noticed before hours of work
        have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        if have < a.cores: raise FinetuneError(f"this machine has {have} cores, {a.cores} are asked for (--cores)")
        wrong, total = [], 0
        for n in todo:
            name = "/".join(n.parts[-2:])
            if lack := lacks(n): print(f"not run  {name}: it needs {lack} (make real)", flush=True); continue
            seconds, why = execute(n, a.profile, a.cores, max(600, 3*a.limit),
                                   a.outputs and n.parent.name == "tutorials")
            total += seconds
            if not why and seconds > a.limit: wrong.append(f"{name}: {seconds:.0f} s are more than {a.limit:.0f}")
            if why: wrong.append(f"{name}: {why}")
            print(f"{seconds:7.1f} s  {name}"
                  + (f"  FAILED: {why}" if why else "  TOO LONG" if seconds > a.limit else ""), flush=True)
            if not why and a.profile == "fast" and not a.check:
                write_json(file, dict(notebooks=read_times(file)
                                      | {name: dict(seconds=round(seconds, 1), profile=a.profile, cores=a.cores,
                                                    date=date.today().isoformat(), version=__version__)}))
        if todo: print(f"{total:7.1f} s  in all, {len(todo)} notebooks, {a.profile}, {a.cores} cores")
        if (nbs/"tutorials").is_dir() and not a.check:
            for name in heads(nbs/"tutorials", read_times(file)): print(f"brought in step: {name}")
    except FinetuneError as e: print(f"error: {e}", file=sys.stderr); return 2
    except KeyboardInterrupt: print("interrupted; what was measured is kept", file=sys.stderr); return 130
    for w in wrong: print(w, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__": sys.exit(main())
