"Real photographs and real ImageNet weights, where they are present beside the repository."
import json

import pytest

from finetune_nb.recipes.library import recipe
from tests.helpers import ROOT, cli

DATA = ROOT.parent/"shared"/"data"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data here")]


def test_imagenet_weights_on_sign_digits(tmp_path):
    # The rate is given here, so that the test takes minutes; without the file the same command searches for it.
    recipe("full", name="fine_tuned", lr=1e-3).to_yaml(tmp_path/"fine_tuned.yaml")
    done = cli(tmp_path, "compare", DATA/"sign_digits", "--model", "mobilenetv2_100", "--size", 128, "--labels", "all",
               "--weights", DATA/"weights"/"mobilenetv2_100_torch.safetensors", "--seeds", 2, "--profile", "fast",
               "--recipes", "linear_probe,fine_tuned.yaml", "--json", limit=1200, FINETUNE_NB_WORKERS="2")
    assert done.returncode == 0, done.stderr
    arms = {a["recipe"]: a for a in json.loads(done.stdout)["arms"]}
    assert arms["fine_tuned"]["mean"] > .88, "fine-tuning should end well above a linear probe's 0.83"
    assert arms["fine_tuned"]["mean"] > arms["linear_probe"]["mean"]


def test_search_finds_the_paragraphs_of_real_questions():
    "XQuAD's English part: whole paragraphs, each question has one."
    from finetune_nb.retrieval.metrics import retrieval_table
    from finetune_nb.retrieval.retriever import Retriever
    from finetune_nb.worlds.world import Passage
    given = json.loads((DATA/"xquad_squad"/"xquad.en.json").read_text())["data"]
    paragraphs = [p for article in given for p in article["paragraphs"]]
    passages = [Passage(str(i), "", p["context"]) for i, p in enumerate(paragraphs)]
    asked = [(q["question"], {str(i)}) for i, p in enumerate(paragraphs) for q in p["qas"]]
    ways = {how: Retriever(passages, how=how) for how in ("bm25", "hybrid")}
    found = retrieval_table(ways, [q for q, _ in asked], [g for _, g in asked], ks=(1, 5))
    assert len(asked) > 1000 and (found["recall@5"] > .95).all(), found


def test_real_questions_on_real_paragraphs(tmp_path):
    """The tiny story-teller that lies here answers by the same path as a large model, if not well; it reads little at a
    time, so the paragraphs are cut and an answer stands in several pieces."""
    done = cli(tmp_path, "showdown", "--corpus", DATA/"xquad_squad"/"xquad.en.json",
               "--model", DATA/"weights"/"stories260K_hf", "--arms", "base,rag,oracle", "--profile", "smoke", "--json",
               limit=900)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    for r in got["retrieval"]:
        assert r["n"] > 1000 and .3 < r["recall@1"] < r["recall@3"] < r["recall@5"] < r["recall@10"] <= 1, r
    assert [a["arm"] for a in got["arms"]] == ["base", "rag", "oracle"] and all(0 <= a["f1"] <= 1 for a in got["arms"])
