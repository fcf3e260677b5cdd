"""Localization of a query in speech, by the model and by the pipeline."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import pipeline

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel, SpeechClipPlusProcessor
from speechclip_plus.trainer.tiny_backbones import tiny_backbone

VARIANTS = ["parallel", "cascaded", "cascaded_plus", "hybrid", "hybrid_plus"]


def make_model(variant):
    torch.manual_seed(0)
    return SpeechClipPlusModel(SpeechClipPlusConfig.from_preset(f"{variant}-tiny")).eval()


def make_speech(lengths):
    waveforms = torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_values": waveforms * mask, "attention_mask": mask.long()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stretch_of_an_utterance_is_found_by_its_own_embedding(variant):
    model = make_model(variant)
    states, frames = model.encode_speech_frames(**make_speech([32_000]))
    stretch = {"speech_hidden_states": states[:, :, 60:74], "frame_lengths": torch.tensor([14])}
    found = model.localize(
        model.get_audio_features(**stretch).pooler_output, speech_hidden_states=states, frame_lengths=frames
    )[0]
    assert found.scores.shape == (int(frames),)
    assert 60 <= int(found.scores.argmax()) < 74
    assert found.start <= 0.02 * int(found.scores.argmax()) < found.end


@pytest.mark.parametrize("variant", ["parallel", "hybrid_plus"])
def test_scores_are_the_same_alone_beside_a_longer_utterance_and_in_training_mode(variant):
    model = make_model(variant)
    query, speech = torch.randn(1, model.config.projection_dim), make_speech([30_000, 9_000])
    together = model.localize(query, **speech)
    alone = model.localize(query, speech["input_values"][1:, :9_000])[0]
    assert_close(together[1].scores, alone.scores, atol=1e-5, rtol=0)
    assert (together[1].start, together[1].end) == (alone.start, alone.end)
    assert_close(model.train().localize(query, **speech)[0].scores, together[0].scores)
    assert model.training


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (torch.randn(3, 128), {}, r"query_embeds must have the shape \(1, 128\) or \(2, 128\)"),
        (torch.randn(1, 128), {"window_s": 0.01}, "shorter than a frame"),
        (torch.randn(1, 128), {"branch": "cascaded"}, "no 'cascaded' branch"),
    ],
)
def test_what_cannot_be_localized_is_said(query, options, message):
    with pytest.raises(ValueError, match=message):
        make_model("parallel").localize(query, **make_speech([8_000, 8_000]), **options)


def test_the_pipeline_localizes_texts_images_and_speech_also_in_batches_and_windows():
    processor = SpeechClipPlusProcessor.from_backbones(tiny_backbone("hubert"), tiny_backbone("clip"))
    model = make_model("hybrid_plus")
    localizer = pipeline("speech-localization", model=model, processor=processor)
    generator = np.random.default_rng(0)
    long, short = (generator.normal(0, 0.1, size).astype(np.float32) for size in (80_000, 20_000))
    answer = localizer(short, query_text="a red star")
    inputs = processor(audio=short, sampling_rate=16_000, text=["a red star"], return_tensors="pt")
    embeds = model.get_text_features(inputs["input_ids"]).pooler_output
    found = model.localize(embeds, inputs["input_values"])[0]
    assert answer["scores"] == pytest.approx(found.scores.tolist(), abs=1e-5)
    assert answer["timestamp"] == pytest.approx((found.start, found.end))
    assert answer["score"] == max(answer["scores"])
    for query in ({"query_image": np.zeros((64, 64, 3), np.uint8)}, {"query_audio": short}):
        one, other = localizer([long, short], batch_size=2, **query)
        assert other["scores"] == pytest.approx(localizer(short, **query)["scores"], abs=1e-5)
        windowed = localizer(long, chunk_length_s=2.0, **query)
        assert len(windowed["scores"]) == len(one["scores"]) > 200
    calls = []
    hook = model.clip.text_model.register_forward_hook(lambda *_: calls.append(1))
    localizer(long, query_text="a red star", chunk_length_s=2.0)
    hook.remove()
    assert len(calls) == 1
    with pytest.raises(ValueError, match="give query_text=, query_image= or query_audio="):
        localizer(short)
