"""Embedding of collections: order, batches, names in errors."""

import numpy as np
import pytest
import torch

from speechclip_plus import SpeechClipPlusModel, SpeechClipPlusProcessor
from speechclip_plus.modeling_speechclip_plus.embedding import (
    audio_batches,
    embed_audio,
    embed_images,
    embed_texts,
)
from speechclip_plus.trainer.tiny_backbones import tiny_backbone


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    folders = tiny_backbone("hubert"), tiny_backbone("clip")
    model = SpeechClipPlusModel.from_backbones(*folders, config="hybrid_plus-tiny")
    return model, SpeechClipPlusProcessor.from_backbones(*folders)


@pytest.fixture(scope="module")
def waveforms():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(length).astype("float32") * 0.1 for length in (9000, 4000, 12000, 4000, 7000)]


@pytest.mark.parametrize("branch", [None, "cascaded"])
def test_embeddings_are_in_order_and_those_of_each_item_alone(parts, waveforms, branch):
    model, processor = parts
    embeds = embed_audio(model, processor, waveforms, batch_size=2, branch=branch, sampling_rate=16_000)
    with torch.no_grad():
        alone = [
            model.get_audio_features(**processor(audio=w, sampling_rate=16_000), branch=branch) for w in waveforms
        ]
    torch.testing.assert_close(embeds, torch.cat([output.pooler_output for output in alone]), rtol=0, atol=2e-5)


def test_images_and_texts_are_embedded_in_order(parts):
    model, processor = parts
    images = [np.full((40, 50, 3), value, np.uint8) for value in (0, 90, 180)]
    texts = ["a red ball", "a blue square on the left of a green heart", "a star"]
    with torch.no_grad():
        image_embeds = model.get_image_features(**processor(images=images)).pooler_output
        text_embeds = model.get_text_features(**processor(text=texts)).pooler_output
    torch.testing.assert_close(embed_images(model, processor, images, batch_size=2), image_embeds)
    torch.testing.assert_close(embed_texts(model, processor, texts, batch_size=2), text_embeds)


def test_batches_hold_utterances_of_like_lengths(parts, waveforms):
    batches = list(audio_batches(*parts, waveforms, batch_size=2, sampling_rate=16_000))
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2, 3, 4]
    assert [batch.lengths for batch in batches] == [[4000, 4000], [7000, 9000], [12000]]
    assert all(batch.inputs["attention_mask"].sum(1).tolist() == batch.lengths for batch in batches)


def test_an_unreadable_item_is_named_or_left_out(parts, waveforms):
    items = [waveforms[0], b"no audio", waveforms[1]]
    with pytest.raises(ValueError, match="^recording 1"):
        embed_audio(*parts, items, sampling_rate=16_000, name="recording {}".format)
    errors = []
    batches = list(
        audio_batches(
            *parts, items, sampling_rate=16_000, on_error=lambda row, error: errors.append((row, str(error)))
        )
    )
    assert [batch.rows for batch in batches] == [[2, 0]]
    assert [row for row, _ in errors] == [1] and errors[0][1].startswith("audio of row 1")
