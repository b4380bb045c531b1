"""The benchmark of run times: what it writes, what it says of a notebook that fails or takes too long, and that it
keeps what it did not run."""
import json

import pytest

from tests.helpers import script


@pytest.fixture
def bench(): return script("run_times")


def tree(tmp, **code):
    "A small repository: tutorials by name with one code cell each."
    folder = tmp/"nbs"/"tutorials"; folder.mkdir(parents=True)
    for i, (name, source) in enumerate(code.items(), 1):
        head = (f"| Tutorial {i} | |\n|:--|:--|\n| **Goal** | Learn. |\n| **Time** | not measured yet |\n"
                "| **Stage** | adapt |")
        cells = [dict(cell_type="markdown", id=f"m{i}", metadata={}, source=f"# {i}. {name}\n\n> About it"),
                 dict(cell_type="markdown", id=f"h{i}", metadata={}, source=head),
                 dict(cell_type="code", id=f"c{i}", metadata={}, source=source, execution_count=None, outputs=[])]
        (folder/f"{i:02}_{name}.ipynb").write_text(json.dumps(
            dict(cells=cells, metadata=dict(kernelspec=dict(display_name="python3", language="python", name="python3")),
                 nbformat=4, nbformat_minor=5)))
    start = dict(cells=[dict(cell_type="markdown", id="t", metadata={},
                             source="# Start\n\n> All\n\n| | tutorial | what |\n|--:|:--|:--|\n| old | | |\n\nafter")],
                 metadata={}, nbformat=4, nbformat_minor=5)
    (folder/"00_start_here.ipynb").write_text(json.dumps(start))
    return folder


SETTINGS = ("import os\nassert os.environ['FINETUNE_NB_PROFILE'] == 'fast' and not "
            "os.listdir(os.path.dirname(os.environ['FINETUNE_NB_CACHE'])) == [], 'as promised'\n"
            "assert not os.path.exists(os.environ['FINETUNE_NB_CACHE']), 'an empty cache'")


def test_times_are_written_and_stated(bench, tmp_path, capsys):
    folder = tree(tmp_path, good=SETTINGS, other="1")
    (tmp_path/"nbs"/"run_times.json").write_text(json.dumps(dict(notebooks={
        "tutorials/02_other.ipynb": dict(seconds=130, profile="fast", cores=2, date="2026-01-01", version="0")})))
    assert bench.main([str(folder/"01_good.ipynb"), "--cores", "1"], tmp_path) == 0
    times = json.loads((tmp_path/"nbs"/"run_times.json").read_text())["notebooks"]
    new = times["tutorials/01_good.ipynb"]
    assert (0 < new["seconds"] < 100 and new["profile"] == "fast" and new["cores"] == 1 and new["version"]
            and new["date"] > "2026")
    assert times["tutorials/02_other.ipynb"]["seconds"] == 130, "what was not run keeps its entry"
    assert f"| **Time** | {bench.stated(new['seconds'], 1)} |" in (folder/"01_good.ipynb").read_text().replace("\\n",
                                                                                                               "\n")
    assert "| **Time** | 2 minutes on two CPU cores, measured |" in (folder/"02_other.ipynb").read_text().replace("\\n",
                                                                                                                  "\n")
    page = "".join(json.loads((folder/"00_start_here.ipynb").read_text())["cells"][0]["source"])
    assert ("| 2 | [other](02_other.ipynb) | About it | adapt | 2 minutes |" in page and "old" not in page
            and page.endswith("after"))
    assert json.loads((folder/"01_good.ipynb").read_text())["cells"][2]["outputs"] == [], "outputs are thrown away"
    capsys.readouterr()
    assert bench.main(["--heads"], tmp_path) == 0 and capsys.readouterr().out == "", "everything is in step already"


def test_outputs_are_kept_on_request_and_a_check_writes_nothing(bench, tmp_path, capsys):
    folder = tree(tmp_path, good="import sys\nprint('a warning from /somewhere', file=sys.stderr)\n6*7")
    before = (folder/"01_good.ipynb").read_bytes()
    assert bench.main([str(folder/"01_good.ipynb"), "--cores", "1", "--check"], tmp_path) == 0
    assert (folder/"01_good.ipynb").read_bytes() == before and not (tmp_path/"nbs"/"run_times.json").exists()
    assert bench.main([str(folder/"01_good.ipynb"), "--cores", "1", "--outputs"], tmp_path) == 0
    cell = json.loads((folder/"01_good.ipynb").read_text())["cells"][2]
    assert "a warning" not in json.dumps(cell["outputs"]), "warnings name places on the machine"
    assert ("42" in json.dumps(cell["outputs"]) and cell["execution_count"] is None and cell["metadata"] == {}
            and "measured |" in (folder/"01_good.ipynb").read_text())
    assert bench.main(["--check", "--outputs"], tmp_path) == 2


def test_a_failing_one_and_a_slow_one(bench, tmp_path, capsys):
    folder = tree(tmp_path, bad="raise ValueError('no such luck')", good="1")
    assert bench.main(["--cores", "1", "--limit", ".5", *map(str, sorted(folder.glob("0[12]*")))], tmp_path) == 1
    said = capsys.readouterr()
    assert "no such luck" in said.err and "02_good.ipynb" in said.err and "are more than" in said.err
    assert (list(json.loads((tmp_path/"nbs"/"run_times.json").read_text())["notebooks"])
            == ["tutorials/02_good.ipynb"]), "a failed run is no time"


def test_bad_input_is_one_line(bench, tmp_path, capsys):
    tree(tmp_path, good="1")
    for args, what in ((["nothing.ipynb"], "no such notebook"), (["--cores", "0"], "above 0"),
                       (["--cores", "9999"], "are asked for")):
        assert bench.main(args, tmp_path) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and what in line and line.count("\n") == 1
    (tmp_path/"nbs"/"run_times.json").write_text("{")
    assert bench.main([], tmp_path) == 2 and "cannot read" in capsys.readouterr().err
