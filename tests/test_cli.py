"The command line as a user meets it: in its own process."
import json, os, shutil, signal, subprocess, sys, time

import pytest
from PIL import Image

from finetune_nb.models.load import BUNDLED
from tests.helpers import SMALL, cli, environment, refused


def test_json_is_one_object_and_nothing_else(tmp_path):
    done = cli(tmp_path, *SMALL, "--out", "r", "--json", fresh=True)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert [a["recipe"] for a in got["arms"]] == ["full", "linear_probe"]
    assert {"study.yaml", "report.html", "results.csv", "search.csv", "summary.json", "arms.png", "curves.png",
            "pareto.png", "shifts.png"} == {p.name for p in (tmp_path/"r").iterdir()}


def test_sums_and_brackets_are_recipes_too(tmp_path):
    "The comma inside brackets separates nothing."
    done = cli(tmp_path, "compare", "digits", "--recipes",
               "gradual + l2_sp, best_of(linear_probe, full), surgical(layer1)", "--labels", 1, "--profile",
               "smoke", "--json")
    assert done.returncode == 0, done.stderr
    assert [a["recipe"] for a in json.loads(done.stdout)["arms"]] == ["gradual + l2_sp", "best_of(linear_probe, full)",
                                                                      "surgical(layer1)"]


def test_a_recipe_file_with_a_misspelt_field(tmp_path):
    (tmp_path/"mine.yaml").write_text("name: mine\nphasse:\n- train: head\n")
    line = refused(tmp_path, "compare", "digits", "--recipes", "mine.yaml")
    assert "mine.yaml" in line and "Did you mean 'phases'?" in line and "Known: " in line


def test_help_is_quick(tmp_path):
    took = []
    for _ in range(3):
        began = time.perf_counter(); done = cli(tmp_path, "--help", fresh=True)
        took.append(time.perf_counter() - began)
    assert done.returncode == 0 and "compare" in done.stdout and min(took) < 1


@pytest.mark.parametrize("args, words", [
    (("compare", "digts"), "Did you mean 'digits'?"),
    (("compare", "digits", "--recipes", "gradul"), "Did you mean 'gradual'?"),
    (("compare", "digits", "--recipes", "gradual + l2sp"), "Did you mean 'l2_sp'?"),
    (("compare", "digits", "--recipes", "gradual + lp_ft"), "both set 'phases'"),
    (("compare", "digits", "--recipes", "full,surgical(layer9)"), "Known: stem, layer1, layer2, layer3, layer4, head"),
    (("compare", "digits", "--labels", 5000), "training labels per class, 5000 asked for"),
    (("compare", "digits", "--labels", "ten"), "neither a whole number"),
    (("compare", "digits", "--seeds", 0), "whole number of at least 1"),
    (("compare", "digits", "--model", "resnt18"), "Did you mean 'resnet18'?"),
    (("compare", "digits", "--profil", "fast", "--nonsense"), "unrecognized arguments"),
    (("compare", "no/such/folder"), "no such folder"),
    ((), "required"),
], ids=lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else None)
def test_bad_arguments(tmp_path, args, words):
    assert words in refused(tmp_path, *args)
    assert not (tmp_path/"reports").exists(), "a refused command left a folder behind"


def test_a_typo_does_not_wait_for_torch(tmp_path):
    "What is wrong with words, files and options is said before anything that takes seconds is imported."
    code = ("import sys; from finetune_nb.cli.main import main; wrong = [main(line.split()) for line in sys.argv[1:]]; "
            "print(set(wrong), {'torch', 'fastai', 'pandas'} & set(sys.modules))")
    lines = ("compar", "compare digts", "compare no/such/folder", "audit digts", "study none.yaml",
             "showdown --search bm",
             "list tsks", "new x --kind imag", "lab relese", "doctor --settings none.ini", "compare digits --labels x")
    done = subprocess.run([sys.executable, "-c", code, *lines], cwd=tmp_path, env=environment(tmp_path), text=True,
                          capture_output=True, timeout=60)
    assert done.stdout == "{2} set()\n" and done.stderr.count("\n") == len(lines), done


def test_bad_input_in_a_process_of_its_own(tmp_path):
    "As a shell sees it: status 2, one line on standard error, nothing on standard output."
    done = cli(tmp_path, "compare", "digts", fresh=True)
    assert (done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ")
            and done.stderr.count("\n") == 1)


def test_misspelt_settings_key(tmp_path):
    (tmp_path/"settings.ini").write_text("[run]\nprofile = smoke\nsedes = 3\n")
    line = refused(tmp_path, "compare", "digits")
    assert "settings.ini [run]" in line and "Did you mean 'seeds'?" in line


def test_damaged_checkpoint(tmp_path):
    shutil.copytree(BUNDLED/"glyph_resnet", tmp_path/"model")
    raw = bytearray((tmp_path/"model"/"model.safetensors").read_bytes()); raw[len(raw)//2] ^= 255
    (tmp_path/"model"/"model.safetensors").write_bytes(bytes(raw))
    assert "is damaged" in refused(tmp_path, *SMALL, "--model", tmp_path/"model")


def test_damaged_weights_file(tmp_path):
    (tmp_path/"w.safetensors").write_bytes(b"not weights at all")
    assert "not a whole safetensors file" in refused(tmp_path, *SMALL, "--weights", tmp_path/"w.safetensors")


def photos(folder, classes=("cat", "dog"), n=12):
    for i, c in enumerate(classes):
        (folder/c).mkdir(parents=True)
        for k in range(n): Image.new("RGB", (40, 40), (90*i + 9*k, 60, 200 - 90*i)).save(folder/c/f"{k}.jpg")


def test_text_file_renamed_jpg(tmp_path):
    photos(tmp_path/"pets"); (tmp_path/"pets"/"dog"/"notes.jpg").write_text("shopping list")
    line = refused(tmp_path, "compare", tmp_path/"pets", "--labels", "all")
    assert "1 of 25 files" in line and "notes.jpg (not an image)" in line


def test_empty_class_folder(tmp_path):
    photos(tmp_path/"pets"); (tmp_path/"pets"/"emu").mkdir()
    assert "no image in class folder emu" in refused(tmp_path, "compare", tmp_path/"pets")


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path/"file").write_text("in the way")
    assert "cannot write to folder" in refused(tmp_path, *SMALL, "--out", tmp_path/"file"/"r")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind the administrator")
def test_read_only_output_folder(tmp_path):
    (tmp_path/"r").mkdir(); (tmp_path/"r").chmod(0o500)
    assert "cannot write to folder" in refused(tmp_path, *SMALL, "--out", tmp_path/"r")


@pytest.mark.skipif(not os.path.isdir("/proc/self") , reason="needs a file system that refuses everyone")
def test_output_folder_on_a_file_system_that_refuses(tmp_path):
    assert "cannot write to folder" in refused(tmp_path, *SMALL, "--out", "/proc/finetune_nb")


def test_old_results_stay_when_the_new_command_is_wrong(tmp_path):
    out = tmp_path/"r"; out.mkdir(); (out/"results.csv").write_text("precious")
    refused(tmp_path, "compare", "digits", "--labels", 5000, "--out", out)
    assert (out/"results.csv").read_text() == "precious" and len(list(out.iterdir())) == 1


def test_photos_from_command_to_report(tmp_path):
    photos(tmp_path/"pets")
    done = cli(tmp_path, "compare", tmp_path/"pets", "--labels", "all", "--profile", "smoke", "--recipes",
               "linear_probe", "--size", 32)
    assert done.returncode == 0, done.stderr
    assert (tmp_path/"reports"/"compare_pets"/"report.html").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interrupt_is_130_and_keeps_what_is_done(tmp_path):
    p = subprocess.Popen([sys.executable, "-m", "finetune_nb.cli.main", "compare", "digits", "--profile", "fast",
                          "--labels", "1", "--recipes", "full", "--seeds", "30"], cwd=tmp_path,
                         env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         start_new_session=True)
    for _ in range(600):
        if list((tmp_path/"cache").glob("runs/*/run.json")): break
        time.sleep(.1)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and "interrupted" in err and "Traceback" not in err, err[-2000:]
    assert list((tmp_path/"cache").glob("runs/*/run.json"))
