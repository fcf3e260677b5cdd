"""Scenes: what is drawn, what is said about it, and how the splits keep apart."""

import hashlib
import inspect
import os
import subprocess
import sys

import numpy as np
import pytest

from speechclip_plus.trainer.spoken_scenes.scenes import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    MAX_WORDS,
    MIN_WORDS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    SceneObject,
    draw_background,
    sample_scenes,
    scene_words,
    shape_outlines,
    split_contents,
    split_of,
)


def objects_of(contents):
    return {(first, second, relation) for _, first, second, relation in contents}


def object_pixels(scene, size=64):
    """Where each object was painted: two boolean (H, W), found by drawing the scene with and without the objects."""
    image = np.asarray(scene.draw(size), dtype=np.float32)
    behind = np.clip(draw_background(scene.background, np.random.default_rng(scene.drawing_seed), size), 0, 255)
    return np.abs(image - np.floor(behind)).sum(-1) > 24


def test_the_same_arguments_give_the_same_scenes_pictures_and_captions():
    runs = []
    for _ in range(2):
        scenes = sample_scenes("train", 20, seed=5)
        rng = np.random.default_rng(1)
        runs.append(([s.draw().tobytes() for s in scenes], [s.caption(rng) for s in scenes], scenes))
    assert runs[0] == runs[1]


def digest_of_some_scenes():
    rng = np.random.default_rng(0)
    parts = [(s, s.caption(rng), s.draw().tobytes()) for s in sample_scenes("test", 5, 1)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def test_scenes_are_the_same_in_a_process_with_another_hash_seed():
    code = inspect.getsource(digest_of_some_scenes) + "print(digest_of_some_scenes())"
    header = (
        "import hashlib\nimport numpy as np\nfrom speechclip_plus.trainer.spoken_scenes.scenes import sample_scenes\n"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-c", header + code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest_of_some_scenes()


def test_another_seed_gives_other_scenes():
    assert sample_scenes("test", 20, seed=0) != sample_scenes("test", 20, seed=1)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one():
    assert sample_scenes("train", 10, seed=3) == sample_scenes("train", 50, seed=3)[:10]


def test_no_content_is_in_two_splits_and_every_content_is_in_one():
    parts = [objects_of(split_contents(split)) for split in SPLITS]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    objects = len(SIZES) * len(COLOURS) * len(SHAPES)
    assert sum(map(len, parts)) == 2 * objects * (objects - len(SIZES))
    shares = [len(part) / sum(map(len, parts)) for part in parts]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


@pytest.mark.parametrize("split", SPLITS)
def test_sampled_scenes_belong_to_the_split_asked_for(split):
    assert {scene.split for scene in sample_scenes(split, 300, seed=2)} == {split}


def test_the_split_of_a_content_never_changes():
    # Shipped weights were trained on these splits: a change here would leak test scenes into them.
    found = [split_of(f"big {colour} star|small blue ring|left") for colour in COLOURS]
    assert found == ["train", "train", "train", "validation", "train", "train", "train", "validation"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_content_occurs_twice_in_an_evaluation_split(split):
    scenes = sample_scenes(split, len(split_contents(split)), seed=0)
    assert len({scene.content for scene in scenes}) == len(scenes)


def test_training_contents_repeat_only_when_all_were_used_and_then_with_a_new_images():
    number = len(split_contents("train"))
    scenes = sample_scenes("train", number + 100, seed=0)
    assert len({scene.content for scene in scenes[:number]}) == number
    assert len({scene.image_id for scene in scenes}) == len(scenes)
    late = scenes[-1]
    early = next(scene for scene in scenes if scene.content == late.content)
    assert early.image_id != late.image_id and early.draw().tobytes() != late.draw().tobytes()


def test_image_ids_differ_between_splits():
    ids = [{scene.image_id for scene in sample_scenes(split, 500)} for split in SPLITS]
    assert not ids[0] & ids[1] and not ids[0] & ids[2] and not ids[1] & ids[2]


def test_captions_name_both_objects_the_relation_and_no_other_place():
    rng = np.random.default_rng(0)
    told_by = {
        word: relation
        for relation, phrases in RELATIONS.items()
        for word in {word for phrase in phrases for word in phrase.split()} - {"on", "to", "the", "of"}
    }
    for scene in sample_scenes("train", 400, seed=1):
        text = scene.caption(rng)
        words = text.split()
        places = []
        for o in (scene.first, scene.second):
            phrases = [f"{size} {o.colour} {o.shape}" for size in SIZES[o.size]]
            places.append(max(text.find(phrase) for phrase in phrases))
        assert min(places) >= 0, text
        said = [relation for word, relation in told_by.items() if word in words]
        assert len(said) == 1, text
        # With "has" and "with" the relation says where the object named last lies.
        spoken_first = "first" if places[0] < places[1] else "second"
        where = said[0] if not {"has", "with"} & set(words) else INVERSE[said[0]]
        assert where == (scene.relation if spoken_first == "first" else INVERSE[scene.relation]), (text, scene)


def test_captions_have_8_to_14_words_all_of_them_listed():
    rng = np.random.default_rng(0)
    known, used = set(scene_words()), set()
    for scene in sample_scenes("train", 1000, seed=1):
        words = scene.caption(rng).split()
        assert MIN_WORDS <= len(words) <= MAX_WORDS
        used.update(words)
    assert used == known


def test_a_background_that_is_mentioned_is_the_one_drawn_and_many_captions_mention_one():
    rng = np.random.default_rng(0)
    scenes = sample_scenes("train", 400, seed=1)
    mentioned = 0
    for scene in scenes:
        padded = f" {scene.caption(rng)} "
        found = {name for name, phrases in BACKGROUNDS.items() for phrase in phrases if f" {phrase} " in padded}
        assert found <= {scene.background}
        mentioned += bool(found)
    assert 0.4 < mentioned / len(scenes) < 0.8


def test_captions_of_one_scene_differ():
    texts = sample_scenes("train", 1)[0].captions(12, np.random.default_rng(0))
    assert len(set(texts)) == 12


@pytest.mark.parametrize("relation", ["left", "above"])
def test_objects_lie_as_the_relation_says(relation):
    scenes = [s for s in sample_scenes("train", 400, seed=4) if s.relation == relation][:60]
    axis = 1 if relation == "left" else 0
    for scene in scenes:
        changed = object_pixels(scene)
        profile = changed.any(axis=1 - axis)
        filled = np.flatnonzero(profile)
        # Somewhere between the first and the last painted line there is a gap: the two objects are apart.
        assert not profile[filled[0] : filled[-1]].all(), scene


def test_big_objects_cover_more_than_small_ones_of_the_same_shape():
    for shape in SHAPES:
        areas = {}
        for size in SIZES:
            pair = [SceneObject(size, colour, shape) for colour in ("red", "blue")]
            scenes = [Scene(*pair, "left", "white", n, n) for n in range(8)]
            areas[size] = [object_pixels(scene).sum() for scene in scenes]
        assert min(areas["big"]) > 1.7 * max(areas["small"]), shape


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_has_the_colour_that_is_said(colour):
    other = next(name for name in COLOURS if name != colour)
    scene = Scene(SceneObject("big", colour, "square"), SceneObject("small", other, "ring"), "left", "grey", 0, 3)
    image = np.asarray(scene.draw(), dtype=np.float32)
    patch = image[object_pixels(scene)]
    nearest = [min(COLOURS, key=lambda name, p=p: np.abs(np.float32(COLOURS[name]) - p).sum()) for p in patch]
    assert nearest.count(colour) == max(nearest.count(name) for name in COLOURS)


def test_pictures_of_the_same_scene_with_other_jitter_differ_everywhere_a_little():
    first, second = SceneObject("big", "red", "star"), SceneObject("small", "green", "moon")
    images = [np.asarray(Scene(first, second, "above", "sand", 0, seed).draw()) for seed in range(3)]
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in images)
    assert (images[0] != images[1]).mean() > 0.5 and (images[1] != images[2]).mean() > 0.5


def test_pictures_can_be_drawn_larger():
    assert sample_scenes("test", 1)[0].draw(224).size == (224, 224)


def test_an_unknown_split_is_named_with_the_choices():
    with pytest.raises(ValueError, match="'dev'.*train, validation, test"):
        sample_scenes("dev", 3)


def test_more_test_scenes_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="choose 0 to"):
        sample_scenes("test", 10**6)


@pytest.mark.parametrize(
    "call", [lambda: shape_outlines("cube", 0.0), lambda: draw_background("mud", np.random.default_rng(0))]
)
def test_unknown_things_are_not_drawn(call):
    with pytest.raises(ValueError, match="choose"):
        call()
