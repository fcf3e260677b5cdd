"""README's examples run as they stand."""

import re
import warnings

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel, SpeechClipPlusProcessor
from speechclip_plus.trainer.tiny_backbones import tiny_backbone


@pytest.fixture
def examples(repository_root):
    text = (repository_root / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A folder as `make quickstart` leaves it, with an untrained model, a recording and two images."""
    folder = tmp_path_factory.mktemp("quickstart")
    torch.manual_seed(0)
    model = SpeechClipPlusModel(SpeechClipPlusConfig.from_preset("hybrid_plus-tiny"))
    model.save_pretrained(folder / "quickstart" / "model")
    processor = SpeechClipPlusProcessor.from_backbones(tiny_backbone("hubert"), tiny_backbone("clip"))
    processor.save_pretrained(folder / "quickstart" / "model")
    soundfile.write(folder / "quickstart" / "query.wav", np.random.default_rng(0).normal(0, 0.1, 22_050), 22_050)
    for name in ("first.png", "second.png"):
        Image.new("RGB", (80, 60), "red").save(folder / "quickstart" / name)
    return folder


def test_the_first_example_compares_speech_and_images_and_prints_keywords(examples, quickstart, monkeypatch, capsys):
    monkeypatch.chdir(quickstart)
    names = {}
    exec(examples[0], names)
    assert names["scores"].shape == (1, 2)
    printed = re.findall(r"^(\d+\.\d\d)-(\d+\.\d\d) s  .*$", capsys.readouterr().out, re.MULTILINE)
    assert len(printed) == names["model"](**names["speech"]).keyword_lengths.item()
    assert float(printed[-1][1]) <= 1.0


def test_the_second_example_answers_by_pipelines(examples, quickstart, monkeypatch):
    monkeypatch.chdir(quickstart)
    names = {}
    exec(examples[1], names)
    images = ["quickstart/first.png", "quickstart/second.png"]
    found = names["searcher"]("quickstart/query.wav", candidate_images=images)
    assert sorted(answer["image"] for answer in found) == images
    keywords = names["extractor"]("quickstart/query.wav", return_timestamps=True)
    assert keywords and all(0 <= keyword["timestamp"][0] for keyword in keywords)


def test_the_third_example_trains_and_saves(examples, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shorter = examples[2].replace("max_steps=100", "max_steps=2, report_to='none'").replace("size=32", "size=8")
    shorter = shorter.replace("num_scenes=1000", "num_scenes=12").replace(
        '"validation")', '"validation", num_scenes=8)'
    )
    assert shorter.count("num_scenes") == 2 and "max_steps=2," in shorter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(shorter, {})
    assert 0 <= float(capsys.readouterr().out.strip().splitlines()[-1]) <= 100
    SpeechClipPlusModel.from_pretrained("my-model")
