"What has no name, and what is larger than memory: compared by several processes like everything else."
import sys

import pandas as pd
import pytest

from tests.memory import compared, photos

pytest.importorskip("pyarrow")
FEW = dict(recipes=["linear_probe"], labels=2, seeds=1, rates=1, model="zoo_resnet_few", profile="smoke", quiet=True)


def settings_file(tmp, **run):
    lines = "".join(f"{k} = {v}\n" for k, v in run.items())
    (tmp/"settings.ini").write_text(f"[run]\n{lines}[paths]\ncache = {tmp/'cache'}\n")


def test_a_data_frame_is_compared_by_two_processes(tmp_path, monkeypatch):
    "The frame is stored once; the workers load it by its name, and find what one process alone finds."
    from finetune_nb.experiments.presets.compare import compare
    monkeypatch.chdir(tmp_path)
    photos(tmp_path/"photos", 40, 24)
    files = sorted((tmp_path/"photos").rglob("*.jpg"))
    rows = [dict(file=str(f), label=f.parent.name, split=f.parent.parent.name) for f in files]
    for k in ("WORKERS", "CACHE", "SETTINGS"): monkeypatch.delenv(f"FINETUNE_NB_{k}", raising=False)
    found = []
    for name, source in dict(frame=pd.DataFrame(rows), alone=pd.DataFrame(rows), mapped=pd.DataFrame(rows)).items():
        where = tmp_path/name
        where.mkdir()
        settings_file(where, workers=2 if name == "frame" else 1, memory_gb=1e-5 if name == "mapped" else 4)
        monkeypatch.chdir(where)
        got = compare(source, size=32, **FEW | dict(seeds=2))
        found.append([{k: v for k, v in r.items() if isinstance(v, float) and "second" not in k}
                      for r in got.result.results])
    assert found[0] == found[1] == found[2] and found[0]
    assert len(list((tmp_path/"frame"/"cache"/"tasks").iterdir())) == 1
    # a place is no part of a run's identity: the runs have the same names
    def runs(n): return tuple(sorted(p.name for p in (tmp_path/n/"cache"/"runs").iterdir()))
    assert len({runs(n) for n in ("frame", "alone", "mapped")}) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="private memory is read from /proc")
def test_photos_larger_than_memory(tmp_path):
    "110 MB of decoded photos, 50 MB of memory: what a handful of photos takes, and under 50 MB more in all processes."
    photos(tmp_path/"few", 40, 96)
    photos(tmp_path/"many", 4000, 96, distinct=20)
    few, more = compared(tmp_path/"few", tmp_path/"run_few", 96, .05), []
    # The highest of sampled values moves by tens of MB on a busy machine; photos in memory would be over the limit
    # every time.
    while not more or more[-1] >= 50 and len(more) < 3:
        many = compared(tmp_path/"many", tmp_path/f"run_many_{len(more)}", 96, .05)
        assert few[0] == many[0] == 0
        more.append(many[1]["Anonymous"] - few[1]["Anonymous"])
    assert more[-1] < 50, more
    assert sum(f.stat().st_size for f in (tmp_path/"run_many_0"/"cache"/"items").glob("*.npy")) > 110e6
