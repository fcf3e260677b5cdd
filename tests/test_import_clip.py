"""open_clip models become `CLIPModel` folders that compute the same, or are refused with the reason."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from speechclip_plus import SpeechClipPlusModel
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus_cli import main as cli


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory):
    import open_clip

    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2}
    folder = tmp_path_factory.mktemp("architectures")
    for name, changes in {
        "tiny-gelu": {},
        "tiny-quickgelu": {"quick_gelu": True},
        "tiny-average": {"vision_cfg": {**vision, "pool_type": "avg"}},
        "tiny-large": {"vision_cfg": {**vision, "image_size": 48}},
        "tiny-wide": {"vision_cfg": {**vision, "image_size": [32, 48]}},
        "tiny-words": {"text_cfg": {**text, "vocab_size": 600}},
        "tiny-short": {"text_cfg": {**text, "context_length": 9}},
        "tiny-new": {"vision_cfg": {**vision, "surprise": 3}},
    }.items():
        config = {"embed_dim": 40, "vision_cfg": vision, "text_cfg": text, **changes}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return open_clip


@pytest.mark.parametrize("name", ["tiny-gelu", "tiny-quickgelu"])
def test_an_open_clip_model_becomes_a_backbone_that_computes_the_same(name, open_clip, tmp_path, capsys):
    torch.manual_seed(0)
    original = open_clip.create_model(name).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    assert cli.main(["import-clip", name, str(tmp_path / "weights.pt"), str(tmp_path / "out")]) == 0
    assert "a CLIPModel" in capsys.readouterr().out
    clip = CLIPModel.from_pretrained(tmp_path / "out").eval()
    pixels = torch.randn(2, 3, 32, 32)
    texts = ["a red dog", "two people at the sea"]
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(texts, padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(
            clip.get_image_features(pixel_values=pixels).pooler_output, original.encode_image(pixels)
        )
        torch.testing.assert_close(
            clip.get_text_features(input_ids=ids).pooler_output, original.encode_text(open_clip.tokenize(texts))
        )
    assert CLIPImageProcessor.from_pretrained(tmp_path / "out").crop_size["height"] == 32
    model = SpeechClipPlusModel.from_backbones(tiny_backbone("hubert"), tmp_path / "out", "parallel-tiny")
    assert model.get_image_features(pixels).pooler_output.shape == (2, 40)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "layers = [3, 4, 6, 3]"),
        ("convnext_base", "timm_model_name = 'convnext_base'"),
        ("xlm-roberta-base-ViT-B-32", "hf_model_name = 'xlm-roberta-base'"),
        ("coca_ViT-B-32", "multimodal_cfg"),
        ("ViT-B-16-SigLIP", "timm_model_name"),
        ("tiny-average", "pool_type = 'avg'"),
        ("tiny-new", "surprise = 3"),
        ("tiny-wide", "image_size = [32, 48]"),
        ("tiny-words", "vocab_size = 600"),
        ("ViT-B-33", "knows no architecture 'ViT-B-33'. Near to it: ViT-B-32"),
    ],
)
def test_other_architectures_are_refused_by_name_with_the_reason(name, reason, open_clip, tmp_path, capsys):
    (tmp_path / "weights.pt").write_bytes(b"")
    assert cli.main(["import-clip", name, str(tmp_path / "weights.pt"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert reason in error and name in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"])
@pytest.mark.parametrize("quick", ["", "-quickgelu"])
def test_the_published_plain_architectures_are_accepted(name, quick, open_clip):
    from speechclip_plus.conversion.open_clip import _check_plain

    config = open_clip.get_model_config(name + quick)
    if config is not None:  # not all come with quick GELU
        _check_plain(name + quick, config)


def test_weights_that_are_not_there_are_an_error_that_lists_those_that_are(open_clip, tmp_path, capsys):
    assert cli.main(["import-clip", "ViT-B-32", "nonsense", str(tmp_path / "out")]) == 1
    assert "neither a file nor one of open_clip's weights for ViT-B-32: " in capsys.readouterr().err


def test_files_that_are_no_weights_of_the_architecture_are_an_error_that_says_so(open_clip, tmp_path, capsys):
    state = open_clip.create_model("tiny-gelu").state_dict()
    torch.save(state, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello")
    torch.save({}, tmp_path / "nothing")
    torch.save([1], tmp_path / "list")
    torch.save({name: value for name, value in state.items() if name != "ln_final.bias"}, tmp_path / "missing")
    torch.save(open_clip.create_model("tiny-large").state_dict(), tmp_path / "large")
    torch.save(open_clip.create_model("tiny-short").state_dict(), tmp_path / "short")
    torch.save({**state, "more": print}, tmp_path / "code")
    reasons = {"missing": "ln_final.bias", "large": "has 10 places, the architecture 5", "code": "print"}
    reasons["short"] = "positional_embedding has 9 places, the architecture 77"
    capsys.readouterr()
    for name in ("cut", "empty", "text", "nothing", "list", *reasons):
        assert cli.main(["import-clip", "tiny-gelu", str(tmp_path / name), str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {tmp_path / name} could not be loaded as weights of tiny-gelu")
        assert reasons.get(name, "") in error and len(error) < 600
        assert not (tmp_path / "out").exists()
    assert cli.main(["import-clip", "tiny-short", str(tmp_path / "short"), str(tmp_path / "out")]) == 0


def test_force_replaces_an_earlier_import_and_nothing_else(open_clip, tmp_path, assert_replaces_only_its_own_output):
    weights = tmp_path / "weights" / "weights.pt"
    weights.parent.mkdir()
    torch.save(open_clip.create_model("tiny-gelu").state_dict(), weights)
    assert_replaces_only_its_own_output(
        lambda folder: cli.main(["import-clip", "tiny-gelu", str(weights), str(folder), "--force"]),
        [weights],
    )


def test_images_are_resized_as_the_weights_were_trained(open_clip):
    from speechclip_plus.conversion.open_clip import _image_processor

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8))
    for mode in ("shortest", "squash"):
        wanted = {"resize_mode": mode, "interpolation": "bicubic"}
        model, _, transform = open_clip.create_model_and_transforms(
            "tiny-gelu", image_resize_mode=mode, image_interpolation="bicubic"
        )
        assert model.visual.preprocess_cfg.items() >= wanted.items()
        theirs = transform(image)
        ours = _image_processor(model, 32)(image, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05)
