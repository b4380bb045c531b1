"The hub's loading code against a small server on this machine that answers as the hub does."
import pytest
from safetensors.torch import save

from finetune_nb.models.architecture import create_model
from tests.helpers import hub as serve, with_hub

NAME = "resnet10t"


# Processes that import the libraries are what these tests cost: what one of them has fetched serves several tests.
@pytest.fixture(scope="module")
def hub():
    weights = save(create_model(NAME, num_classes=1000).state_dict())
    with serve(f"timm/{NAME}.c3_in1k", {"model.safetensors": weights}) as found: yield found


def load(tmp, endpoint, *offline):
    "A line for each way of loading."
    return with_hub(tmp, endpoint, f"from finetune_nb.all import load_pretrained, FinetuneError\n"
            f"for offline in {offline or ('auto',)}:\n"
            "    try:\n"
            f"        m = load_pretrained('{NAME}', 3, offline=offline)\n"
            "        print(m.fc.out_features, m.layer1[0].conv1.weight.abs().sum().item() > 0)\n"
            f"    except FinetuneError as e: print('refused:', e)").split("\n")


@pytest.fixture(scope="module")
def filled(hub, tmp_path_factory):
    "(folder with a filled cache, what the first loading printed, what it asked for)"
    tmp = tmp_path_factory.mktemp("filled")
    return tmp, load(tmp, hub[0]), list(hub[1])


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory):
    return load(tmp_path_factory.mktemp("unreachable"), "http://127.0.0.1:9", "auto", "yes")


def test_weights_come_from_the_hub_once_then_from_its_cache(hub, filled):
    (endpoint, asked), (tmp, first, fetched) = hub, filled
    assert first == ["3 True"]
    assert any(p.endswith("model.safetensors") for p in fetched)
    assert not any(p.endswith((".bin", ".pth")) for p in fetched)
    before = len(asked)
    assert load(tmp, endpoint, "yes") == ["3 True"]
    assert len(asked) == before, "offline = yes asked the network"


def test_unreachable_hub_is_one_line(unreachable):
    assert len(unreachable) == 2, "more than one line for each of the two ways"
    assert unreachable[0].startswith("refused: cannot get the weights of 'resnet10t' from the hub")
    assert "glyph_resnet" in unreachable[0]


def test_offline_without_cache_is_one_line(unreachable):
    assert "offline = yes and not in the local cache" in unreachable[1]


def test_its_own_classifier_comes_along_if_asked(tmp_path, hub):
    endpoint, _ = hub
    code = (f"from finetune_nb.all import load_pretrained\nm = load_pretrained('{NAME}', None)\n"
            "print(m.fc.out_features, m.fc.weight.abs().sum().item() > 0)")
    assert with_hub(tmp_path, endpoint, code) == "1000 True"


def test_listing_and_describing_ask_nobody_and_see_the_cache(hub, filled):
    (endpoint, asked), (tmp, *_) = hub, filled
    before = len(asked)
    code = ("from finetune_nb.models.catalogue import describe_model, list_models\n"
            f"here, name = list_models('*resnet10t*').set_index('name').here, '{NAME}.c3_in1k'\n"
            "print(bool(here[name]), bool(here.drop(name).any()))\n"
            "print(len(list_models('*bert*')) >= 4, describe_model('openai-community/gpt2').parameters > 1e8)")
    assert with_hub(tmp, endpoint, code).split() == ["True", "False", "True", "True"]
    assert len(asked) == before, "listing asked the network"
