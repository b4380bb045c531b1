"""Private memory of a comparison by two processes on photos that do not fit into memory, against the same on a handful.

    python -m tests.memory 105000 128 1 /tmp/photos     # photos, side, memory_gb, folder to make them in: 5 GB decoded
"""
import os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

KINDS = ("Anonymous", "Private_Clean", "Private_Dirty")


def photos(folder, n, side, distinct=200, seed=0):
    "train, valid and test folders of two classes. Repeats of a picture differ in a byte after its end."
    from PIL import Image
    g = np.random.default_rng(seed)
    for split, many in dict(train=n, valid=40, test=40).items():
        for c in ("dark", "light"):
            (folder/split/c).mkdir(parents=True)
            made = []
            for i in range(many//2):
                path = folder/split/c/f"{i}.jpg"
                if i < distinct:
                    small = (g.integers(0, 120, (8, 8, 3)) + (120 if c == "light" else 0)).astype(np.uint8)
                    Image.fromarray(small).resize((side, side)).save(path, quality=75)
                    made.append(path.read_bytes())
                else: path.write_bytes(made[i % distinct] + i.to_bytes(4, "big"))


def tree(pid):
    "The process and all below it."
    out = [pid]
    for p in out:
        for t in Path(f"/proc/{p}/task").glob("*/children"):
            try: out += [int(c) for c in t.read_text().split()]
            except OSError: pass
    return out


def private(pid):
    "kind -> MB of a process's memory that no other process shares."
    try: lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError: return dict.fromkeys(KINDS, 0)
    found = {l.split(":")[0]: int(l.split()[1])*1024/1e6 for l in lines[1:]}
    return {k: found[k] for k in KINDS}


def watched(command, cwd, env=None, every=.2):
    "(exit status, highest sum over the processes of each kind in MB, highest number of processes, seconds)"
    began, most, many = time.perf_counter(), dict.fromkeys((*KINDS, "uss"), 0.), 0
    p = subprocess.Popen(command, cwd=cwd, env=env)
    while p.poll() is None:
        now = [private(q) for q in tree(p.pid)]
        total = {k: sum(m[k] for m in now) for k in KINDS}
        total["uss"] = total["Private_Clean"] + total["Private_Dirty"]
        most, many = {k: max(most[k], total[k]) for k in most}, max(many, len(now))
        time.sleep(every)
    return p.returncode, most, many, time.perf_counter() - began


def compared(folder, where, size, memory_gb):
    "Watch `finetune-nb compare` on a folder, two processes at once."
    where.mkdir(parents=True)
    run = f"[run]\nprofile = smoke\nworkers = 2\nmemory_gb = {memory_gb}\n"
    (where/"settings.ini").write_text(run + f"[paths]\ncache = {where/'cache'}\n")
    command = [sys.executable, "-m", "finetune_nb.cli.main", "compare", str(folder), "--recipes", "full,linear_probe",
               "--labels", "2", "--seeds", "1", "--size", str(size), "--model", "zoo_resnet_few",
               "--out", str(where/"report")]
    env = {k: v for k, v in os.environ.items() if not k.startswith("FINETUNE_NB_")}
    return watched(command, where, env | dict(PYTHONPATH=str(Path(__file__).parents[1]), OMP_NUM_THREADS="1"))


def main(n, size, memory_gb, folder):
    folder = Path(folder)
    print(f"{n} photos of {size} pixels: {n*3*size*size/1e9:.2f} GB decoded; memory_gb = {memory_gb}")
    for name, many in dict(few=40, many=int(n)).items():
        if not (folder/name).exists(): photos(folder/name, many, size)
    with ThreadPoolExecutor() as pool:
        names = ("few", "many")
        runs = pool.map(lambda n: compared(folder/n, folder/f"run_{n}", size, memory_gb), names)
        got = dict(zip(names, runs))
    for name, (code, most, many, seconds) in got.items():
        shown = ", ".join(f"{k} {v:.0f} MB (+{v - got['few'][1][k]:.0f})" for k, v in most.items())
        print(f"{name}: status {code}, {many} processes, {seconds:.0f} s; highest sums {shown}")
    print("files, GB:", [round(f.stat().st_size/1e9, 2) for f in (folder/"run_many"/"cache"/"items").glob("*.npy")])


if __name__ == "__main__": main(*(float(x) if "." in x else int(x) for x in sys.argv[1:4]), sys.argv[4])
