"Real photographs and real ImageNet weights, where they are present beside the repository."
import json
from pathlib import Path

import pytest

from tests.helpers import ROOT, cli

DATA = ROOT.parent/"shared"/"data"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data here")]


def test_imagenet_weights_on_sign_digits(tmp_path):
    done = cli(tmp_path, "compare", DATA/"sign_digits", "--model", "mobilenetv2_100", "--weights", DATA/"weights"/"mobilenetv2_100_torch.safetensors", "--size", 128,
               "--labels", "all", "--recipes", "linear_probe,full", "--seeds", 2, "--profile", "fast", "--json", FINETUNE_NB_WORKERS="2")
    assert done.returncode == 0, done.stderr
    arms = {a["recipe"]: a for a in json.loads(done.stdout)["arms"]}
    assert arms["full"]["mean"] > .88, "fine-tuning should end well above a linear probe's 0.83"
