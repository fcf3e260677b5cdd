"""The processor: what it accepts, what it makes of it, and what it says about what it cannot use."""

import io
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import (
    AutoFeatureExtractor,
    ClapFeatureExtractor,
    CLIPImageProcessor,
    Wav2Vec2FeatureExtractor,
)

from speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor

RATE = 16_000


def tone(rate: int = RATE, seconds: float = 0.1, frequency: float = 440.0) -> np.ndarray:
    """Return a sine of amplitude 0.5, float32, (rate * seconds,)."""
    time = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, format: str = "WAV", **options) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, **options)
    return buffer.getvalue()


def png(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def waveform(processor, item, **kwargs) -> np.ndarray:
    return processor(audio=item, **kwargs)["input_values"][0].numpy()


def pixel(processor, item) -> list[int]:
    """Return the colour (0..255) of the middle pixel after processing without CLIP's own normalisation."""
    values = processor(images=item, images_kwargs={"do_normalize": False})["pixel_values"]
    return (values[0, :, 16, 16] * 255).round().int().tolist()


@pytest.fixture(scope="module")
def normalizing_processor(tiny_processor):
    return SpeechClipPlusProcessor(
        Wav2Vec2FeatureExtractor(do_normalize=True), tiny_processor.image_processor, tiny_processor.tokenizer
    )


# Audio: what goes in


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x,
        lambda x: x.astype(np.float64),
        lambda x: x.tolist(),
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).requires_grad_(),
        lambda x: {"array": x, "sampling_rate": RATE},
        lambda x: {"array": x},
        lambda x: {"bytes": encoded(x, subtype="FLOAT"), "path": None},
        lambda x: encoded(x, subtype="FLOAT"),
        lambda x: bytearray(encoded(x, subtype="FLOAT")),
        lambda x: io.BytesIO(encoded(x, subtype="FLOAT")),
    ],
    ids="array float64 list tensor grad-tensor array-dict rateless-dict bytes-dict bytes bytearray file".split(),
)
def test_every_form_of_the_same_audio_gives_the_same_values(tiny_processor, convert):
    given = tone()
    np.testing.assert_allclose(waveform(tiny_processor, convert(given), sampling_rate=RATE), given, atol=1e-6)


@pytest.mark.parametrize("as_path", [str, lambda path: path, lambda path: {"bytes": None, "path": str(path)}])
def test_a_path_is_read_at_its_own_rate_whatever_rate_is_given_for_arrays(tiny_processor, tmp_path, as_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tone(8_000), 8_000, subtype="FLOAT"))
    values = tiny_processor(audio=[as_path(path), tone(48_000)], sampling_rate=48_000)["input_values"]
    assert values.shape == (2, 1_600)


@pytest.mark.parametrize("format, tolerance", [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.05), ("MP3", 0.05)])
def test_common_file_formats_are_decoded(tiny_processor, format, tolerance):
    given = tone(seconds=0.5)
    values = waveform(tiny_processor, encoded(given, format=format))
    middle = slice(2_000, 6_000)  # lossy codecs smear the ends
    assert values.shape == given.shape
    assert np.abs(values[middle] - given[middle]).max() < tolerance


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_any_sampling_rate_becomes_the_same_tone_at_16_khz(tiny_processor, rate):
    values = waveform(tiny_processor, tone(rate, seconds=0.5), sampling_rate=rate)
    middle = slice(1_000, 7_000)
    assert abs(len(values) - 8_000) <= 1  # half a second of 11,025 Hz is no whole number of samples
    assert np.abs(values[middle] - tone(seconds=0.5)[middle]).max() < 2e-3


def test_resampling_removes_what_16_khz_cannot_hold_instead_of_folding_it_down(tiny_processor):
    values = waveform(tiny_processor, tone(48_000, 0.5, frequency=12_000), sampling_rate=48_000)
    assert np.abs(values[1_000:7_000]).max() < 1e-3


@pytest.mark.parametrize("layout", [lambda left, right: np.stack([left, right]), lambda *both: np.stack(both, 1)])
def test_channels_are_averaged_in_either_layout(tiny_processor, layout):
    values = waveform(tiny_processor, layout(tone(), 3 * tone()), sampling_rate=RATE)
    np.testing.assert_allclose(values, 2 * tone(), atol=1e-6)


def test_a_stereo_file_is_averaged(tiny_processor):
    values = waveform(tiny_processor, encoded(np.stack([tone(), 0 * tone()], 1), subtype="FLOAT"))
    np.testing.assert_allclose(values, tone() / 2, atol=1e-6)


@pytest.mark.parametrize(
    "dtype, low, middle, high",
    [
        (np.int8, -128, 0, 64),
        (np.int16, -32_768, 0, 16_384),
        (np.int32, -(2**31), 0, 2**30),
        (np.uint8, 0, 128, 192),
        (np.uint16, 0, 32_768, 49_152),
    ],
)
def test_integer_samples_are_scaled_by_their_width(tiny_processor, dtype, low, middle, high):
    values = waveform(tiny_processor, np.array([low, middle, high] * 200, dtype=dtype), sampling_rate=RATE)
    assert values[:3].tolist() == [-1.0, 0.0, 0.5]


def test_an_array_of_int16_equals_the_wav_file_with_the_same_samples(tiny_processor):
    samples = (tone() * 32_767).astype(np.int16)
    np.testing.assert_array_equal(
        waveform(tiny_processor, samples, sampling_rate=RATE), waveform(tiny_processor, encoded(samples))
    )


# Audio: padding, mask, normalisation


def test_a_batch_is_padded_with_zeros_on_the_right_under_a_mask(tiny_processor):
    batch = tiny_processor(audio=[tone(seconds=0.05), tone(seconds=0.1)], sampling_rate=RATE)
    assert batch["input_values"].dtype == torch.float32 and batch["attention_mask"].dtype == torch.int64
    assert batch["attention_mask"].sum(-1).tolist() == [800, 1_600]
    assert batch["attention_mask"][0].tolist() == [1] * 800 + [0] * 800
    assert not batch["input_values"][0, 800:].any()


def test_without_normalisation_the_samples_stay_as_they_are(tiny_processor):
    loud = 3 * tone() + 0.1
    np.testing.assert_allclose(waveform(tiny_processor, loud, sampling_rate=RATE), loud, atol=1e-6)


def test_normalisation_is_over_the_utterance_and_not_its_padding(normalizing_processor):
    short, long = tone(seconds=0.05) + 0.3, tone(seconds=0.2)
    batch = normalizing_processor(audio=[short, long], sampling_rate=RATE)
    alone = normalizing_processor(audio=short, sampling_rate=RATE)["input_values"][0]
    torch.testing.assert_close(batch["input_values"][0, :800], alone)
    assert abs(float(alone.mean())) < 1e-5 and abs(float(alone.std()) - 1) < 1e-2
    assert not batch["input_values"][0, 800:].any()


@pytest.mark.parametrize("level", [0.0, 0.7])
def test_a_constant_waveform_is_normalised_to_silence(normalizing_processor, level):
    values = waveform(normalizing_processor, np.full(1_000, level, np.float32), sampling_rate=RATE)
    assert np.abs(values).max() < 1e-2


@pytest.mark.parametrize("kind", ["audio_kwargs", "plain"])
def test_the_sampling_rate_may_be_given_plain_or_among_the_audio_arguments(tiny_processor, kind):
    given = {"sampling_rate": 8_000}
    kwargs = {"audio_kwargs": given} if kind == "audio_kwargs" else given
    assert len(waveform(tiny_processor, tone(8_000), **kwargs)) == 1_600


def test_400_samples_are_enough_and_399_are_not(tiny_processor):
    assert len(waveform(tiny_processor, np.zeros(400, np.float32), sampling_rate=RATE)) == 400
    with pytest.raises(ValueError, match=r"audio\[0\]: too short, 399 samples"):
        tiny_processor(audio=np.zeros(399, np.float32), sampling_rate=RATE)


# Audio: what cannot be used


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.zeros(0, np.float32), "empty audio"),
        ([], "empty audio"),
        (np.zeros((2, 0), np.float32), "empty audio"),
        (b"", "empty file"),
        (np.zeros(300, np.float32), "too short"),
        (np.array([0.0, np.nan] * 400), "400 samples are NaN, infinite or far beyond .* at index 1"),
        (np.array([0.0, 0.0, np.inf] * 200), "200 samples are NaN, infinite or .* at index 2"),
        (np.full(800, 1e300), "NaN, infinite"),
        (np.full(800, 1e20), "far beyond .*1e\\+20"),
        (np.zeros((3, 800), np.float32), "pass a batch as a list"),
        (np.zeros((2, 2, 800), np.float32), "pass a batch as a list"),
        (np.arange(800), "int64 is no PCM format"),
        ([[0.0, 0.1], [0.0]], "different lengths"),
        ({"path": None, "bytes": None}, r"got the keys \['bytes', 'path'\]"),
        (b"this is no audio file at all", "cannot be read as audio"),
        ("https://example.org/a.wav", "URLs are not fetched"),
    ],
)
def test_unusable_audio_is_named_by_its_index(tiny_processor, wrong, message):
    with pytest.raises(ValueError, match=rf"audio\[1\].*{message}"):
        tiny_processor(audio=[tone(), wrong], sampling_rate=RATE)


@pytest.mark.parametrize(
    "wrong", [3, None, object(), {1, 2}, np.array(["a", "b"]), np.array([1j] * 800), io.StringIO("x")]
)
def test_audio_of_a_wrong_type_is_named_by_its_index(tiny_processor, wrong):
    with pytest.raises(TypeError, match=r"audio\[1\]"):
        tiny_processor(audio=[tone(), wrong], sampling_rate=RATE)


def test_an_array_without_a_sampling_rate_is_an_error_that_says_what_to_pass(tiny_processor):
    with pytest.raises(ValueError, match=r"audio\[0\].*unknown; pass `sampling_rate=`"):
        tiny_processor(audio=[tone()])


@pytest.mark.parametrize("rate", [0, -16_000, 16, 10**9, 16_000.5, "16000", True, float("nan"), float("inf")])
def test_an_impossible_sampling_rate_is_an_error(tiny_processor, rate):
    with pytest.raises(ValueError, match=r"audio\[0\].*sampling rate"):
        tiny_processor(audio=[tone()], sampling_rate=rate)


def test_two_different_sampling_rates_in_one_call_are_an_error(tiny_processor):
    with pytest.raises(ValueError, match="sampling_rate was passed two times"):
        tiny_processor(audio=tone(), sampling_rate=8_000, audio_kwargs={"sampling_rate": 16_000})


def test_a_missing_or_damaged_audio_file_is_named(tiny_processor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"audio\[0\] \(.*missing.wav\): No such file"):
        tiny_processor(audio=tmp_path / "missing.wav")
    with pytest.raises(IsADirectoryError, match=r"audio\[0\]"):
        tiny_processor(audio=tmp_path)
    (tmp_path / "bad.wav").write_bytes(b"RIFF0000WAVE")
    with pytest.raises(ValueError, match=r"audio\[0\] \(.*bad.wav\).*cannot be read"):
        tiny_processor(audio=tmp_path / "bad.wav")


@pytest.mark.parametrize(
    "format, subtype",
    [
        *((format, "PCM_16") for format in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "SVX", "VOC", "CAF", "FLAC")),
        *(("WAV", subtype) for subtype in ("FLOAT", "ULAW", "GSM610", "IMA_ADPCM", "G721_32")),
        ("MP3", "MPEG_LAYER_III"),
        ("NIST", "PCM_16"),
        *(("OGG", subtype) for subtype in ("VORBIS", "OPUS")),
    ],
)
def test_half_a_file_is_an_error_and_not_a_shorter_utterance(tiny_processor, format, subtype):
    rng = np.random.default_rng(0)
    whole = encoded(rng.uniform(-0.5, 0.5, 40_000).astype(np.float32), format=format, subtype=subtype)
    assert len(waveform(tiny_processor, whole)) >= 40_000
    with pytest.raises(ValueError, match=r"audio\[0\].*(truncated|cannot be read)"):
        tiny_processor(audio=whole[: len(whole) // 2])


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_F000])
def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end(tiny_processor, size):
    content = bytearray(encoded(tone()))
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    np.testing.assert_array_equal(waveform(tiny_processor, bytes(content)), waveform(tiny_processor, encoded(tone())))


def test_an_mp3_with_more_audio_than_its_first_frame_tells_of_is_refused(tiny_processor):
    whole = encoded(tone(seconds=10), format="MP3")
    frames_behind_the_tag = whole[whole.index(b"\xff\xf3", 4) :]
    for content in (frames_behind_the_tag, whole + whole):
        with pytest.raises(ValueError, match=r"audio\[0\]: there is more audio"):
            tiny_processor(audio=content)
    assert len(waveform(tiny_processor, whole + b"TAG" + bytes(125))) == 10 * RATE


def test_an_audio_decoder_of_datasets_is_audio(tiny_processor):
    class AudioDecoder:  # the part of torchcodec's that is used
        def get_all_samples(self):
            data = torch.from_numpy(np.stack([tone(rate=8_000), 0 * tone(rate=8_000), 0 * tone(rate=8_000)]))
            return SimpleNamespace(data=data, sample_rate=8_000)

    expected = waveform(tiny_processor, tone(rate=8_000) / 3, sampling_rate=8_000)
    np.testing.assert_allclose(waveform(tiny_processor, AudioDecoder()), expected, atol=1e-6)


def test_a_file_that_does_not_say_how_long_it_is_is_named(tiny_processor):
    content = bytearray(encoded(tone(), format="FLAC"))
    content[21] &= 0xF0  # the 36 bits of STREAMINFO with the number of samples
    content[22:26] = bytes(4)
    with pytest.raises(ValueError, match=r"audio\[0\]: its header does not say how long"):
        tiny_processor(audio=bytes(content))


def test_all_channels_of_a_file_are_averaged(tiny_processor):
    values = waveform(tiny_processor, encoded(np.stack([tone(), *[0 * tone()] * 4], 1), subtype="FLOAT"))
    np.testing.assert_allclose(values, tone() / 5, atol=1e-6)


def test_an_empty_wav_file_is_empty_audio(tiny_processor):
    with pytest.raises(ValueError, match=r"audio\[0\].*empty audio"):
        tiny_processor(audio=encoded(np.zeros(0, np.float32)))


def test_truncation_meant_for_text_does_not_cut_audio_to_nothing(tiny_processor):
    with pytest.raises(ValueError, match="text_kwargs"):
        tiny_processor(audio=tone(), text="a red dog", sampling_rate=RATE, truncation=True, max_length=77)


# Images


def test_every_form_of_the_same_picture_gives_the_same_pixels(tiny_processor, tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    forms = [
        image,
        array,
        array.transpose(2, 0, 1),
        array.astype(np.float32) / 255,
        torch.from_numpy(array).permute(2, 0, 1),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        png(image),
        io.BytesIO(png(image)),
        {"bytes": png(image), "path": "a.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
    ]
    values = tiny_processor(images=forms)["pixel_values"]
    assert values.shape == (len(forms), 3, 32, 32) and values.dtype == torch.float32
    torch.testing.assert_close(values, values[:1].expand_as(values))
    expected = tiny_processor.image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(values[:1], expected)


def test_a_four_dimensional_tensor_is_a_batch(tiny_processor):
    batch = torch.zeros(5, 3, 40, 50, dtype=torch.uint8)
    assert tiny_processor(images=batch)["pixel_values"].shape == (5, 3, 32, 32)


def test_images_nested_per_text_are_flattened(tiny_processor):
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    nested, flat = tiny_processor(images=[[red], [], [blue]]), tiny_processor(images=[red, blue])
    torch.testing.assert_close(nested["pixel_values"], flat["pixel_values"])


@pytest.mark.parametrize(
    "image, colour",
    [
        (Image.new("RGB", (40, 40), (10, 20, 30)), [10, 20, 30]),
        (Image.new("RGBA", (40, 40), (200, 0, 0, 0)), [255, 255, 255]),
        (Image.new("RGBA", (40, 40), (200, 0, 0, 255)), [200, 0, 0]),
        (Image.new("RGBA", (40, 40), (0, 0, 0, 51)), [204, 204, 204]),
        (Image.new("LA", (40, 40), (7, 0)), [255, 255, 255]),
        (Image.new("La", (40, 40), (7, 255)), [7, 7, 7]),
        (Image.new("L", (40, 40), 99), [99, 99, 99]),
        (Image.new("1", (40, 40), 1), [255, 255, 255]),
        (Image.new("RGB", (40, 40), (10, 20, 30)).quantize(2), [10, 20, 30]),
        (Image.new("CMYK", (40, 40), (0, 0, 0, 255)), [0, 0, 0]),
        (Image.fromarray(np.full((40, 40), 257 * 77, np.uint16)), [77, 77, 77]),
        (Image.fromarray(np.full((40, 40), 257 * 77, np.int32)), [77, 77, 77]),
        (Image.fromarray(np.full((40, 40), 0.2, np.float32)), [51, 51, 51]),
        (np.full((40, 40), 77, np.uint8), [77, 77, 77]),
        (np.full((40, 40, 1), 77, np.uint8), [77, 77, 77]),
        (np.full((1, 40, 40), 77, np.uint8), [77, 77, 77]),
        (np.full((40, 40), True), [255, 255, 255]),
        (np.full((40, 40, 4), 0, np.uint8), [255, 255, 255]),
        (np.full((40, 40), 257 * 77, np.uint16), [77, 77, 77]),
        (np.full((40, 40), 77, np.int64), [77, 77, 77]),
        (torch.full((3, 40, 40), 0.2, dtype=torch.bfloat16), [51, 51, 51]),
    ],
)
def test_a_picture_of_any_kind_becomes_rgb_on_white(tiny_processor, image, colour):
    assert pixel(tiny_processor, image) == colour


def test_a_palette_with_a_transparent_colour_is_composited_on_white(tiny_processor):
    image = Image.new("RGB", (40, 40), (10, 20, 30)).quantize(2)
    index = image.getpixel((0, 0))
    assert pixel(tiny_processor, png(image, transparency=index)) == [255, 255, 255]


def test_the_transparent_value_of_a_16_bit_grey_png_is_composited_on_white(tiny_processor):
    grey = Image.fromarray(np.full((40, 40), 257 * 100, np.uint16))
    assert pixel(tiny_processor, png(grey, transparency=257 * 100)) == [255] * 3
    assert pixel(tiny_processor, png(grey, transparency=300)) == [100] * 3


def test_the_exif_orientation_is_applied(tiny_processor):
    image = Image.new("RGB", (40, 40), "white")
    image.paste("black", (0, 0, 40, 20))  # dark above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    values = tiny_processor(images=png(image, exif=exif))["pixel_values"][0, 0]
    assert values[4, 16] > values[28, 16]  # dark below


def test_the_square_image_ambiguity_is_resolved_by_the_kind_of_container(tiny_processor):
    array = np.zeros((3, 3, 3), np.uint8)
    array[..., 0] = 255  # red if channels are last
    assert pixel(tiny_processor, array) == [255, 0, 0]
    assert pixel(tiny_processor, torch.from_numpy(array).permute(2, 0, 1)) == [255, 0, 0]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (Image.new("RGB", (0, 10)), r"no pixels \(0 x 10\)"),
        (np.zeros((0, 10, 3), np.uint8), "no pixels"),
        (torch.zeros(3, 0, 0), "no pixels"),
        (b"", "empty file"),
        (b"no image", "cannot be read as an image"),
        ("http://example.org/a.png", "URLs are not fetched"),
        (np.zeros((40, 40, 7), np.uint8), "1 to 4 channels"),
        (np.full((40, 40, 3), 200.0), r"expected floats in \[0, 1\]"),
        (np.full((40, 40, 3), -2.0), r"expected floats in \[0, 1\]"),
        (np.full((40, 40, 3), np.nan), "NaN"),
        (np.full((40, 40, 3), 300), "from 0 to 255"),
        (Image.new("RGB", (1, 500)), "200 to 1"),
        ({"label": 3}, r"got the keys \['label'\]"),
    ],
)
def test_an_unusable_image_is_named_by_its_index(tiny_processor, wrong, message):
    good = Image.new("RGB", (40, 40))
    with pytest.raises(ValueError, match=rf"images\[1\].*{message}"):
        tiny_processor(images=[good, wrong])


@pytest.mark.parametrize("wrong", [3, None, object(), np.array([["a"]]), io.StringIO("x")])
def test_an_image_of_a_wrong_type_is_named_by_its_index(tiny_processor, wrong):
    with pytest.raises(TypeError, match=r"images\[1\]"):
        tiny_processor(images=[Image.new("RGB", (40, 40)), wrong])


def test_a_missing_or_damaged_image_file_is_named(tiny_processor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images\[0\] \(.*missing.png\)"):
        tiny_processor(images=tmp_path / "missing.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "half.png").write_bytes(png(Image.fromarray(noise))[:4_000])
    with pytest.raises(ValueError, match=r"images\[0\] \(.*half.png\)"):
        tiny_processor(images=tmp_path / "half.png")


# Text and calls in general


def test_text_gives_ids_and_leaves_the_audio_mask_alone(tiny_processor):
    batch = tiny_processor(audio=[tone(seconds=0.05), tone()], text=["a red dog", "dog"], sampling_rate=RATE)
    assert batch["input_ids"].shape == (2, 5) and batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].sum(-1).tolist() == [800, 1_600]
    assert "attention_mask" not in tiny_processor(text="dog")


def test_texts_beyond_77_places_are_cut_with_a_warning_that_counts_them(tiny_processor):
    with pytest.warns(UserWarning, match="2 of 3 texts are longer than 77 tokens"):
        ids = tiny_processor(text=["dog", "x" * 200, "q " * 90])["input_ids"]
    assert ids.shape == (3, 77)
    assert ids[1:, -1].tolist() == [tiny_processor.tokenizer.eos_token_id] * 2


def test_texts_that_fit_are_not_warned_of(tiny_processor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny_processor(text=["dog " * 75])["input_ids"].shape == (1, 77)


def test_threads_share_a_processor(tiny_processor):
    texts = ["a dog", "a red ball on the green grass " * 3, ["a", "a red ball"]]
    options = [{}, {"padding": "max_length"}, {"truncation": False, "padding": True}]
    expected = [tiny_processor(text=text, **option)["input_ids"] for text, option in zip(texts, options, strict=True)]

    def agrees(number: int) -> bool:
        text, option, ids = texts[number % 3], options[number % 3], expected[number % 3]
        return torch.equal(tiny_processor(text=text, **option)["input_ids"], ids)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(agrees, range(600)))


def test_decoding_is_the_tokenizers(tiny_processor):
    ids = tiny_processor(text=["a red dog"])["input_ids"]
    assert tiny_processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == "a red dog"
    assert tiny_processor.decode(ids[0], skip_special_tokens=True).strip() == "a red dog"


@pytest.mark.parametrize(
    "kind, empty", [("audio", []), ("images", []), ("images", [[]]), ("images", torch.zeros(0, 3, 8, 8)), ("text", [])]
)
def test_an_empty_batch_is_an_error(tiny_processor, kind, empty):
    with pytest.raises(ValueError, match=f"`{kind}` is an empty"):
        tiny_processor(**{kind: empty})


@pytest.mark.parametrize("wrong, name", [(3, "text"), (["a", None], r"text\[1\]"), ([["a"]], r"text\[0\]")])
def test_text_of_a_wrong_type_is_an_error(tiny_processor, wrong, name):
    with pytest.raises(TypeError, match=name):
        tiny_processor(text=wrong)


def test_nothing_to_process_is_an_error(tiny_processor):
    with pytest.raises(ValueError, match="at least one of"):
        tiny_processor()


def test_a_misspelt_argument_is_an_error(tiny_processor):
    with pytest.raises(TypeError, match="Unexpected argument 'image'"):
        tiny_processor(image=Image.new("RGB", (40, 40)), text="dog")


def test_numpy_output_can_be_asked_for(tiny_processor):
    image = Image.new("RGB", (40, 40))
    batch = tiny_processor(audio=tone(), images=image, text="dog", sampling_rate=RATE, return_tensors="np")
    assert set(batch) == set(tiny_processor.model_input_names)
    assert all(isinstance(value, np.ndarray) for value in batch.values())


# Saving, loading, building


def test_what_is_saved_is_what_is_loaded(normalizing_processor, tmp_path):
    normalizing_processor.save_pretrained(tmp_path)
    loaded = SpeechClipPlusProcessor.from_pretrained(tmp_path)
    inputs = {"audio": tone(), "images": Image.new("RGB", (50, 40), "red"), "text": "a red dog", "sampling_rate": RATE}
    expected, got = normalizing_processor(**inputs), loaded(**inputs)
    assert loaded.feature_extractor.do_normalize is True
    assert set(got) == set(expected)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name])


@pytest.fixture(scope="module")
def backbone_folders(tiny_processor, tmp_path_factory):
    speech, clip = tmp_path_factory.mktemp("speech"), tmp_path_factory.mktemp("clip")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(speech)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(clip)
    tiny_processor.tokenizer.save_pretrained(clip)
    return speech, clip


@pytest.mark.parametrize("asked, expected", [(None, True), (True, True), (False, False)])
def test_building_from_backbones_obeys_do_normalize(backbone_folders, asked, expected):
    processor = SpeechClipPlusProcessor.from_backbones(*backbone_folders, do_normalize=asked)
    values = waveform(processor, tone() + 0.25, sampling_rate=RATE)
    assert (abs(float(values.mean())) < 1e-3) is expected


def test_a_speech_backbone_without_preprocessor_needs_do_normalize(backbone_folders, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hubert"}), encoding="utf-8")
    with pytest.raises(OSError, match="speech backbone .*preprocessor_config.json"):
        SpeechClipPlusProcessor.from_backbones(tmp_path, backbone_folders[1])
    processor = SpeechClipPlusProcessor.from_backbones(tmp_path, backbone_folders[1], do_normalize=True)
    assert processor.feature_extractor.do_normalize is True


def test_a_missing_backbone_is_an_error(backbone_folders, tmp_path):
    with pytest.raises(OSError, match="no-such-speech-encoder"):
        SpeechClipPlusProcessor.from_backbones("nobody/no-such-speech-encoder", backbone_folders[1])
    with pytest.raises((OSError, ValueError), match="CLIP backbone"):
        SpeechClipPlusProcessor.from_backbones(backbone_folders[0], tmp_path)


@pytest.mark.parametrize(
    "extractor",
    [
        Wav2Vec2FeatureExtractor(sampling_rate=8_000),
        Wav2Vec2FeatureExtractor(padding_side="left"),
        ClapFeatureExtractor(),
    ],
    ids=["8 kHz", "left", "48 kHz"],
)
def test_a_feature_extractor_of_another_kind_is_refused(tiny_processor, extractor):
    with pytest.raises(ValueError, match="Expected a feature extractor"):
        SpeechClipPlusProcessor(extractor, tiny_processor.image_processor, tiny_processor.tokenizer)


def test_the_parts_can_be_loaded_one_by_one_by_the_auto_classes(normalizing_processor, tmp_path):
    normalizing_processor.save_pretrained(tmp_path)
    assert AutoFeatureExtractor.from_pretrained(tmp_path).do_normalize is True
