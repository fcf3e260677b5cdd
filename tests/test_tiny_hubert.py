"""The tiny HuBERT that ships, and the script that trains it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import speech_pool
import torch
import train_hubert
from transformers import AutoFeatureExtractor, AutoModel

from speechclip_plus.trainer.spoken_scenes import espeak
from speechclip_plus.trainer.spoken_scenes.scenes import sample_scenes
from speechclip_plus.trainer.tiny_backbones import tiny_backbone

SENTENCES = (
    "a small blue square is under a big pink heart",
    "on the grass there is a little red ring right of a moon",
)


@pytest.fixture(scope="module")
def hubert():
    return AutoModel.from_pretrained(tiny_backbone("hubert"), dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def extractor():
    return AutoFeatureExtractor.from_pretrained(tiny_backbone("hubert"), local_files_only=True)


@pytest.fixture(scope="module")
def pretraining_model():
    torch.manual_seed(0)
    return train_hubert.PretrainingModel(phonemes=10, words=20).eval()


def frames_of(model, samples: int) -> int:
    for kernel, stride in zip(model.config.conv_kernel, model.config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def test_the_weights_and_their_card_fit_into_five_megabytes():
    folder = Path(tiny_backbone("hubert"))
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5_000_000


def test_a_frame_is_320_samples_and_400_samples_are_enough_for_one(hubert):
    assert np.prod(hubert.config.conv_stride) == 320
    for samples, frames in ((400, 1), (16_000, 49), (48_123, 150)):
        output = hubert(torch.randn(1, samples), output_hidden_states=True)
        assert output.last_hidden_state.shape == (1, frames, hubert.config.hidden_size)
        assert frames == frames_of(hubert, samples)
        assert len(output.hidden_states) == hubert.config.num_hidden_layers + 1


def test_nothing_random_is_left_in_the_shipped_configuration(hubert):
    hubert.train()
    try:
        waveform = torch.randn(1, 16_000)
        first, second = (hubert(waveform).last_hidden_state for _ in range(2))
    finally:
        hubert.eval()
    torch.testing.assert_close(first, second)


@torch.no_grad()
def test_the_same_sentence_in_two_unheard_voices_is_closer_than_two_sentences(hubert, extractor):
    voices = [espeak.Voice("en-us+f2", speed=160), espeak.Voice("en-gb+m3", speed=195, pitch=35)]
    pooled = []
    for voice in voices:
        for sentence in SENTENCES:
            assert voice.name in espeak.TEST_VOICES
            inputs = extractor(espeak.synthesise(sentence, voice), sampling_rate=16_000, return_tensors="pt")
            pooled.append(hubert(inputs["input_values"]).last_hidden_state.mean(1)[0])
    vectors = torch.nn.functional.normalize(torch.stack(pooled), dim=-1)
    similarity = vectors @ vectors.T
    same = torch.stack([similarity[0, 2], similarity[1, 3]])
    different = torch.stack([similarity[0, 1], similarity[2, 3], similarity[0, 3], similarity[1, 2]])
    assert same.min() > different.max()


@torch.no_grad()
def test_training_sees_what_transformers_computes(pretraining_model):
    waveform = torch.randn(1, 20_000)
    ours, _ = pretraining_model.encode(waveform, torch.tensor([20_000]))
    theirs = pretraining_model.hubert_as_shipped()(waveform, output_hidden_states=True).hidden_states
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_training_does_not_see_the_padding(pretraining_model):
    waveforms = torch.randn(2, 24_000)
    waveforms[1, 11_000:] = 0
    batched, valid = pretraining_model.encode(waveforms, torch.tensor([24_000, 11_000]))
    alone, _ = pretraining_model.encode(waveforms[1:, :11_000], torch.tensor([11_000]))
    frames = int(valid[1].sum())
    assert frames == alone[-1].shape[1]
    torch.testing.assert_close(batched[-1][1, :frames], alone[-1][0], rtol=1e-4, atol=1e-4)


def test_look_alike_scenes_differ_and_stay_in_the_training_split():
    rng = np.random.default_rng(0)
    for scene in sample_scenes("train", 20, seed=3):
        scenes = speech_pool.look_alikes(scene, rng)
        assert scenes[0] == scene
        assert len({found.content for found in scenes}) == len(scenes) <= speech_pool.GROUP_SCENES
        assert {found.split for found in scenes} == {"train"}
    assert len(scenes) > 1


def test_labels_follow_the_speech_through_a_change_of_speed():
    utterance = speech_pool.speak("red square below blue heart", espeak.Voice("en-us+m1", speed=150))
    words = speech_pool.word_vocabulary()
    maker = train_hubert.BatchMaker(sorted(set(utterance.phonemes)), words, seed=0)
    batch = maker.make([utterance], augment=True)
    order = [words[i] for i in dict.fromkeys(batch.words[0].tolist()) if i >= 0]
    assert order == ["red", "square", "below", "blue", "heart"]
    middle = int((batch.words[0] == words.index("below")).nonzero()[0])
    around = [words[i] if i < len(words) else "" for i in batch.context[0, middle].tolist()]
    assert around == ["", "red", "square", "below", "blue", "heart", ""]
    share = (batch.words[0] == words.index("square")).sum() / (batch.words[0] >= 0).sum()
    start, end = utterance.word_starts[1:3]
    assert share == pytest.approx((end - start) / (len(utterance.samples) / 16_000), abs=0.05)


def test_the_script_writes_a_folder_that_loads(tmp_path):
    command = [
        *(sys.executable, "-c"),
        f"import sys; sys.path[:0] = {sys.path!r}; from train_hubert import main; main()",
        *(str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--groups", "1", "--others", "2"),
        *("--steps", "2", "--threads", "1"),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    model = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model(torch.randn(1, 1600)).last_hidden_state.isfinite().all()
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["do_normalize"] is True
