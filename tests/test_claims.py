"Every claim from its sentence to its verdict, and the control that verdicts depend on the data."
import json
from unittest.mock import patch

import pytest

from finetune_nb.claims.run import CLAIMS
from tests.helpers import cli, said, shared_runs


def claims(tmp, *args, **more):
    "What `finetune-nb claims ... --json` says."
    got = cli(tmp, "claims", *args, "--json", "--out", "out", **more)
    assert got.returncode == 0, got.stderr
    return json.loads(got.stdout)["claims"]


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_runs(tmp_path, name):
    """Each by itself, so that several workers share them; runs that two claims have in common are in the store of the
    whole test run."""
    c, = claims(tmp_path, name, "--profile", "smoke", FINETUNE_NB_CACHE=shared_runs())
    assert c["name"] == name and c["verdict"] and c["n"] >= 2 and len(c["seeds"]) == c["n"]
    for r in c["contrasts"]:
        assert (r["n"] + r["n_failed"] == c["n"] and r["n_failed"] == 0 and (r["counted"] or r["p_holm"] is not None)
                and None not in r["ci95"]), r
    assert (tmp_path/"out"/f"{name}.png").stat().st_size > 5000


def test_without_names_all_run(tmp_path):
    assert len(CLAIMS) >= 24
    few = {n: CLAIMS[n] for n in ("better_than_scratch", "learning_rate")}
    with patch.dict(CLAIMS, few, clear=True):
        got = said(tmp_path, "claims", "--profile", "smoke", "--json", "--out", "out", FINETUNE_NB_CACHE=shared_runs())
    assert [c["name"] for c in json.loads(got.stdout)["claims"]] == list(few), got.stderr
    assert {f"{n}.png" for n in few} < {f.name for f in (tmp_path/"out").iterdir()}


@pytest.mark.slow
def test_with_shuffled_labels_nothing_comes_out(tmp_path):
    names = ["better_than_scratch", "learning_rate", "quality_over_quantity"]
    real, control = (json.loads(cli(tmp_path, "claims", *names, "--profile", "fast", "--json",
                                    "--out", f"out{len(more)}", *more, limit=900).stdout)["claims"]
                     for more in ((), ("--shuffle-labels",)))
    assert real[0]["verdict"] == "supported"
    for a, b in zip(real, control):
        assert b["verdict"] not in ("supported", "partly supported"), f"{b['name']}: {b['contrasts']}"
    assert any(a["verdict"] != b["verdict"] for a, b in zip(real, control))


@pytest.mark.slow
def test_large_known_effects_come_out(tmp_path):
    "What REFERENCE calls shown: sign and an interval that leaves out zero."
    known = ["better_than_scratch", "replay", "logit_adjustment", "rag_beats_fine_tuning"]
    claims = json.loads(cli(tmp_path, "claims", *known, "--profile", "fast", "--json", "--out", "out",
                            limit=1500).stdout)["claims"]
    for c in claims: assert c["verdict"] == "supported", (c["name"], c["contrasts"])
