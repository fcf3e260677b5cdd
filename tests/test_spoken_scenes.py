"""The data set of spoken scenes, and loading data sets by name."""

import io
import json

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

from speechclip_plus.trainer.data.load import load_speech_image_dataset
from speechclip_plus.trainer.spoken_scenes.dataset import build_spoken_scenes
from speechclip_plus.trainer.spoken_scenes.espeak import TEST_VOICES, TRAIN_VOICES, VALIDATION_VOICES
from speechclip_plus.trainer.spoken_scenes.scenes import sample_scenes

COLUMNS = ["audio", "image", "image_id", "text", "caption_id", "speaker"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("spoken_scenes"))


@pytest.fixture(scope="module")
def train(cache):
    return load_speech_image_dataset(
        "spoken_scenes", split="train", num_scenes=5, captions_per_scene=3, seed=1, cache_dir=cache, num_proc=1
    )


@pytest.fixture(scope="module")
def test(cache):
    return load_speech_image_dataset("spoken_scenes", split="test", num_scenes=6, cache_dir=cache, num_proc=1)


def test_the_columns_are_those_of_every_data_set(train):
    assert train.column_names == [*COLUMNS, "words"]
    assert train.features["audio"] == datasets.Audio(sampling_rate=16_000, decode=False)
    assert train.features["image"] == datasets.Image(decode=False)
    assert train.features["image_id"].dtype == "int64"
    assert {train.features[name].dtype for name in ("text", "caption_id", "speaker")} == {"string"}


def test_words_are_those_of_the_caption_in_order_and_within_the_recording(train):
    for row in train:
        spoken, caption = [word["word"] for word in row["words"]], row["text"].split()
        assert spoken[0] == caption[0] and set(spoken) <= set(caption) and len(spoken) > len(caption) / 2
        seconds = soundfile.info(io.BytesIO(row["audio"]["bytes"])).duration
        times = [time for word in row["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= seconds + 1e-4


def test_audio_is_16_khz_16_bit_mono_of_a_few_seconds_and_not_silent(train):
    for row in train:
        info = soundfile.info(io.BytesIO(row["audio"]["bytes"]))
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert 1.5 < info.duration < 8
        assert np.abs(soundfile.read(io.BytesIO(row["audio"]["bytes"]))[0]).max() > 0.05


def test_rows_of_one_picture_share_its_id_and_have_their_own_caption_and_voice(train):
    assert len(train) == 15 and len(set(train["image_id"])) == 5 and len(set(train["caption_id"])) == 15
    for image_id in set(train["image_id"]):
        rows = [row for row in train if row["image_id"] == image_id]
        assert len({row["image"]["bytes"] for row in rows}) == 1
        assert len({row["text"] for row in rows}) == len({row["speaker"] for row in rows}) == 3


def test_the_picture_is_the_scene_that_the_text_describes(train):
    scenes = {scene.image_id: scene for scene in sample_scenes("train", 5, seed=1)}
    for row in train:
        scene = scenes[row["image_id"]]
        assert {scene.first.colour, scene.second.shape} <= set(row["text"].split())
        assert np.array_equal(Image.open(io.BytesIO(row["image"]["bytes"])), np.asarray(scene.draw()))


def test_each_split_has_its_own_voices(train, test):
    assert set(train["speaker"]) <= set(TRAIN_VOICES) and set(test["speaker"]) <= set(TEST_VOICES)
    assert not set(TRAIN_VOICES) & {*VALIDATION_VOICES, *TEST_VOICES}
    assert not set(VALIDATION_VOICES) & set(TEST_VOICES)


def test_the_same_arguments_make_the_same_bytes_anywhere(train, tmp_path):
    again = build_spoken_scenes("train", 5, 3, seed=1, cache_dir=str(tmp_path), num_proc=1)
    assert again.to_list() == train.to_list()


def test_a_second_call_reads_the_cache(test, cache, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the rows were made anew")

    monkeypatch.setattr("speechclip_plus.trainer.spoken_scenes.dataset.scene_rows", fail)
    again = build_spoken_scenes("test", 6, cache_dir=cache, num_proc=1)
    assert again.to_list() == test.to_list()


def test_another_seed_is_not_served_from_the_cache(test, cache):
    other = build_spoken_scenes("test", 6, seed=1, cache_dir=cache, num_proc=1)
    assert set(other["text"]) != set(test["text"])


def test_a_larger_data_set_begins_with_the_smaller_one(test, cache):
    larger = build_spoken_scenes("test", 7, cache_dir=cache, num_proc=1)
    assert larger.select(range(6)).to_list() == test.to_list()


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="'dev'.*train, validation, test"):
        load_speech_image_dataset("spoken_scenes", split="dev")


@pytest.mark.parametrize("option", ["num_scenes", "captions_per_scene"])
def test_a_count_below_one_is_an_error(option):
    with pytest.raises(ValueError, match=f"{option}=0"):
        load_speech_image_dataset("spoken_scenes", **{option: 0})


def test_more_test_scenes_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="choose 0 to"):
        load_speech_image_dataset("spoken_scenes", split="test", num_scenes=10**5)


def test_an_unknown_data_set_is_named_with_the_choices():
    with pytest.raises(ValueError, match="'flikr8k'.*folder, spoken_scenes"):
        load_speech_image_dataset("flikr8k")


def test_an_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="scenes_per_caption"):
        load_speech_image_dataset("spoken_scenes", scenes_per_caption=2)


def test_spoken_scenes_take_no_folder(tmp_path):
    with pytest.raises(ValueError, match="data_dir"):
        load_speech_image_dataset("spoken_scenes", data_dir=tmp_path)


@pytest.fixture
def folder(tmp_path):
    for number in range(2):
        Image.new("RGB", (8, 8), (90 * number, 0, 0)).save(tmp_path / f"{number}.png")
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(1600), 16_000)
    return tmp_path


def write_csv(folder, *lines):
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_folder_with_csv_gives_the_common_columns_and_equal_ids_for_equal_images(folder):
    write_csv(
        folder, "audio,image,text,speaker", "0.wav,0.png,one,ann", "1.wav,0.png,two,bob", "2.wav,1.png,three,ann"
    )
    data = load_speech_image_dataset("folder", data_dir=folder)
    assert data.column_names == COLUMNS and data.features["audio"].sampling_rate == 16_000
    assert data["image_id"][:] == [0, 0, 1]
    assert data["text"][:] == ["one", "two", "three"] and data["speaker"][:] == ["ann", "bob", "ann"]
    assert soundfile.info(data[2]["audio"]["path"]).frames == 1600
    assert Image.open(data[2]["image"]["path"]).getpixel((0, 0)) == (90, 0, 0)


def test_a_path_may_be_given_instead_of_a_name_and_jsonl_instead_of_csv(folder):
    rows = [{"audio": "0.wav", "image": "1.png", "text": 'a "red", one'}, {"audio": "1.wav", "image": "0.png"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert load_speech_image_dataset(folder)["text"][:] == ['a "red", one', ""]


def test_a_column_of_splits_divides_a_folder(folder):
    write_csv(folder, "audio,image,text,split", "0.wav,0.png,one,train", "1.wav,1.png,two,test")
    assert load_speech_image_dataset("folder", split="test", data_dir=folder)["text"][:] == ["two"]


def test_one_folder_per_split_is_understood(folder):
    write_csv(folder, "audio,image,text", "0.wav,0.png,one")
    root = folder.rename(folder.parent / "test").parent
    assert load_speech_image_dataset("folder", split="test", data_dir=root)["text"] == ["one"]


def test_a_split_that_a_folder_does_not_have_is_an_error(folder):
    write_csv(folder, "audio,image,text", "0.wav,0.png,one")
    with pytest.raises(ValueError, match="'test'.*it has train"):
        load_speech_image_dataset("folder", split="test", data_dir=folder)


def test_a_missing_file_is_named_with_its_row(folder):
    write_csv(folder, "audio,image,text", "0.wav,0.png,one", "9.wav,0.png,two")
    with pytest.raises(FileNotFoundError, match="row 2.*9.wav"):
        load_speech_image_dataset("folder", data_dir=folder)


def test_missing_columns_are_named(folder):
    write_csv(folder, "file,image,text", "0.wav,0.png,one")
    with pytest.raises(ValueError, match="row 1 .line 2. has no audio.*file, image, text"):
        load_speech_image_dataset("folder", data_dir=folder)


def test_a_folder_without_metadata_says_what_to_write(folder):
    with pytest.raises(FileNotFoundError, match="metadata.csv nor metadata.jsonl"):
        load_speech_image_dataset("folder", data_dir=folder)


def test_metadata_without_rows_is_an_error(folder):
    write_csv(folder, "audio,image,text")
    with pytest.raises(ValueError, match="no rows"):
        load_speech_image_dataset("folder", data_dir=folder)


def test_a_broken_line_of_jsonl_is_named(folder):
    (folder / "metadata.jsonl").write_text('{"audio": "0.wav", "image": "0.png"}\n{"audio"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        load_speech_image_dataset("folder", data_dir=folder)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_speech_image_dataset("folder", data_dir=tmp_path / "nowhere")


def test_the_folder_data_set_without_a_folder_is_an_error():
    with pytest.raises(ValueError, match="needs data_dir"):
        load_speech_image_dataset("folder")
