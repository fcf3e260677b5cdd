"""Collating rows of speech-image pairs."""

import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from speechclip_plus.trainer.collator import SpeechImageCollator


def flac(samples):
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="FLAC")
    return file.getvalue()


def make_row(number, samples=4000, **columns):
    generator = np.random.default_rng(number)
    image = io.BytesIO()
    Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(image, format="PNG")
    return {
        "audio": {"bytes": flac(generator.uniform(-0.5, 0.5, samples)), "path": "a.flac"},
        "image": {"bytes": image.getvalue(), "path": "a.png"},
        "image_id": number,
        "text": "red dog",
        "caption_id": f"caption-{number}",
        **columns,
    }


def test_a_batch_has_padded_speech_pictures_ids_and_captions(tiny_processor):
    batch = SpeechImageCollator(tiny_processor).for_evaluation()([make_row(5, 4000), make_row(9, 6000, text="dog")])
    assert batch.pop("return_loss") is True
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_values": (2, 6000),
        "attention_mask": (2, 6000),
        "pixel_values": (2, 3, 32, 32),
        "image_ids": (2,),
        "gold_subwords": (2, 2),
    }
    assert batch["attention_mask"].sum(1).tolist() == [4000, 6000]
    assert batch["image_ids"].tolist() == [5, 9]
    red, dog = tiny_processor.tokenizer("red dog", add_special_tokens=False)["input_ids"]
    assert batch["gold_subwords"].tolist() == [[red, dog], [dog, -1]]


def test_a_row_without_a_caption_has_no_gold_subword(tiny_processor):
    batch = SpeechImageCollator(tiny_processor).for_evaluation()(
        [make_row(0), make_row(1, text=None), make_row(2, text="")]
    )
    assert (batch["gold_subwords"] >= 0).any(1).tolist() == [True, False, False]


def test_computed_features_replace_speech_and_images(tiny_processor):
    states = [torch.randn(3, frames, 4).half() for frames in (2, 5)]
    rows = [{"speech_hidden_states": state, "image_embeds": torch.ones(6), "image_id": 1} for state in states]
    batch = SpeechImageCollator(tiny_processor)(rows)
    assert batch["speech_hidden_states"].shape == (2, 3, 5, 4)
    assert batch["speech_hidden_states"].dtype == torch.float16  # as they are stored
    assert batch["frame_lengths"].tolist() == [2, 5]
    assert torch.equal(batch["speech_hidden_states"][0, :, :2], states[0])
    assert batch["speech_hidden_states"][0, :, 2:].eq(0).all()
    assert batch["image_embeds"].shape == (2, 6)
    assert "input_values" not in batch and "pixel_values" not in batch


def ramp_row():
    """Audio whose values tell the place that they came from."""
    return make_row(0, audio={"array": np.linspace(0, 1, 10_000, dtype=np.float32), "sampling_rate": 16_000})


def test_evaluation_never_crops(tiny_processor):
    batch = SpeechImageCollator(tiny_processor)([ramp_row()])
    assert batch["input_values"].shape == (1, 10_000)


def test_training_crops_elsewhere_in_every_epoch_and_the_same_in_the_same_one(tiny_processor):
    collator = SpeechImageCollator(tiny_processor).for_training(max_audio_samples=1000, seed=0)
    crops = []
    for epoch in (0, 1, 2, 0):
        collator.set_epoch(epoch)
        crops.append(collator([ramp_row()])["input_values"][0])
    assert all(len(crop) == 1000 for crop in crops)
    starts = [crop[0].item() for crop in crops]
    assert len({round(start, 4) for start in starts[:3]}) == 3
    assert torch.equal(crops[0], crops[3])


def test_the_crop_depends_on_the_seed(tiny_processor):
    first, second = (
        SpeechImageCollator(tiny_processor).for_training(1000, seed)([ramp_row()])["input_values"] for seed in (0, 1)
    )
    assert not torch.equal(first, second)


def test_an_utterance_that_is_short_enough_is_not_cropped(tiny_processor):
    collator = SpeechImageCollator(tiny_processor).for_training(max_audio_samples=10_000, seed=0)
    assert collator([ramp_row()])["input_values"].shape == (1, 10_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": {"bytes": b"no audio", "path": None}}, "audio of caption_id caption-7.*cannot be read as audio"),
        ({"audio": {"bytes": flac(np.zeros(100)), "path": None}}, "caption-7.*too short"),
        ({"image": {"bytes": b"no image", "path": None}}, "image of caption_id caption-7"),
        ({"audio": None}, "caption-7 has no `audio`"),
        ({"image_id": None}, "caption-7 has the image_id None; expected a whole number"),
        ({"image_id": "7.jpg"}, "expected a whole number"),
    ],
)
def test_a_bad_row_is_named(tiny_processor, change, message):
    with pytest.raises(ValueError, match=message):
        SpeechImageCollator(tiny_processor)([make_row(3), make_row(7, **change)])
