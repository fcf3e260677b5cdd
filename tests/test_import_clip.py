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
        "tiny-resnet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}},
        "tiny-timm": {"vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "", "image_size": 32}},
        "tiny-coca": {
            "custom_text": True,
            "multimodal_cfg": {**text, "width": 40, "heads": 4, "layers": 1, "mlp_ratio": 4},
        },
        "tiny-wide": {"vision_cfg": {**vision, "image_size": [32, 48]}},
        "tiny-words": {"text_cfg": {**text, "vocab_size": 600}},
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
        ("tiny-resnet", "not a plain vision transformer"),
        ("tiny-timm", "not a plain vision transformer"),
        ("tiny-average", "computes something else: outputs differ by up to"),
        ("tiny-wide", "not a plain vision transformer"),
        ("tiny-words", "has 600 tokens and not CLIP's 49408"),
        ("tiny-coca", "not a plain vision transformer"),
    ],
)
def test_other_architectures_are_refused_by_name_with_the_reason(name, reason, open_clip, tmp_path, capsys):
    torch.save(open_clip.create_model(name).state_dict(), tmp_path / "weights.pt")
    capsys.readouterr()
    assert cli.main(["import-clip", name, str(tmp_path / "weights.pt"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert reason in error and name in error and len(error) < 600
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14", "ViT-H-14-quickgelu", "ViT-g-14", "ViT-bigG-14"])
def test_the_published_plain_architectures_get_their_sizes(name, open_clip):
    from speechclip_plus.conversion.open_clip import _convert

    with torch.device("meta"):
        clip = _convert(open_clip.create_model(name, device="meta", load_weights=False)).config
    config = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    heads = vision["width"] // vision.get("head_width", 64)
    assert (clip.vision_config.num_attention_heads, clip.text_config.num_attention_heads) == (heads, text["heads"])
    assert (clip.vision_config.image_size, clip.vision_config.patch_size) == (224, vision["patch_size"])
    assert (clip.vision_config.num_hidden_layers, clip.projection_dim) == (vision["layers"], config["embed_dim"])
    assert clip.vision_config.intermediate_size == int(vision["width"] * vision.get("mlp_ratio", 4))
    assert clip.text_config.hidden_act == ("quick_gelu" if "quickgelu" in name else "gelu")


def test_weights_that_are_not_there_are_an_error_that_names_them(open_clip, tmp_path, capsys):
    assert cli.main(["import-clip", "ViT-B-32", "nonsense", str(tmp_path / "out")]) == 1
    assert "'nonsense' is not a known tag or valid file path" in capsys.readouterr().err


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
    torch.save({**state, "more": print}, tmp_path / "code")
    reasons = {"missing": "ln_final.bias", "code": "print"}
    capsys.readouterr()
    for name in ("cut", "empty", "text", "nothing", "list", *reasons):
        assert cli.main(["import-clip", "tiny-gelu", str(tmp_path / name), str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {tmp_path / name} could not be loaded as weights of tiny-gelu")
        assert reasons.get(name, "") in error and len(error) < 600
        assert not (tmp_path / "out").exists()


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
