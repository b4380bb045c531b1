"Every claim from its sentence to its verdict, and the control that verdicts depend on the data."
import json

import pytest

from tests.helpers import cli


def test_every_claim_runs(tmp_path):
    got = cli(tmp_path, "claims", "--profile", "smoke", "--json", "--out", "out", limit=900)
    assert got.returncode == 0, got.stderr
    claims = json.loads(got.stdout)["claims"]
    assert len(claims) >= 24
    for c in claims:
        assert c["verdict"] and c["n"] >= 2 and len(c["seeds"]) == c["n"], c["name"]
        for r in c["contrasts"]:
            assert r["n"] + r["n_failed"] == c["n"] and r["n_failed"] == 0 and (r["counted"] or r["p_holm"] is not None) and None not in r["ci95"], (c["name"], r)
        assert (tmp_path/"out"/f"{c['name']}.png").stat().st_size > 5000


@pytest.mark.slow
def test_with_shuffled_labels_nothing_comes_out(tmp_path):
    names = ["better_than_scratch", "learning_rate", "quality_over_quantity"]
    real, control = (json.loads(cli(tmp_path, "claims", *names, "--profile", "fast", "--json", "--out", f"out{len(more)}", *more, limit=900).stdout)["claims"] for more in ((), ("--shuffle-labels",)))
    assert real[0]["verdict"] == "supported"
    for a, b in zip(real, control):
        assert b["verdict"] not in ("supported", "partly supported"), f"{b['name']}: {b['contrasts']}"
    assert any(a["verdict"] != b["verdict"] for a, b in zip(real, control))


@pytest.mark.slow
def test_large_known_effects_come_out(tmp_path):
    "What REFERENCE calls shown: sign and an interval that leaves out zero."
    known = ["better_than_scratch", "replay", "logit_adjustment", "rag_beats_fine_tuning"]
    claims = json.loads(cli(tmp_path, "claims", *known, "--profile", "fast", "--json", "--out", "out", limit=1500).stdout)["claims"]
    for c in claims: assert c["verdict"] == "supported", (c["name"], c["contrasts"])
