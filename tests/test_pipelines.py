"""The pipelines: what comes out, whatever it is made of and however it is batched."""

import copy
import io
import re
import tracemalloc
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from speechclip_plus import (
    SpeechClipPlusConfig,
    SpeechClipPlusModel,
    SpeechClipPlusProcessor,
)
from speechclip_plus.modeling_speechclip_plus.audio_utils import load_audio
from speechclip_plus.modeling_speechclip_plus.outputs import Keyword
from speechclip_plus.modeling_speechclip_plus.pipelines import PIPELINES
from speechclip_plus.modeling_speechclip_plus.pipelines.base import Windowing, read_windows
from speechclip_plus.trainer.tiny_backbones import tiny_backbone

RATE = 16_000
KEYWORDS, RETRIEVAL = "speech-keyword-extraction", "speech-image-retrieval"
CLASSIFICATION, FEATURES = "zero-shot-speech-classification", "speech-feature-extraction"


@pytest.fixture(scope="module")
def processor():
    return SpeechClipPlusProcessor.from_backbones(tiny_backbone("hubert"), tiny_backbone("clip"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SpeechClipPlusModel.from_backbones(
        tiny_backbone("hubert"), tiny_backbone("clip"), config="hybrid_plus-tiny"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, processor):
    """A folder as a model has it on the Hub, with recordings and images beside it."""
    root = tmp_path_factory.mktemp("pipelines")
    model.save_pretrained(root / "quickstart" / "model")
    processor.save_pretrained(root / "quickstart" / "model")
    return root / "quickstart" / "model"


@pytest.fixture(scope="module")
def make(model, processor):
    def pipe(task, of=model, **kwargs):
        return PIPELINES[task](model=of, processor=processor, task=task, device="cpu", **kwargs)

    return pipe


@pytest.fixture(scope="module")
def speech():
    """Utterances of different lengths: noise that swells and ebbs, so that no two stretches are alike."""
    return [noise(seconds, seed) for seed, seconds in enumerate((2.0, 0.7, 3.1, 1.4, 2.6))]


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8)) for _ in range(5)]


def noise(seconds, seed, rate=RATE):
    random = np.random.default_rng(seed)
    samples = random.standard_normal(int(seconds * rate)) * 0.1
    pace = random.uniform(2, 6)
    return (samples * (1.2 + np.sin(np.arange(len(samples)) * pace / rate * 2 * np.pi))).astype(np.float32)


def same(first, second):
    """Whether two answers agree, numbers up to rounding."""
    if isinstance(first, float):
        return first == pytest.approx(second, abs=2e-5)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, torch.Tensor):
        return first.shape == second.shape and torch.allclose(first, second, atol=2e-5)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first is second or bool(np.all(first == second))


def calls(make, images):
    """Each pipeline with what it needs beside speech."""
    return {
        KEYWORDS: partial(make(KEYWORDS), return_timestamps=True, top_k=2),
        RETRIEVAL: make(RETRIEVAL, candidate_images=images),
        CLASSIFICATION: make(CLASSIFICATION, candidate_labels=["red", "blue", "a circle"]),
        FEATURES: partial(make(FEATURES), return_tensors=True),
        "pooled": partial(make(FEATURES), pool=True),
    }


# Making them


def test_every_task_is_known_to_transformers_and_loads_from_a_folder(folder):
    for task, pipeline_class in PIPELINES.items():
        assert type(pipeline(task, model=str(folder))) is pipeline_class


def test_a_model_and_its_processor_make_a_pipeline(model, processor):
    for task, pipeline_class in PIPELINES.items():
        assert type(pipeline(task, model=model, processor=processor)) is pipeline_class


def test_no_task_of_transformers_own_is_replaced():
    tasks = {task: entry["impl"] for task, entry in PIPELINE_REGISTRY.supported_tasks.items()}
    assert {task for task, impl in tasks.items() if impl in PIPELINES.values()} == set(PIPELINES)
    assert "feature-extraction" in set(tasks) - set(PIPELINES)


def test_other_models_and_a_missing_processor_are_refused(model, processor):
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(tiny_backbone("clip"))
    for task in (KEYWORDS, RETRIEVAL, CLASSIFICATION):
        with pytest.raises(ValueError, match="needs a SpeechClipPlusModel, but the model is a 'clip'"):
            pipeline(task, model=clip, processor=processor)
        with pytest.raises(ValueError, match="pass processor="):
            PIPELINES[task](model=model)


def test_a_model_in_training_mode_answers_as_in_evaluation_mode(make, model, speech):
    expected = make(FEATURES)(speech[0], pool=True)
    model.train()
    assert make(FEATURES)(speech[0], pool=True) == expected
    assert not model.training


def test_a_saved_pipeline_loads_again_and_gives_the_same_answers(folder, tmp_path, speech):
    first = pipeline(KEYWORDS, model=str(folder), dtype=torch.float32)
    first.save_pretrained(tmp_path / "saved")
    again = pipeline(KEYWORDS, model=str(tmp_path / "saved"))
    assert again(speech[0], return_timestamps=True) == first(speech[0], return_timestamps=True)
    assert pipeline(FEATURES, model=str(tmp_path / "saved"))(images=Image.new("RGB", (9, 9))) is not None


# Batches and inputs


@pytest.mark.parametrize("name", [KEYWORDS, RETRIEVAL, CLASSIFICATION, FEATURES, "pooled"])
def test_batches_give_the_answers_of_one_by_one(make, images, speech, name):
    call = calls(make, images)[name]
    one_by_one = [call(utterance) for utterance in speech]
    assert not any(same(one_by_one[0], other) for other in one_by_one[1:])
    for batch_size in (1, 2, 8):
        assert same(call(speech, batch_size=batch_size), one_by_one)


def test_a_batch_without_its_mask_would_be_seen(make, speech, model):
    # Guards the test above: the mask must matter to the model.
    features = make(FEATURES)
    batch = features.processor(audio=speech[:2], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        masked, unmasked = (
            model.get_audio_features(batch["input_values"], mask).pooler_output[1]
            for mask in (batch["attention_mask"], None)
        )
    assert (masked - unmasked).abs().max() > 1e-3


def test_recordings_come_in_every_form(make, speech, tmp_path):
    extractor = make(KEYWORDS)
    path = tmp_path / "speech.wav"
    soundfile.write(path, speech[0], RATE, subtype="FLOAT")
    expected = extractor(speech[0])
    forms = [
        path,
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        torch.from_numpy(speech[0]),
        speech[0].tolist(),
        {"raw": speech[0], "sampling_rate": RATE},
        {"array": speech[0], "sampling_rate": RATE, "path": "gone.wav"},
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)},
        SimpleNamespace(  # as torchcodec's AudioDecoder answers
            get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(speech[0])[None], sample_rate=RATE)
        ),
    ]
    for form in forms:
        assert same(extractor(form), expected)
    assert same(extractor(tuple(forms[:3]), batch_size=2), [expected] * 3)


def test_dictionaries_are_resampled_and_left_as_they_are(make):
    given = {"raw": noise(1.0, 3, 8_000), "sampling_rate": 8_000}
    kept = dict(given)
    frames = make(FEATURES)(given, return_tensors=True)
    assert frames.shape[1] == (RATE - 380) // 320 + 1
    assert given.keys() == kept.keys() and given["raw"] is kept["raw"]


def test_data_sets_columns_and_generators_are_read(make, speech, tmp_path):
    from datasets import Audio, Dataset

    paths = [str(tmp_path / f"{number}.flac") for number in range(3)]
    for path, samples in zip(paths, speech, strict=False):
        soundfile.write(path, samples, RATE)
    data = Dataset.from_dict({"audio": paths}).cast_column("audio", Audio(decode=False))
    extractor = make(KEYWORDS)
    expected = extractor(paths)
    assert isinstance(expected, list)
    assert same(extractor(data["audio"], batch_size=2), expected)
    lazy = [
        extractor(KeyDataset(data, "audio"), batch_size=2),
        extractor((path for path in paths), batch_size=2),
        extractor(iter(paths)),
        extractor(data.to_iterable_dataset()["audio"]),
        extractor(KeyDataset(data, "audio"), batch_size=2, num_workers=1),
    ]
    for answers in lazy:
        assert not isinstance(answers, list)
        assert same(list(answers), expected)


def test_a_generator_is_read_as_answers_are_asked_for(make, speech):
    asked = []

    def utterances():
        for number in range(100):
            asked.append(number)
            yield speech[number % len(speech)]

    answers = iter(make(KEYWORDS)(utterances(), batch_size=2))
    next(answers)
    assert len(asked) < 10


def test_bfloat16_gives_float32_scores_near_those_of_float32(folder, images, speech):
    half = pipeline(RETRIEVAL, model=str(folder), candidate_images=images, dtype=torch.bfloat16, device="cpu")
    full = pipeline(RETRIEVAL, model=str(folder), candidate_images=images, device="cpu")
    assert half.dtype == torch.bfloat16 and full.dtype == torch.float32
    scores = [{found["index"]: found["score"] for found in pipe(speech[0])} for pipe in (half, full)]
    assert scores[0] != scores[1]
    assert all(abs(scores[0][index] - scores[1][index]) < 0.02 for index in range(len(images)))
    for task in (FEATURES, KEYWORDS):
        pipe = pipeline(task, model=str(folder), dtype=torch.bfloat16)
        if task == FEATURES:
            assert pipe(speech[0], return_tensors=True).dtype == torch.float32
            assert pipe(speech[0], pool=True, return_tensors=True).norm().item() == pytest.approx(1, abs=1e-6)
        else:
            assert len(pipe(speech[:2], batch_size=2)) == 2


# Keywords


def test_keywords_are_those_of_the_model(make, model, processor, speech):
    inputs = processor(audio=speech[0], sampling_rate=RATE, return_tensors="pt")
    expected = model.extract_keywords(**inputs, tokenizer=processor, top_k=3)[0]
    told = make(KEYWORDS)(speech[0], return_timestamps=True, top_k=3)
    assert [word["keyword"] for word in told] == [word.text for word in expected]
    assert [word["token_id"] for word in told] == [word.id for word in expected]
    assert [word["score"] for word in told] == pytest.approx([word.similarity for word in expected])
    assert [word["timestamp"] for word in told] == [(word.start, word.end) for word in expected]
    near = [(near["keyword"], near["token_id"]) for near in told[0]["neighbours"]]
    assert near == [(near.text, near.id) for near in expected[0].neighbours] and len(near) == 3
    assert make(KEYWORDS)(speech[0])[0].keys() == {"keyword", "score", "token_id"}


def test_variants_that_cannot_tell_keywords_or_times_say_so(make, speech):
    parallel, hybrid = (
        SpeechClipPlusModel(SpeechClipPlusConfig.from_preset(f"{name}-tiny")) for name in ("parallel", "hybrid")
    )
    with pytest.raises(ValueError, match="This parallel model has no keywords"):
        make(KEYWORDS, parallel)
    extractor = make(KEYWORDS, hybrid)
    with pytest.raises(ValueError, match="the hybrid variant does not say when"):
        extractor(speech[0], return_timestamps=True)
    with pytest.raises(ValueError, match="would be told twice"):
        extractor(noise(40, 0), stride_length_s=1)
    number = hybrid.config.keyword_config.num_keywords
    assert [len(words) for words in extractor([speech[0], noise(40, 0)])] == [number, 3 * number]


def test_full_windows_are_told_of(make, speech, caplog, monkeypatch):
    import logging

    extractor = make(KEYWORDS)
    keywords = len(extractor(speech[2]))
    monkeypatch.setattr(type(extractor.model.config), "max_keywords", keywords)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    extractor(speech[2])
    assert "choose a shorter chunk_length_s" in caplog.text


# Retrieval


def test_images_are_ranked_by_their_similarity_with_speech(make, model, processor, images, speech):
    searcher = make(RETRIEVAL, candidate_images=images)
    with torch.no_grad():
        query = model.get_audio_features(
            **processor(audio=speech[0], sampling_rate=RATE, return_tensors="pt")
        ).pooler_output
        scores = (query @ model.get_image_features(**processor(images=images)).pooler_output.T)[0]
    found = searcher(speech[0], top_k=3)
    assert [one["index"] for one in found] == scores.argsort(descending=True).tolist()[:3]
    assert [one["score"] for one in found] == pytest.approx(scores.sort(descending=True).values.tolist()[:3], abs=1e-5)
    assert all(one["image"] is images[one["index"]] for one in found)
    assert len(searcher(speech[0], top_k=99)) == len(searcher(speech[0])) == len(images)


def test_recordings_are_ranked_for_images_texts_and_speech(make, images, speech):
    searcher = make(RETRIEVAL, candidate_audio=speech)
    by_image = searcher(images[0], top_k=5)
    reverse = {
        number: found["score"]
        for number, utterance in enumerate(speech)
        for found in [make(RETRIEVAL)(utterance, candidate_images=images[:1])[0]]
    }
    assert {found["index"]: found["score"] for found in by_image} == pytest.approx(reverse, abs=1e-5)
    assert searcher(audio=speech[3], top_k=1)[0] == {"score": pytest.approx(1), "index": 3, "audio": speech[3]}
    assert len(searcher(text=["red", "a blue circle"], batch_size=2)) == 2
    assert same(searcher(text=["red", "a blue circle"], batch_size=2)[0], searcher(text="red"))


def test_candidates_of_the_pipeline_are_embedded_once_and_those_of_a_call_each_time(
    make, model, images, speech, tmp_path, monkeypatch
):
    embedded = []
    original = SpeechClipPlusModel.get_image_features

    def counting(self, pixel_values):
        embedded.append(len(pixel_values))
        return original(self, pixel_values)

    monkeypatch.setattr(SpeechClipPlusModel, "get_image_features", counting)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, images, strict=False):
        image.save(path)
    given = list(images)
    searcher = make(RETRIEVAL, candidate_images=given)
    assert not embedded
    searcher(speech[0]), searcher(speech, batch_size=2)
    assert sum(embedded) == 5
    given.append(images[0])
    assert len(searcher(speech[0], top_k=9)) == 5
    first, second = (searcher(speech[0], candidate_images=paths) for _ in range(2))
    assert sum(embedded) == 11
    images[4].save(paths[0])
    third = searcher(speech[0], candidate_images=paths)
    searcher(speech[1])
    assert sum(embedded) == 14
    scores = [{one["index"]: one["score"] for one in found} for found in (first, second, third)]
    assert scores[0] == scores[1] and scores[0][0] != scores[2][0] and scores[0][1] == scores[2][1]


def test_images_of_equal_raw_pixels_are_told_apart_by_what_is_seen(make):
    def disc(colour):
        image = Image.new("P", (64, 64), 0)
        image.putpalette([255, 255, 255, *colour] + [0] * 762)
        image.paste(1, (16, 16, 48, 48))
        return image

    turned = Image.radial_gradient("L").crop((0, 0, 128, 128))
    turned.getexif()[0x112] = 6
    images = [disc((255, 0, 0)), disc((0, 0, 255)), turned, turned.copy()]
    images[3].getexif()[0x112] = 3
    searcher = make(RETRIEVAL)
    together = {found["index"]: found["score"] for found in searcher(text="a red circle", candidate_images=images)}
    alone = [make(RETRIEVAL)(text="a red circle", candidate_images=[image])[0]["score"] for image in images]
    assert [together[index] for index in range(4)] == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 5) for score in alone}) == 4


def test_what_was_embedded_by_other_weights_is_not_used(model, processor, images, speech):
    own = copy.deepcopy(model)
    searcher = pipeline(RETRIEVAL, model=own, processor=processor, candidate_images=images)
    classifier = pipeline(CLASSIFICATION, model=own, processor=processor, candidate_labels=["red", "a blue circle"])
    before = searcher(speech[0]), searcher(speech[0], candidate_images=images[:2]), classifier(speech[0])
    generator = torch.Generator().manual_seed(0)
    for weight in (own.clip.visual_projection.weight, own.clip.text_projection.weight):
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    after = searcher(speech[0]), searcher(speech[0], candidate_images=images[:2]), classifier(speech[0])
    again = pipeline(RETRIEVAL, model=own, processor=processor, candidate_images=images)
    labels = pipeline(CLASSIFICATION, model=own, processor=processor, candidate_labels=["red", "a blue circle"])
    assert same(after, (again(speech[0]), again(speech[0], candidate_images=images[:2]), labels(speech[0])))
    assert not any(same(old, new) for old, new in zip(before, after, strict=True))


# Zero-shot classification and features


def test_labels_are_scored_by_softmax_of_scaled_similarities(make, model, processor, speech):
    labels, template = ["red", "a blue circle", "two"], "this is {}"
    inputs = processor(audio=speech[1], sampling_rate=RATE, return_tensors="pt")
    texts = processor(text=[template.format(label) for label in labels])
    with torch.no_grad():
        similarities = (
            model.get_audio_features(**inputs).pooler_output @ model.get_text_features(**texts).pooler_output.T
        )
        scores = (model.logit_scale.exp() * similarities)[0].softmax(0).tolist()
    classifier = make(CLASSIFICATION)
    found = classifier(speech[1], candidate_labels=labels, hypothesis_template=template)
    assert {one["label"]: one["score"] for one in found} == pytest.approx(dict(zip(labels, scores, strict=True)))
    assert [one["score"] for one in found] == sorted(scores, reverse=True) or len(found) == 3
    ensemble = classifier(speech[1], labels, hypothesis_template=[template, "{}"])
    assert {one["label"]: one["score"] for one in ensemble} != {one["label"]: one["score"] for one in found}


def test_features_are_frames_or_one_embedding(make, model, processor, images, speech):
    features = make(FEATURES)
    inputs = processor(audio=speech[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        states, _ = model.encode_speech_frames(**inputs)
        expected = model.layer_sum(states.unbind(1))
        embeds = {
            name: model.get_audio_features(**inputs, branch=name).pooler_output for name in ("parallel", "cascaded")
        }
    torch.testing.assert_close(features(speech[0], return_tensors=True), expected)
    assert features(speech[0]) == features(speech[0], return_tensors=True).tolist()
    for branch, right in embeds.items():
        torch.testing.assert_close(features(speech[0], pool=True, branch=branch, return_tensors=True), right)
    image = features(images=images[:3], batch_size=2, return_tensors=True)
    torch.testing.assert_close(
        torch.cat(image), model.get_image_features(**processor(images=images[:3])).pooler_output.detach()
    )
    text = features(text=["red", "a blue circle"], batch_size=2, return_tensors=True)
    torch.testing.assert_close(
        torch.cat(text), torch.cat([features(text=t, return_tensors=True) for t in ("red", "a blue circle")])
    )


# Long recordings


def test_windows_are_the_recording_and_their_own_parts_each_sample_once(model, tmp_path):

    soundfile.write(tmp_path / "long.flac", noise(47.3, 5, 22_050), 22_050)
    whole = load_audio(tmp_path / "long.flac")
    for chunk, stride in ((15, None), (10, (3, 1)), (5, 0), (2, 0.5), (60, 2), (0, None)):
        windows = list(
            read_windows(tmp_path / "long.flac", Windowing.from_seconds(model.config.speech_config, chunk, stride))
        )
        for window in windows:
            start = window.span[0]
            np.testing.assert_array_equal(window.samples, whole[start : start + len(window.samples)])
            assert window.span[0] <= window.core[0] < window.core[1] <= window.span[1]
        edges = [0, *(window.core[1] for window in windows)]
        assert edges[:-1] == [window.core[0] for window in windows] and edges[-1] == len(whole)
        assert [window.is_last for window in windows] == [False] * (len(windows) - 1) + [True]
        assert not chunk or max(len(window.samples) for window in windows) <= (chunk + 1) * RATE


def test_keywords_of_a_long_recording_follow_each_other_without_doubles_or_gaps(make):
    told = make(KEYWORDS)(noise(40, 11), return_timestamps=True, chunk_length_s=6, batch_size=3)
    times = [word["timestamp"] for word in told]
    assert times[0][0] == 0 and times[-1][1] == pytest.approx(40, abs=0.4)
    for before, after in zip(times, times[1:], strict=False):
        assert before[1] <= after[0] + 1e-6  # none twice
        assert after[0] - before[1] < 0.3  # none left out: CIF's keywords lie side by side, about 0.4 s each
        assert after[1] > after[0]


def test_a_word_is_told_once_wherever_the_windows_are_cut(make):
    extractor = make(KEYWORDS)
    words = [(0.4 * number, 0.4 * number + 0.4) for number in range(int(60 / 0.4))]

    def hear(window, shift):
        """What a window hears of the words that lie in it, earlier or later than they are by `shift` seconds."""
        start, end = (edge / RATE for edge in window.span)
        inside = [
            (n, a + shift, b + shift) for n, (a, b) in enumerate(words) if start <= a + shift and b + shift <= end
        ]
        keywords = [Keyword(str(n), n, 0.5, a - start, b - start, ()) for n, a, b in inside]
        return {"span": window.span, "core": window.core, "keywords": keywords}

    for chunk, stride in ((15, None), (10, (3, 1)), (7.3, 1.1), (4, 0.9)):
        windowing = Windowing.from_seconds(extractor.model.config.speech_config, chunk, stride)
        windows = list(read_windows(np.ones(60 * RATE, np.float32), windowing, RATE))
        for shift in (0.0, 0.09, -0.09, 0.19, -0.19):  # of odd windows against even ones twice as much
            outputs = [hear(window, shift * (-1) ** number) for number, window in enumerate(windows)]
            told = [int(word["keyword"]) for word in extractor.postprocess(outputs, return_timestamps=True)]
            assert told == sorted(set(told))  # none twice
            if abs(shift) < 0.1:  # heard less than half a word apart
                assert set(range(2, len(words) - 2)) <= set(told)  # none left out


def test_frames_of_a_long_recording_are_as_many_as_of_the_whole(make):
    long = noise(20.3, 12)
    features = make(FEATURES)
    whole = features(long, return_tensors=True, chunk_length_s=0)
    for options in ({"chunk_length_s": 6}, {"chunk_length_s": 5, "stride_length_s": 0, "batch_size": 2}):
        parts = features(long, return_tensors=True, **options)
        assert parts.shape == whole.shape
        similar = torch.nn.functional.cosine_similarity(parts[0], whole[0], dim=-1)
        shifted = torch.nn.functional.cosine_similarity(parts[0, 1:], whole[0, :-1], dim=-1)
        assert similar.mean() > shifted.mean() + 0.05  # each frame in its own place


def test_the_best_window_of_a_long_recording_counts(make, speech):
    searcher = make(RETRIEVAL)
    long = np.concatenate([noise(10, 20), speech[2], noise(10, 21)])
    options = {"chunk_length_s": 3.1, "stride_length_s": 0.5}
    (found,) = searcher(audio=speech[2], candidate_audio=[long], **options)
    starts = [round(2.1 * number * RATE) for number in range(int((len(long) / RATE - 3.1 - 1) / 2.1) + 1)]
    each = [
        searcher(audio=speech[2], candidate_audio=[long[start : start + round(3.1 * RATE) + 60]], chunk_length_s=0)
        for start in starts
    ]
    assert found["score"] >= max(alone[0]["score"] for alone in each) - 1e-4


def test_memory_does_not_grow_with_the_length_of_a_file(make, tmp_path, monkeypatch):
    extractor = make(KEYWORDS)

    def extract_keywords(input_values, **others):
        return [[Keyword("a", 1, 0.5, 0.0, 1.0, ())] for _ in input_values]

    # Without the model, whose memory tracemalloc does not see: all that is read and kept.
    monkeypatch.setattr(extractor.model, "extract_keywords", extract_keywords)
    peaks = []
    for minutes in (1, 12):
        with soundfile.SoundFile(tmp_path / "long.wav", "w", 8_000, 2) as file:
            for _ in range(minutes):
                file.write(np.full((60 * 8_000, 2), 0.1, np.float32))
        tracemalloc.start()
        assert len(extractor(tmp_path / "long.wav", batch_size=2)) == 6 * minutes
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1  # MB; eleven minutes more are 42 MB at 16 kHz


# Errors


SILENCE = np.zeros(RATE)
ERRORS = [
    (KEYWORDS, {"audio": []}, ValueError, "an empty list"),
    (KEYWORDS, {"audio": "gone.wav"}, FileNotFoundError, r"audio \(gone.wav\): No such file"),
    (KEYWORDS, {"audio": [SILENCE, "gone.wav"]}, FileNotFoundError, r"audio\[1\] \(gone.wav\)"),
    (KEYWORDS, {"audio": {"array": SILENCE}}, ValueError, "sampling rate of an array is unknown"),
    (
        KEYWORDS,
        {"audio": SILENCE, "return_timestamp": True},
        TypeError,
        "unexpected keyword argument 'return_timestamp'",
    ),
    (KEYWORDS, {"audio": SILENCE, "top_k": 0}, ValueError, "top_k must be between 1"),
    (KEYWORDS, {"audio": SILENCE, "chunk_length_s": -1}, ValueError, "chunk_length_s"),
    (KEYWORDS, {"audio": SILENCE, "chunk_length_s": 2, "stride_length_s": 1}, ValueError, "longer than its"),
    (RETRIEVAL, {"audio": SILENCE}, ValueError, "nothing to search"),
    (RETRIEVAL, {"audio": SILENCE, "candidate_images": []}, ValueError, "candidate_images is empty"),
    (RETRIEVAL, {"audio": SILENCE, "candidate_images": "a.png"}, TypeError, "expected a list or a column"),
    (RETRIEVAL, {"audio": SILENCE, "candidate_images": ["a.png"]}, FileNotFoundError, r"candidate_images\[0\]"),
    (RETRIEVAL, {"audio": SILENCE, "candidate_audio": [0], "candidate_images": [0]}, TypeError, "Expected one of"),
    (RETRIEVAL, {"candidate_audio": [SILENCE]}, TypeError, "got nothing"),
    (RETRIEVAL, {"text": "a", "candidate_audio": [SILENCE], "branch": "both"}, ValueError, "has no 'both' branch"),
    (RETRIEVAL, {"text": "a", "candidate_images": ["a"], "top_k": 0}, ValueError, "top_k=0"),
    (CLASSIFICATION, {"audio": SILENCE}, ValueError, "Give candidate_labels"),
    (CLASSIFICATION, {"audio": SILENCE, "candidate_labels": "a, b"}, TypeError, "expected a list of texts"),
    (CLASSIFICATION, {"audio": SILENCE, "candidate_labels": ["a"]}, ValueError, "at least two different"),
    (
        CLASSIFICATION,
        {"audio": SILENCE, "candidate_labels": ["a", "b"], "hypothesis_template": "x"},
        ValueError,
        "A template has one",
    ),
    (FEATURES, {}, TypeError, "Expected one of audio, images, text, got nothing"),
    (FEATURES, {"text": 3}, TypeError, "text: expected a string, got int"),
]


@pytest.mark.parametrize(("task", "arguments", "error", "message"), ERRORS)
def test_what_cannot_be_done_is_one_clear_error(make, task, arguments, error, message):
    with pytest.raises(error, match=message):
        make(task)(**arguments)


# Documentation


def test_the_examples_of_the_documentation_run(repository_root, folder, tmp_path, monkeypatch, speech):
    text = (repository_root / "docs" / "pipelines.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 7
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").symlink_to(folder.parent)
    for name, samples in (("query.wav", speech[0]), ("other.wav", speech[1]), ("lecture.flac", noise(31, 3))):
        soundfile.write(name, samples, RATE)
    for name, colour in (("first.png", "red"), ("second.png", "blue"), ("third.png", "green")):
        Image.new("RGB", (60, 40), colour).save(name)
    names = {}
    for example in examples:
        exec(example, names)
    assert names["frames"].ndim == 3 and names["embedding"].shape == names["image"].shape
