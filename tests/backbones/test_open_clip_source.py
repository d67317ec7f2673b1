from __future__ import annotations

import json
import pickle

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from finelens.backbones import hub, open_clip_source
from finelens.backbones.open_clip_source import Source, build, find_local, find_tagged, settle_activation
from finelens.backbones.registry import load_backbone, rebuild_image_tower
from finelens.errors import UserError
from tests.backbones.checkpoints import write_tiny_vit


@pytest.fixture
def folder(tmp_path):
    return write_tiny_vit(tmp_path / "model")


def edit_config(folder, **changes):
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("spec", ["", "clip", "open_clip:", "local:", "timm:resnet50", "embedded:x"])
def test_unknown_form_lists_the_forms(spec):
    with pytest.raises(UserError, match=r"embedded, open_clip:NAME/TAG.*hf-hub:ORG/REPO.*local:DIR"):
        load_backbone(spec)


def test_unknown_saved_kind_is_named():
    with pytest.raises(UserError, match="'vgg'; known: embedded, open_clip_vit"):
        rebuild_image_tower({"kind": "vgg"}, {})


def test_unknown_name_and_tag_give_the_nearest():
    with pytest.raises(UserError, match="no model 'ViT-B32'; nearest: ViT-B-32"):
        load_backbone("open_clip:ViT-B32/openai")
    with pytest.raises(UserError, match="no pretrained tag 'openia'; nearest: openai"):
        load_backbone("open_clip:ViT-B-32/openia")
    with pytest.raises(UserError, match=r"no pretrained tag ''.*laion2b_s34b_b79k"):
        load_backbone("open_clip:ViT-B-32")


def no_network(*args, **kwargs):
    raise OSError("Name or service not known\nmore lines")


@pytest.mark.parametrize(("reachable", "reason"), [(True, "Name or service not known"), (False, "no model hub can be reached.*")])
def test_without_a_hub_the_message_names_the_remedies(monkeypatch, reachable, reason):
    monkeypatch.setattr(hub, "hub_reachable", lambda: reachable)
    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    monkeypatch.setattr(open_clip_source, "download_pretrained_from_hf", no_network)
    for spec in ("open_clip:ViT-B-32/openai", "hf-hub:org/model"):
        with pytest.raises(UserError, match=rf"\({reason}\).*local:DIR.*embedded") as caught:
            load_backbone(spec)
        assert spec in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unreachable_hub_fails_at_once_and_leaves_the_client_online(monkeypatch):
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub.socket, "create_connection", no_network)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    hub.hub_reachable.cache_clear()
    try:
        with pytest.raises(UserError, match=r"cannot be fetched.*local:DIR"):
            load_backbone("hf-hub:org/no-such-model")
        with hub.offline_if_unreachable():
            assert hub.constants.HF_HUB_OFFLINE
    finally:
        hub.hub_reachable.cache_clear()
    assert not hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(("name", "warned"), [("ViT-B-32", True), ("ViT-B-32-quickgelu", False)])
def test_quick_gelu_of_the_weights_wins_over_the_plain_architecture(monkeypatch, caplog, name, warned):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: "weights.safetensors")
    source = find_tagged(name, "metaclip_400m")
    assert source.model["quick_gelu"] is True
    assert ("corrected to QuickGELU" in caplog.text) is warned


def test_gelu_weights_under_a_quickgelu_name_are_refused():
    with pytest.raises(UserError, match="no pretrained tag 'laion2b_s34b_b79k'"):
        find_tagged("ViT-B-32-quickgelu", "laion2b_s34b_b79k")


def test_activation_is_never_settled_in_silence(caplog):
    assert settle_activation("x", True, False) is False
    assert "corrected to GELU" in caplog.text
    caplog.clear()
    assert settle_activation("x", True, None) is True
    assert "QuickGELU is kept" in caplog.text
    caplog.clear()
    assert settle_activation("x", False, None) is False
    assert settle_activation("x", True, True) is True
    assert caplog.text == ""


def serve(monkeypatch, folder, weights):
    files = {"open_clip_config.json": folder / "open_clip_config.json", None: folder / weights}
    monkeypatch.setattr(open_clip_source, "download_pretrained_from_hf", lambda repository, filename=None, revision=None: str(files[filename]))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: open_clip.SimpleTokenizer())


def test_hub_model_known_under_a_tag_gets_its_activation(monkeypatch, caplog, tmp_path):
    serve(monkeypatch, write_tiny_vit(tmp_path, quick_gelu=False), "open_clip_model.safetensors")
    backbone = load_backbone("hf-hub:timm/vit_base_patch32_clip_224.metaclip_400m")
    assert backbone.visual.config.quick_gelu is True
    assert "corrected to QuickGELU" in caplog.text


def test_hub_pickle_is_read_as_tensors_only(monkeypatch, caplog, folder):
    torch.save(load_file(folder / "open_clip_model.safetensors"), folder / "open_clip_pytorch_model.bin")
    serve(monkeypatch, folder, "open_clip_pytorch_model.bin")
    backbone = load_backbone("hf-hub:org/model")
    local = load_backbone(f"local:{folder}")
    assert all(torch.equal(value, local.image_state()[name]) for name, value in backbone.image_state().items())
    assert "open_clip_pytorch_model.bin is a pickle" in caplog.text


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_hub_pickle_with_code_is_refused_and_not_run(monkeypatch, folder, tmp_path):
    trace = tmp_path / "ran"
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps({"state_dict": Bomb(str(trace))}, protocol=2))
    serve(monkeypatch, folder, "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load"):
        load_backbone("hf-hub:org/model")
    assert not trace.exists()


@pytest.mark.parametrize("pickled", ["open_clip_pytorch_model.bin", "model.pt"])
def test_local_pickle_is_refused_with_the_remedy(folder, pickled):
    (folder / "open_clip_model.safetensors").rename(folder / pickled)
    with pytest.raises(UserError, match=rf"{pickled}: pickle checkpoints are refused.*save_file.*weights_only=True"):
        load_backbone(f"local:{folder}")


def test_local_folder_faults_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_backbone(f"local:{tmp_path / 'absent'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"open_clip_config\.json: no such file"):
        load_backbone(f"local:{tmp_path / 'empty'}")
    (folder / "open_clip_model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(UserError, match=r"no weights; expected one of open_clip_model\.safetensors"):
        load_backbone(f"local:{folder}")


@pytest.mark.parametrize("content", ["{", "[]", '{"model_cfg": {"embed_dim": 3}}', '{"vision_cfg": {}}'])
def test_unusable_configuration_is_named(folder, content):
    (folder / "open_clip_config.json").write_text(content)
    with pytest.raises(UserError, match=r"open_clip_config\.json: (not readable|model_cfg with)"):
        load_backbone(f"local:{folder}")


def test_unknown_configuration_key_is_named(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    edit_config(folder, model_cfg={**config, "vision_cfg": {**config["vision_cfg"], "depht": 3}})
    with pytest.raises(UserError, match=r"cannot be built.*depht"):
        load_backbone(f"local:{folder}")


@pytest.mark.parametrize("contradiction", [{"quick_gelu": False}, {"preprocess_cfg": {"quick_gelu": False}}])
def test_contradictory_local_activation_is_refused(folder, contradiction):
    edit_config(folder, **contradiction)
    with pytest.raises(UserError, match="contradictory activation"):
        load_backbone(f"local:{folder}")


def test_quickgelu_name_against_gelu_configuration_is_refused(tmp_path):
    folder = write_tiny_vit(tmp_path, quick_gelu=False)
    edit_config(folder, model_name="ViT-B-32-quickgelu")
    with pytest.raises(UserError, match="contradictory activation"):
        find_local(folder)


def test_damaged_and_foreign_weights_are_named(folder):
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot load .*open_clip_model\.safetensors"):
        load_backbone(f"local:{folder}")
    write_tiny_vit(folder.parent / "other", vision={"layers": 3})
    weights.write_bytes((folder.parent / "other" / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"cannot load .*open_clip_model\.safetensors"):
        load_backbone(f"local:{folder}")


def test_loading_leaves_the_root_logger_alone(folder):
    import logging

    handlers = list(logging.root.handlers)
    load_backbone(f"local:{folder}")
    assert logging.root.handlers == handlers


def test_coca_is_refused(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    edit_config(folder, model_cfg={**config, "multimodal_cfg": {}})
    with pytest.raises(UserError, match="CoCa"):
        load_backbone(f"local:{folder}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_cfg": None}, "a model for audio or captions"),
        ({"genlip_cfg": {"width": 64}}, "a model for audio or captions"),
        ({"vision_cfg": {"timm_model_name": "naflexvit_base_patch16_gap", "image_size": 256}}, "a different number of patches for each image"),
        ({"text_cfg": {"text_arch": "modern", "context_length": 64}}, "text_cfg.text_arch 'modern' is not supported"),
    ],
)
def test_what_open_clip_4_has_beside_clip_models_is_refused_by_its_kind(folder, changes, words):
    """As its configurations are; a version that does not know them must say the same."""
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model = {key: value for key, value in {**config, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=f"open_clip:NAME/TAG: .*{words}"):
        build(Source("open_clip:NAME/TAG", model, {}, folder / "open_clip_model.safetensors", f"local-dir:{folder}"))


def resized(folder, name, size):
    """The configuration says another length than the weights have; open_clip itself would interpolate."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][name].update(size)
    edit_config(folder, model_cfg=config["model_cfg"])
    return f"local:{folder}"


@pytest.mark.parametrize("length", [32, 78, 248])
@pytest.mark.parametrize("model", [{}, {"custom_text": True}])
def test_text_positions_that_do_not_fit_the_configuration_are_refused(tmp_path, length, model):
    folder = write_tiny_vit(tmp_path / "model", **model)
    with pytest.raises(UserError, match=rf"context_length is {length} and open_clip_model\.safetensors holds positions for 77 tokens; set .* 77"):
        load_backbone(resized(folder, "text_cfg", {"context_length": length}))


def test_another_context_length_than_clip_s_is_read(tmp_path):
    folder = write_tiny_vit(tmp_path / "model", text={"context_length": 32})
    assert load_backbone(f"local:{folder}").context_length == 32


def test_image_positions_that_are_interpolated_are_warned_of(folder, caplog):
    assert load_backbone(resized(folder, "vision_cfg", {"image_size": 96})).grid == (6, 6)
    assert "image positions for 37 tokens are interpolated from the 17 of the weights" in caplog.text
