"The hub's loading code against a small server on this machine that answers as the hub does."
import pytest
from safetensors.torch import save

from finetune_nb.models.architecture import create_model
from tests.helpers import hub as serve, with_hub

NAME = "resnet10t"


@pytest.fixture
def hub():
    with serve(f"timm/{NAME}.c3_in1k", {"model.safetensors": save(create_model(NAME, num_classes=1000).state_dict())}) as found: yield found


def load(tmp, endpoint, offline="auto"):
    return with_hub(tmp, endpoint, f"from finetune_nb.all import load_pretrained, FinetuneError\n"
            f"try: m = load_pretrained('{NAME}', 3, offline='{offline}'); print(m.fc.out_features, m.layer1[0].conv1.weight.abs().sum().item() > 0)\n"
            f"except FinetuneError as e: print('refused:', e)")


def test_weights_come_from_the_hub_once_then_from_its_cache(tmp_path, hub):
    endpoint, asked = hub
    assert load(tmp_path, endpoint) == "3 True"
    assert any(p.endswith("model.safetensors") for p in asked) and not any(p.endswith((".bin", ".pth")) for p in asked)
    before = len(asked)
    assert load(tmp_path, endpoint, offline="yes") == "3 True"
    assert len(asked) == before, "offline = yes asked the network"


def test_unreachable_hub_is_one_line(tmp_path):
    line = load(tmp_path, "http://127.0.0.1:9")
    assert line.startswith("refused: cannot get the weights of 'resnet10t' from the hub") and "\n" not in line and "glyph_resnet" in line


def test_offline_without_cache_is_one_line(tmp_path):
    assert "offline = yes and not in the local cache" in load(tmp_path, "http://127.0.0.1:9", offline="yes")


def test_its_own_classifier_comes_along_if_asked(tmp_path, hub):
    endpoint, _ = hub
    code = f"from finetune_nb.all import load_pretrained\nm = load_pretrained('{NAME}', None); print(m.fc.out_features, m.fc.weight.abs().sum().item() > 0)"
    assert with_hub(tmp_path, endpoint, code) == "1000 True"


def test_listing_and_describing_ask_nobody_and_see_the_cache(tmp_path, hub):
    endpoint, asked = hub
    load(tmp_path, endpoint)
    before = len(asked)
    code = ("from finetune_nb.models.catalogue import describe_model, list_models\n"
            f"t = list_models('*resnet10t*').set_index('name'); print(bool(t.here['{NAME}.c3_in1k']), bool(t.here.drop('{NAME}.c3_in1k').any()))\n"
            "print(len(list_models('*bert*')) >= 4, describe_model('openai-community/gpt2').parameters > 1e8)")
    assert with_hub(tmp_path, endpoint, code).split() == ["True", "False", "True", "True"]
    assert len(asked) == before, "listing asked the network"
