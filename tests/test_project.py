"Quick starts as a user meets them: a folder of data, one command, a report."
import json, os, signal, subprocess, sys, time

import pytest
from PIL import Image, ImageDraw

from finetune_nb.projects.new import KINDS, TEMPLATES, new_project
from tests.helpers import ROOT, cli, environment, refused, script

DATA = ROOT.parent/"shared"/"data"


def pictures(folder, classes=("round", "square", "flat"), n=14):
    for c in classes:
        (folder/c).mkdir(parents=True)
        for k in range(n):
            draw = ImageDraw.Draw(im := Image.new("RGB", (40, 40), (10*k, 40, 90)))
            place = (8, 8 + 8*(c == "flat"), 22 + k, 20 + (0 if c == "flat" else k))
            (draw.ellipse if c == "round" else draw.rectangle)(place, fill=(240, 240, 20*k % 256))
            im.save(folder/c/f"{k}.png")
    return folder


def texts(file, n=30):
    words = dict(weather="rain sun wind cloud storm".split(), food="bread soup apple cheese salt".split())
    rows = [f"{i} how much {w[i % 5]} with {w[(i*3 + 1) % 5]} today,{c}" for c, w in words.items() for i in range(n)]
    file.write_text("message,topic\n" + "\n".join(rows) + "\n")
    return file


def documents(folder, n=12):
    folder.mkdir(parents=True)
    for i in range(n):
        folder.joinpath(f"lamp_{i}.md").write_text(
            f"# Lamp number {i} of the coast\n\n"
            f"The lamp of harbour {i} is lit at six in the evening. Its keeper is called Ann the {i}th of her line. "
            f"Ships with {i + 3} masts take their bearing from it. Nobody has counted its {100*i + 7} steps but her. "
            f"When fog comes a bell with {i + 2} tones is rung instead.\n")
    return folder


MAKE = {"image": lambda tmp: pictures(tmp/"shapes"), "text": lambda tmp: texts(tmp/"said.csv"),
        "rag": lambda tmp: documents(tmp/"lamps"), "task": lambda tmp: "angles"}
HEADINGS = {"image": ["The data", "The network", "The recipes", "The classifier"],
            "text": ["The data", "The model", "The recipes", "The classifier"],
            "task": ["The data", "The recipes", "The network"],
            "rag": ["Documents and questions", "Searching", "Retrieval or fine-tuning?"]}


def run(project, tmp, limit=400, **env):
    return subprocess.run([sys.executable, project/"run.py"], cwd=tmp, env=environment(tmp, **env), timeout=limit,
                          capture_output=True, text=True)


def sound(project, *headings):
    "The page is whole and names its parts; the notebook kept its outputs and no cell complained."
    html = (project/"report.html").read_text(encoding="utf-8")
    assert html.rstrip().endswith("</html>") and 'src="http' not in html
    for h in headings: assert f"<h2>{h}</h2>" in html, h
    cells = json.loads((project/"project.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [o for c in cells for o in c.get("outputs", [])]
    assert len(outputs) > 8 and not [o for o in outputs if o["output_type"] == "error"]
    return html


def test_templates_in_the_package_are_those_in_nbs():
    sources = {p.name: p.read_text(encoding="utf-8") for p in (ROOT/"nbs"/"templates").glob("*.ipynb")}
    assert set(sources) == {f"{k}.ipynb" for k in KINDS}
    for name, text in sources.items():
        made = (TEMPLATES/name).read_text(encoding="utf-8")
        assert made == script("templates").bare(text), f"{name}: run make check"


def by_command(tmp, data):
    "The project that one command makes and runs."
    done = cli(tmp, "new", "mine", "--kind", "rag", "--data", data.name, "--profile", "smoke", "--run", "--json",
               limit=400)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["kind"] == "rag" and got["report"] == str((tmp/"mine"/"report.html").resolve()) and got["seconds"] > 0
    assert "is not empty" in refused(tmp, "new", "mine", "--kind", "rag", "--data", data)
    return tmp/"mine"


@pytest.mark.parametrize("kind", KINDS)
def test_from_data_to_report(tmp_path, kind):
    if kind == "rag": project = by_command(tmp_path, MAKE[kind](tmp_path))
    else:
        project = new_project(tmp_path/"mine", kind, data=MAKE[kind](tmp_path), profile="smoke")["folder"]
        done = run(project, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(project/"report.html")) and "[1/" in done.stderr
    html = sound(project, "To take away", *HEADINGS[kind])
    assert "<title>mine: " in html
    if kind == "rag":
        from finetune_nb.retrieval.retriever import Retriever
        first = Retriever.load(project/"index").search(["Which lamp is at harbour 7?"], 1)[0][0]
        assert first.passage.id.startswith("lamp_")
        assert (project/"made"/"questions.csv").read_text().count("\n") > 12
        return
    from finetune_nb.models.bundle import load_bundle
    bundle = load_bundle(project/"bundle")
    assert {p.name for p in (project/"reports").iterdir()} == {"audit", "compare"}
    if kind == "task":
        assert "baseline without a network" in html and bundle.target.measured_in == "degrees"
        return
    said = bundle.predict([str(tmp_path/"shapes"/"round"/"3.png")] if kind == "image" else ["rain with wind today"])
    known = dict(image={"round", "square", "flat"}, text={"weather", "food"})[kind]
    assert said[0][0] in bundle.target.vocab and set(bundle.target.vocab) == known


def test_questions_and_a_reader_of_ones_own(tmp_path):
    docs = documents(tmp_path/"lamps")
    rows = [f"Whose ships have {i + 3} masts?,harbour {i},lamp_{i}.md/lamp-number-{i}-of-the-coast" for i in range(12)]
    asked = tmp_path/"asked.csv"
    asked.write_text("\n".join(["question,answer,passage", *rows]) + "\n")
    how = dict(questions=asked, model="world_lm", profile="smoke")
    project = new_project(tmp_path/"mine", "rag", data=docs, **how)["folder"]
    done = run(project, tmp_path)
    assert done.returncode == 0, done.stderr
    html = sound(project, "Answers")
    assert "from asked.csv" in html and (project/"reports"/"answers"/"report.html").is_file()
    assert not (project/"made").exists()


def test_a_cell_that_fails_is_one_line(tmp_path):
    project = new_project(tmp_path/"mine", "text", data=texts(tmp_path/"said.csv"), profile="smoke")["folder"]
    (project/"data.csv").unlink()
    done = run(project, tmp_path)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "stopped under 'The data': no such file: data.csv" in last
    assert not (project/"report.html").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interrupted_and_taken_up_again(tmp_path):
    project = new_project(tmp_path/"mine", "text", data=texts(tmp_path/"said.csv"), profile="smoke")["folder"]
    p = subprocess.Popen([sys.executable, project/"run.py"], cwd=tmp_path, env=environment(tmp_path), text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    seen = ""
    while "Which way of training" not in seen:
        line = p.stderr.readline()
        assert line, f"ended early: {seen}"
        seen += line
    time.sleep(1)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and "interrupted" in err and "Traceback" not in err, err[-2000:]
    assert not (project/"report.html").exists() and json.loads((project/"project.ipynb").read_text())["cells"]
    done = run(project, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args, words", [
    (("--kind", "image", "--data", "lamps"),
     "12 documents; a project of kind image needs a folder with one folder of pictures per class. "
     "--kind rag would fit"),
    (("--kind", "text", "--data", "lamps"), "--kind rag would fit"),
    (("--kind", "rag", "--data", "none"), "no such file or folder"),
    (("--kind", "sound", "--data", "lamps"), "unknown value 'sound'"),
    (("--kind", "rag", "--data", "lamps", "--profile", "slow"), "smoke | fast | full"),
    (("--kind", "rag", "--data", "lamps", "--label", "x"), "--label is for projects of kind text"),
    (("--data", "lamps"), "--kind"),
], ids=lambda v: " ".join(v) if isinstance(v, tuple) else None)
def test_bad_arguments(tmp_path, args, words):
    documents(tmp_path/"lamps")
    assert words in refused(tmp_path, "new", "mine", *args)
    assert not (tmp_path/"mine").exists()


# ---- real data, where it is present beside the repository; minutes each --------------------------------------------
def wikipedia(folder):
    "The paragraphs of XQuAD's English part as a folder of markdown, and its questions."
    import csv
    folder.mkdir(parents=True); rows = []
    for article in json.loads((DATA/"xquad_squad"/"xquad.en.json").read_text())["data"]:
        name = article["title"].replace("/", "-")
        parts = [f"## Part {i + 1}\n\n{p['context']}" for i, p in enumerate(article["paragraphs"])]
        text = "\n\n".join([f"# {article['title'].replace('_', ' ')}", *parts]) + "\n"
        folder.joinpath(f"{name}.md").write_text(text, encoding="utf-8")
        rows += [(q["question"], q["answers"][0]["text"], f"{name}.md/part-{i + 1}")
                 for i, p in enumerate(article["paragraphs"]) for q in p["qas"]]
    with open(folder.parent/"asked.csv", "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([("question", "answer", "passage"), *rows])
    return folder


@pytest.mark.parametrize("name, kind, more", [
    ("sign_digits", "image", ()), ("clinc150", "text", ()), ("wikipedia", "rag", ()),
    ("wikipedia", "rag", ("--questions", "asked.csv")),
], ids=lambda v: v if isinstance(v, str) else "questions" if v else "made")
@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data here")
def test_real_data_from_command_to_report(tmp_path, name, kind, more):
    data = wikipedia(tmp_path/"wikipedia") if name == "wikipedia" else DATA/name
    began = time.perf_counter()
    done = cli(tmp_path, "new", "mine", "--kind", kind, "--data", data, *more, "--profile", "fast", "--run", "--json",
               limit=1200, FINETUNE_NB_WORKERS="2")
    assert done.returncode == 0, done.stderr
    print(f"{name}: {time.perf_counter() - began:.0f} s from command to report")
    sound(tmp_path/"mine", "To take away")
