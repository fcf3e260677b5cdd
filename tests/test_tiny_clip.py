"""The tiny CLIP that ships with the package, and the script that trained it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_captions import STYLES, build_vocabulary, worn_caption
from train_clip import (
    contrastive_loss,
    embed_texts,
    main,
    measure,
    padded,
    to_pixels,
)
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

from speechclip_plus.trainer.spoken_scenes.scenes import sample_scenes, scene_words
from speechclip_plus.trainer.tiny_backbones import tiny_backbone

# Percent on 200 unseen scenes, well below what was measured.
FLOORS = {
    "sentence/text_to_image_r1": 70.0,
    "sentence/text_to_image_r10": 97.0,
    "telegram/text_to_image_r1": 70.0,
    "keywords/text_to_image_r10": 85.0,
}


@pytest.fixture(scope="module")
def folder():
    return Path(tiny_backbone("clip"))


@pytest.fixture(scope="module")
def model(folder):
    return CLIPModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return CLIPProcessor.from_pretrained(folder)


def test_every_word_of_the_captions_is_one_subword(processor):
    for word in scene_words():
        ids = processor.tokenizer(word, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1 and processor.tokenizer.decode(ids) == word


def test_a_caption_survives_the_tokenizer(processor):
    text = sample_scenes("test", 1)[0].caption(np.random.default_rng(0))
    ids = processor.tokenizer(text)["input_ids"]
    assert len(ids) == len(text.split()) + 2
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_text_outside_the_captions_is_tokenised_without_unknowns(processor):
    text = "zebras don't fly: 42 €, größe!"
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.unk_token_id not in ids
    assert processor.tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_configuration_and_tokenizer_agree_on_the_special_subwords(model, processor, folder):
    tokenizer, config = processor.tokenizer, model.config.text_config
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id != 2
    assert config.vocab_size == len(tokenizer) == len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))


def test_the_vocabulary_files_and_the_fast_tokenizer_agree(folder, processor):
    vocabulary, merges = build_vocabulary(scene_words())
    assert processor.tokenizer.get_vocab() == vocabulary
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert [tuple(line.split()) for line in lines[1:]] == merges
    assert (
        AutoTokenizer.from_pretrained(folder)("a red moon")["input_ids"]
        == processor.tokenizer("a red moon")["input_ids"]
    )


def test_padding_does_not_change_a_text_embedding(model, processor):
    texts = [
        "a big red star above a small blue ring",
        "we see the little green moon to the left of the large pink heart",
    ]
    together = processor.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    alone = processor.tokenizer(texts[:1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.allclose(embed_texts(model, together)[0], embed_texts(model, alone)[0], atol=1e-5)


def test_the_image_processor_gives_what_the_model_was_trained_on(processor):
    scenes = sample_scenes("test", 3)
    given = processor(images=[scene.draw() for scene in scenes], return_tensors="pt")["pixel_values"]
    assert torch.allclose(given, to_pixels(np.stack([np.asarray(s.draw()) for s in scenes])), atol=1e-5)


def test_weights_are_stored_in_half_precision_small_and_loaded_in_single(model, folder):
    assert model.dtype == torch.float32
    assert (folder / "model.safetensors").stat().st_size < 4_000_000


def test_unseen_scenes_are_found_by_their_captions(model, processor):
    found = measure(model, sample_scenes("test", 200, seed=7), processor.tokenizer.get_vocab(), seed=7)
    assert {name: found[name] for name, floor in FLOORS.items() if found[name] < floor} == {}


def test_the_card_repeats_the_measured_numbers(folder):
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    for split, measured in metrics.items():
        for style in STYLES:
            row = re.search(rf"^\| {style} \| {split} \| (.*) \|$", card, re.MULTILINE)
            keys = ("text_to_image_r1", "text_to_image_r10", "image_to_text_r1", "image_to_text_r10")
            assert [float(cell) for cell in row[1].split("|")] == [measured[f"{style}/{key}"] for key in keys]


def test_worn_captions_keep_all_content_words_in_telegrams_and_are_noisy_as_keywords():
    vocabulary, _ = build_vocabulary(scene_words())
    scene, rng = sample_scenes("train", 1)[0], np.random.default_rng(0)
    content = {vocabulary[f"{word}</w>"] for o in (scene.first, scene.second) for word in (o.colour, o.shape)}
    telegrams = [worn_caption(scene, rng, "telegram", vocabulary) for _ in range(50)]
    assert all(content <= set(ids) for ids in telegrams)
    sentences = [worn_caption(scene, rng, "sentence", vocabulary) for _ in range(50)]
    assert sum(map(len, telegrams)) < sum(map(len, sentences))
    keywords = [worn_caption(scene, rng, "keywords", vocabulary) for _ in range(50)]
    assert any(not content <= set(ids) for ids in keywords)
    assert any(a == b for ids in keywords for a, b in zip(ids, ids[1:], strict=False))


def test_an_unknown_style_of_caption_is_an_error():
    with pytest.raises(ValueError, match="sentence, telegram, keywords"):
        worn_caption(sample_scenes("train", 1)[0], np.random.default_rng(0), "poem", build_vocabulary(["a"])[0])


def test_other_drawings_of_the_same_content_are_no_negatives(model, processor):
    scenes = sample_scenes("test", 4)
    vocabulary = processor.tokenizer.get_vocab()
    rng = np.random.default_rng(0)
    pixels = to_pixels(np.stack([np.asarray(scene.draw()) for scene in scenes]))
    ids = padded([worn_caption(scene, rng, "sentence", vocabulary) for scene in scenes], vocabulary)
    twice = torch.arange(8) % 4
    with torch.no_grad():
        once = contrastive_loss(model, pixels, ids, twice[:4])
        doubled = contrastive_loss(model, torch.cat([pixels, pixels]), torch.cat([ids, ids]), twice)
    # Each pair now meets two drawings of every other content: the denominator's wrong part doubles, no more.
    assert once < doubled < once * 2 + 1e-6


@pytest.mark.slow
def test_the_training_script_writes_a_folder_that_loads(tmp_path):
    small = ["--steps", "2", "--batch", "8", "--images", "40", "--width", "32", "--image-layers", "1"]
    assert main([str(tmp_path / "clip"), *small, "--text-layers", "1", "--threads", "1"]) == 0
    assert CLIPModel.from_pretrained(tmp_path / "clip").config.projection_dim == 32
    assert CLIPProcessor.from_pretrained(tmp_path / "clip").tokenizer("red moon")["input_ids"]
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_an_unknown_tiny_backbone_is_an_error():
    with pytest.raises(ValueError, match="'vit'.*hubert, clip"):
        tiny_backbone("vit")
