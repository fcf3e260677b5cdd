"""The corpora by their own files, in miniature: the layouts and the faults of the published archives."""

import csv
import io
import json
import logging
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from datasets.distributed import split_dataset_by_node
from PIL import Image

from speechclip_plus.modeling_speechclip_plus.audio_utils import load_audio
from speechclip_plus.trainer.collator import SpeechImageCollator
from speechclip_plus.trainer.data.load import load_speech_image_dataset
from speechclip_plus.trainer.data.schema import Findings
from speechclip_plus.trainer.data.stamps import STAMPS, read_stamps
from speechclip_plus.trainer.spoken_scenes.espeak import TEST_VOICES, TRAIN_VOICES

COLUMNS = {
    "audio": datasets.Audio(sampling_rate=16_000, decode=False),
    "image": datasets.Image(decode=False),
    "image_id": datasets.Value("int64"),
    "text": datasets.Value("string"),
    "caption_id": datasets.Value("string"),
    "speaker": datasets.Value("string"),
}


def write_wav(path, samples=1600, value=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(samples, value), 16_000, format=path.suffix[1:].upper())


def write_picture(path, colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), colour).save(path)


def write_lines(path, *lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode("utf-8"))


# ------------------------------------------------------------------------------------------------------- flickr8k

NAMES = {"train": ["11_a", "12_b", "2258277193_586949ec62"], "validation": ["21_c"], "test": ["31_d", "32_e"]}
LISTS = {"train": "train", "validation": "dev", "test": "test"}


@pytest.fixture
def flickr8k(tmp_path):
    """Two of the archives in their own folders, a third unpacked here, with what is wrong in the true ones."""
    text, audio = tmp_path / "Flickr8k_text", tmp_path / "flickr_audio"
    tokens, said, spoken = [], [], []
    for split, names in NAMES.items():
        # Windows line ends and blank lines at the end, as some copies have them.
        write_lines(text / f"Flickr_8k.{LISTS[split]}Images.txt", *(f"{n}.jpg" for n in names), "", "", end="\r\n")
        for name in names:
            stray = ".1" if name.startswith("2258277193") else ""
            if not stray:  # the picture of this name is in a list and not in the archive
                write_picture(tmp_path / "Flicker8k_Dataset" / f"{name}.jpg")
            for k in range(5):
                tokens.append(f"{name}.jpg{stray}#{k}\tCaption {k} of {name} , with a comma .")
                if (name, k) != ("12_b", 3):  # a recording that does not exist
                    write_wav(audio / "wavs" / f"{name}_{k}.wav")
                    said.append(f"{name}_{k}.wav {name}.jpg #{k}")
                    spoken.append(f"{name}_{k}.wav {k + 1}")
    write_lines(text / "Flickr8k.token.txt", *tokens)
    write_lines(text / "Flickr8k.lemma.token.txt", *(line.lower() for line in tokens))
    write_lines(audio / "wav2capt.txt", *said)
    write_lines(audio / "wav2spk.txt", *spoken)
    (audio / "wavs" / "._11_a_0.wav").write_bytes(b"resource fork")
    (audio / "wavs" / "readme.txt").write_text("stray")
    write_wav(audio / "wavs" / "99_z_0.wav")
    write_picture(tmp_path / "Flicker8k_Dataset" / "98_y.jpg")
    return tmp_path


def test_flickr8k_has_the_common_columns_and_the_official_split(flickr8k):
    for split, pictures in {"train": 2, "validation": 1, "test": 2}.items():
        data = load_speech_image_dataset("flickr8k", split=split, data_dir=flickr8k)
        assert data.features == datasets.Features(COLUMNS)
        assert len(set(data["image_id"])) == pictures
        assert {row["caption_id"].rsplit("_", 1)[0] for row in data} <= set(NAMES[split])


def test_recording_k_of_flickr8k_says_caption_k_of_its_picture(flickr8k):
    data = load_speech_image_dataset("flickr8k", split="test", data_dir=flickr8k)
    assert len(data) == 10
    row = data[7]
    assert row["caption_id"] == "32_e_2" and row["text"] == "Caption 2 of 32_e , with a comma ."
    assert row["audio"]["path"].endswith("wavs/32_e_2.wav") and row["image"]["path"].endswith("32_e.jpg")
    assert row["speaker"] == "3"


def test_wav2capt_decides_which_caption_a_recording_says(flickr8k):
    file = flickr8k / "flickr_audio" / "wav2capt.txt"
    file.write_text(file.read_text().replace("31_d_0.wav 31_d.jpg #0", "31_d_0.wav 31_d.jpg #9"))
    data = load_speech_image_dataset("flickr8k", split="test", data_dir=flickr8k)
    texts = dict(zip(data["caption_id"], data["text"], strict=True))
    assert texts["31_d_0"] == "" and texts["31_d_1"].startswith("Caption 1")


def test_what_is_wrong_with_flickr8k_is_counted_in_one_line_of_the_log(flickr8k, caplog):
    with caplog.at_level(logging.WARNING):
        data = load_speech_image_dataset("flickr8k", data_dir=flickr8k)
    assert len(data) == 9  # 3 pictures of 5, less the missing picture and the missing recording
    (record,) = [record for record in caplog.records if record.name.startswith("speechclip_plus")]
    message = record.getMessage()
    for expected in (
        "recordings missing: 1 (12_b_3.wav)",
        "pictures of the list missing: 1 (2258277193_586949ec62.jpg)",
        "captions of Flickr8k.token.txt with a stray ending of the picture's name: 5 (",
        "stray files beside the recordings: 2 (._11_a_0.wav, readme.txt)",
        "recordings of pictures in none of the lists: 1 (99_z_0.wav)",
        "pictures in none of the lists: 1 (98_y.jpg)",
    ):
        assert expected in message


def test_flickr8k_in_one_folder_with_the_captions_of_kaggle(flickr8k, tmp_path):
    (flickr8k / "Flicker8k_Dataset").rename(flickr8k / "Images")
    for file in (flickr8k / "Flickr8k_text").glob("Flickr_8k.*"):
        file.rename(flickr8k / file.name)
    with (flickr8k / "captions.txt").open("w", newline="") as stream:
        stream.write("image,caption\n")
        for name in NAMES["test"]:
            for k in range(4):
                csv.writer(stream).writerow([f"{name}.jpg", f"{k}, quoted"])
            stream.write(f"{name}.jpg,4, not quoted\n")
    for file in (flickr8k / "Flickr8k_text").iterdir():
        file.unlink()
    (flickr8k / "flickr_audio" / "wav2capt.txt").unlink()
    (flickr8k / "flickr_audio" / "wav2spk.txt").unlink()
    data = load_speech_image_dataset("flickr8k", split="test", data_dir=flickr8k)
    assert data["text"][5:] == ["0, quoted", "1, quoted", "2, quoted", "3, quoted", "4, not quoted"]
    assert set(data["speaker"]) == {""}


def test_the_lemmas_of_flickr8k_are_taken_if_there_is_nothing_else(flickr8k, caplog):
    (flickr8k / "Flickr8k_text" / "Flickr8k.token.txt").unlink()
    data = load_speech_image_dataset("flickr8k", split="validation", data_dir=flickr8k)
    assert data["text"][0] == "caption 0 of 21_c , with a comma ."
    assert "captions that are lemmas" in caplog.text


@pytest.mark.parametrize(
    "gone, named", [("Flicker8k_Dataset", "pictures"), ("flickr_audio", "recordings"), ("Flickr8k_text", "list")]
)
def test_a_missing_part_of_flickr8k_says_what_to_download(flickr8k, gone, named):
    (flickr8k / gone).rename(flickr8k / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{named}.*flickr_audio.tar.gz.*groups.csail.mit.edu/sls"):
        load_speech_image_dataset("flickr8k", data_dir=flickr8k)


def test_flickr8k_without_any_folder_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="needs data_dir.*Flickr8k_text.zip"):
        load_speech_image_dataset("flickr8k")
    with pytest.raises(FileNotFoundError, match="Flickr8k_Dataset.zip"):
        load_speech_image_dataset("flickr8k", data_dir=tmp_path / "nowhere")


def test_rows_of_flickr8k_make_a_batch(flickr8k, tiny_processor):
    data = load_speech_image_dataset("flickr8k", split="test", data_dir=flickr8k)
    batch = SpeechImageCollator(tiny_processor)([data[0], data[9]])
    assert batch["input_values"].shape == (2, 1600) and batch["pixel_values"].shape == (2, 3, 32, 32)


# -------------------------------------------------------------------------------------------- broken and streamed


def test_broken_items_are_left_out_and_listed_when_asked(flickr8k, caplog):
    wavs = flickr8k / "flickr_audio" / "wavs"
    (wavs / "31_d_0.wav").write_bytes(b"RIFF and nothing more")
    write_wav(wavs / "31_d_1.wav", samples=0)
    write_wav(wavs / "31_d_2.wav", samples=399)
    soundfile.write(wavs / "31_d_3.wav", np.array([np.nan] * 800, dtype=np.float32), 16_000, subtype="FLOAT")
    picture = flickr8k / "Flicker8k_Dataset" / "32_e.jpg"
    picture.write_bytes(picture.read_bytes()[:-200])
    data = load_speech_image_dataset("flickr8k", split="test", data_dir=flickr8k, on_error="skip")
    assert data["caption_id"][:] == ["31_d_4"]
    assert "broken or missing: 5 (" in caplog.text  # the picture once, though five captions have it
    for name in ("31_d_0.wav", "31_d_1.wav", "31_d_2.wav", "31_d_3.wav", "32_e.jpg"):
        assert name in caplog.text


def test_a_broken_item_names_its_file_when_it_is_used(flickr8k):
    (flickr8k / "flickr_audio" / "wavs" / "31_d_0.wav").write_bytes(b"RIFF and nothing more")
    data = load_speech_image_dataset("flickr8k", split="test", data_dir=flickr8k)
    with pytest.raises(ValueError, match="31_d_0.wav"):
        load_audio(data[0]["audio"])


def test_nothing_readable_is_an_error(flickr8k):
    for file in (flickr8k / "flickr_audio" / "wavs").glob("21_c_*"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 5 rows"):
        load_speech_image_dataset("flickr8k", split="validation", data_dir=flickr8k, on_error="skip")


def test_another_way_to_treat_errors_is_an_error(flickr8k):
    with pytest.raises(ValueError, match="'ignore': choose raise or skip"):
        load_speech_image_dataset("flickr8k", data_dir=flickr8k, on_error="ignore")


def test_a_stream_has_the_same_rows_and_can_be_shared_and_shuffled(flickr8k):
    data = load_speech_image_dataset("flickr8k", split="test", data_dir=flickr8k)
    stream = load_speech_image_dataset("flickr8k", split="test", data_dir=flickr8k, streaming=True)
    assert isinstance(stream, datasets.IterableDataset) and stream.features == data.features
    assert list(stream) == list(data)
    parts = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
    assert sorted(row["caption_id"] for part in parts for row in part) == sorted(data["caption_id"])
    assert sorted(row["caption_id"] for row in stream.shuffle(seed=1, buffer_size=4)) == sorted(data["caption_id"])


def test_a_stream_leaves_the_same_items_out(flickr8k):
    (flickr8k / "flickr_audio" / "wavs" / "21_c_1.wav").write_bytes(b"")
    arguments = {"split": "validation", "data_dir": flickr8k, "on_error": "skip"}
    stream = load_speech_image_dataset("flickr8k", streaming=True, **arguments)
    assert [row["caption_id"] for row in stream] == ["21_c_0", "21_c_2", "21_c_3", "21_c_4"]


# ----------------------------------------------------------------------------------------------------- spokencoco


def coco_entry(folder, split, number, captions=2, **more):
    image = f"{split}2014/COCO_{split}2014_{number:012d}.jpg"
    write_picture(folder / "mscoco" / image)
    spoken = []
    for k in range(captions):
        wav = f"wavs/{split}/0/m1-{number}-{k}.wav"
        write_wav(folder / wav)
        spoken.append({"text": f"TEXT {number} {k}", "speaker": f"m{k}", "uttid": f"m1-{number}-{k}", "wav": wav})
    return {"image": image, "captions": spoken, **more}


def write_list(folder, name, entries):
    bases = {"image_base_path": "/data/their/coco", "audio_base_path": "/data/their/SpokenCOCO"}
    (folder / name).write_text(json.dumps({"data": entries, **bases}))


@pytest.fixture
def spokencoco(tmp_path):
    write_list(tmp_path, "SpokenCOCO_train.json", [coco_entry(tmp_path, "train", n) for n in (9, 25)])
    write_list(tmp_path, "SpokenCOCO_val.json", [coco_entry(tmp_path, "val", 42)])
    return tmp_path


def test_spokencoco_of_the_release_has_the_common_columns_and_cocos_ids(spokencoco):
    data = load_speech_image_dataset("spokencoco", data_dir=spokencoco)
    assert data.features == datasets.Features(COLUMNS)
    assert data["image_id"][:] == [9, 9, 25, 25]
    assert (data[3]["text"], data[3]["caption_id"], data[3]["speaker"]) == ("TEXT 25 1", "m1-25-1", "m1")
    assert soundfile.info(data[3]["audio"]["path"]).frames == 1600
    assert load_speech_image_dataset("spokencoco", split="validation", data_dir=spokencoco)["image_id"][:] == [42, 42]


def test_spokencoco_without_karpathys_lists_has_no_test_split(spokencoco):
    with pytest.raises(ValueError, match="lacks SpokenCOCO_ksplit_test.json"):
        load_speech_image_dataset("spokencoco", split="test", data_dir=spokencoco)


def test_karpathys_split_is_taken_where_it_is_with_its_own_ids(spokencoco):
    for number, split in enumerate(("train", "val", "test")):
        entries = [coco_entry(spokencoco, "val", 100 + number, captions=1, reassign_id=7 + number)]
        write_list(spokencoco, f"SpokenCOCO_ksplit_{split}.json", entries)
    data = load_speech_image_dataset("spokencoco", split="test", data_dir=spokencoco)
    assert data["image_id"][:] == [9] and data["caption_id"][:] == ["m1-102-0"]
    assert load_speech_image_dataset("spokencoco", data_dir=spokencoco)["caption_id"][:] == ["m1-100-0"]


def test_spokencoco_in_a_folder_of_its_own_beside_the_pictures(spokencoco):
    own = spokencoco / "SpokenCOCO"
    own.mkdir()
    for name in ("SpokenCOCO_train.json", "SpokenCOCO_val.json", "wavs"):
        (spokencoco / name).rename(own / name)
    (spokencoco / "mscoco" / "train2014").rename(spokencoco / "train2014")
    (spokencoco / "mscoco" / "val2014").rename(spokencoco / "val2014")
    assert len(load_speech_image_dataset("spokencoco", data_dir=spokencoco)) == 4


def test_a_recording_of_spokencoco_that_is_missing_is_named_or_skipped(spokencoco, caplog):
    (spokencoco / "wavs" / "train" / "0" / "m1-9-1.wav").unlink()
    with pytest.raises(FileNotFoundError, match="entry 0.*m1-9-1.wav"):
        load_speech_image_dataset("spokencoco", data_dir=spokencoco)
    data = load_speech_image_dataset("spokencoco", data_dir=spokencoco, on_error="skip")
    assert data["caption_id"][:] == ["m1-9-0", "m1-25-0", "m1-25-1"] and "m1-9-1.wav" in caplog.text


@pytest.mark.parametrize(
    "gone, named",
    [("mscoco", "cocodataset.org"), ("wavs", "data.csail.mit.edu"), ("SpokenCOCO_val.json", "SpokenCOCO_val.json")],
)
def test_a_missing_part_of_spokencoco_says_what_to_download(spokencoco, gone, named):
    (spokencoco / gone).rename(spokencoco / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"lacks.*{named}"):
        load_speech_image_dataset("spokencoco", split="validation", data_dir=spokencoco)


@pytest.mark.parametrize("content", ["{", "[]", '{"data": []}', '{"data": [{"image": "val2014/a_1.jpg"}]}'])
def test_a_list_of_spokencoco_that_is_none_is_named(spokencoco, content):
    (spokencoco / "SpokenCOCO_val.json").write_text(content)
    with pytest.raises(ValueError, match="SpokenCOCO_val.json.*(no JSON|no list|entry 0)"):
        load_speech_image_dataset("spokencoco", split="validation", data_dir=spokencoco)


# --------------------------------------------------------------------------------------------------------- stamps


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("stamps")
    for number in range(40):
        name = tmp_path / "animals" / f"beast{number}"
        write_picture(name.with_suffix(".png"), (6 * number, 0, 0))
        write_lines(name.with_suffix(".txt"), f"Beast number {number}.", f"fr.utf8=La bête {number}.", "nl.utf8=")
        write_wav(name.with_suffix(".ogg"))  # what the animal sounds like
        write_wav(tmp_path / "animals" / f"beast{number}_desc_fr.ogg")
        write_wav(tmp_path / "animals" / f"beast{number}_desc_pt_BR.wav")
    write_wav(tmp_path / "animals" / "beast0_desc.ogg")
    write_wav(tmp_path / "animals" / "beast0_desc_nl.ogg")
    (tmp_path / "animals" / "beast0_desc_da.ogg.ogg").write_bytes(b"stray")
    (tmp_path / "animals" / "drawn.svg").write_text("<svg/>")
    write_wav(tmp_path / "animals" / "drawn_desc_fr.ogg")
    return tmp_path


def all_splits(stamps, **options):
    return {
        split: load_speech_image_dataset("stamps", split=split, data_dir=stamps, **options)
        for split in ("train", "validation", "test")
    }


def test_stamps_have_their_recorded_descriptions_with_the_language_as_speaker(stamps):
    rows = [row for data in all_splits(stamps).values() for row in data]
    assert len(rows) == 82
    found = {row["speaker"]: row for row in rows if row["caption_id"].startswith("animals/beast0-")}
    assert {language: row["text"] for language, row in found.items()} == {
        "en": "Beast number 0.",
        "fr": "La bête 0.",
        "nl": "Beast number 0.",  # not translated
        "pt_BR": "Beast number 0.",
    }
    assert found["pt_BR"]["audio"]["path"].endswith("_desc_pt_BR.wav")
    assert len({row["image_id"] for row in found.values()}) == 1


def test_a_stamp_is_in_one_split_whatever_the_languages_and_the_other_stamps(stamps, tmp_path):
    splits = {split: set(data["image_id"]) for split, data in all_splits(stamps).items()}
    assert all(splits.values()) and sum(map(len, splits.values())) == 40 == len(set().union(*splits.values()))
    fewer = shutil.copytree(stamps, tmp_path / "fewer")
    (fewer / "animals" / "beast1.png").unlink()
    for split, data in all_splits(fewer, languages=["fr"]).items():
        assert set(data["speaker"]) == {"fr"} and set(data["image_id"]) <= splits[split]


def test_what_is_left_out_of_the_stamps_is_counted(stamps, caplog):
    load_speech_image_dataset("stamps", data_dir=stamps)
    for expected in (
        "sound effects, left out: 40 (",
        "pictures that are drawings (.svg) only, left out: 1 (animals/drawn.svg)",
        "descriptions of pictures left out or missing: 1 (animals/drawn_desc_fr.ogg)",
        "stray recordings: 1 (animals/beast0_desc_da.ogg.ogg)",
    ):
        assert expected in caplog.text


def test_a_language_without_descriptions_is_an_error(stamps):
    with pytest.raises(ValueError, match="no descriptions in it; there are en, fr, nl, pt_BR"):
        load_speech_image_dataset("stamps", data_dir=stamps, languages="fr,it")


def test_a_split_without_the_language_is_an_error(stamps):
    (split,) = {stamp.split for stamp in read_stamps(stamps, Findings()) if "nl" in stamp.recordings}
    other = "test" if split == "train" else "train"
    with pytest.raises(ValueError, match=f"split '{other}' is described in nl"):
        load_speech_image_dataset("stamps", split=other, data_dir=stamps, languages="nl")


def test_synthetic_voices_speak_the_captions_and_those_of_test_are_unheard(stamps, tmp_path):
    cache = str(tmp_path / "cache")
    made = all_splits(stamps, voices="synthetic", voices_per_picture=2, cache_dir=cache)
    recorded = all_splits(stamps)
    for split, data in made.items():
        assert data.features == datasets.Features(COLUMNS)
        assert set(data["image_id"]) == set(recorded[split]["image_id"])
        assert len(data) == 2 * len(set(data["image_id"])) == len(set(data["caption_id"]))
    assert set(made["train"]["speaker"]) <= set(TRAIN_VOICES) and set(made["test"]["speaker"]) <= set(TEST_VOICES)
    row = made["test"][0]
    assert row["text"].startswith("Beast number")
    assert 0.5 < soundfile.info(io.BytesIO(row["audio"]["bytes"])).duration < 6


def test_recordings_held_out_are_unheard_while_their_pictures_are_known(tmp_path):
    languages = ("bg", "ca", "es", "fr", "ro", "ru")
    for number in range(20):
        write_picture(tmp_path / f"{number}.png")
        write_lines(tmp_path / f"{number}.txt", f"Beast {number}.")
        for place, language in enumerate(languages):
            # As in the real ones, two pictures of a thing come with copies of one recording.
            write_wav(tmp_path / f"{number}_desc_{language}.ogg", 1600 + 16 * (number // 2 * 6 + place))
    splits = all_splits(tmp_path, held_out="recordings")
    assert sum(map(len, splits.values())) == 20 * len(languages)
    assert set(splits["test"]["image_id"]) <= set(splits["train"]["image_id"])
    files = {split: {Path(row["audio"]["path"]).read_bytes() for row in data} for split, data in splits.items()}
    assert not files["train"] & files["test"] and not files["train"] & files["validation"]
    spoken = all_splits(tmp_path, voices="synthetic", held_out="recordings", cache_dir=str(tmp_path / "cache"))
    assert all(len(set(data["image_id"])) == 20 for data in spoken.values())
    assert not set(spoken["train"]["speaker"]) & set(spoken["test"]["speaker"])


def test_pictures_of_the_same_thing_are_in_the_same_split(tmp_path):
    for number in range(20):
        write_picture(tmp_path / f"{number}.png")
        write_lines(tmp_path / f"{number}.txt", "A flower." if number % 2 else "a flower")
    assert len({stamp.split for stamp in read_stamps(tmp_path, Findings())}) == 1


@pytest.mark.parametrize(
    "options, named",
    [
        ({"voices": "robot"}, "choose recorded or synthetic"),
        ({"held_out": "voices"}, "choose pictures or recordings"),
        ({"voices": "synthetic", "languages": "fr"}, "leave languages out"),
        ({"voices": "synthetic", "voices_per_picture": 0}, "voices_per_picture=0"),
        ({"split": "dev"}, "train, validation, test"),
    ],
)
def test_options_that_stamps_cannot_follow_are_errors(stamps, options, named):
    with pytest.raises(ValueError, match=named):
        load_speech_image_dataset("stamps", data_dir=stamps, **options)


def test_stamps_that_are_not_there_name_debians_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="tuxpaint-stamps-default"):
        load_speech_image_dataset("stamps", data_dir=tmp_path)


@pytest.mark.skipif(not STAMPS.is_dir(), reason="tuxpaint-stamps-default is not installed")
def test_the_installed_stamps_have_many_languages_and_share_no_picture_and_hardly_a_recording_between_splits():
    found = Findings()
    pictures, recordings, languages = {}, {}, set()
    for stamp in read_stamps(STAMPS, found):
        pictures.setdefault(stamp.image.read_bytes(), set()).add(stamp.split)
        for language, recording in stamp.recordings.items():
            languages.add(language)
            recordings.setdefault(recording.read_bytes(), set()).add(stamp.split)
    assert len(pictures) > 700 and {"fr", "ru", "el", "en"} <= languages
    assert all(len(splits) == 1 for splits in pictures.values())
    assert {split for splits in pictures.values() for split in splits} == {"train", "validation", "test"}
    # Several pictures of a thing have the same recording; one is also used under two different captions.
    assert sum(len(splits) > 1 for splits in recordings.values()) <= 2
    assert found.noted["sound effects, left out"]
    row = load_speech_image_dataset("stamps", split="test", languages="ru")[0]
    assert len(load_audio(row["audio"])) > 4000


# ------------------------------------------------------------------------------------ folder, parquet and the Hub


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write_wav(tmp_path / f"{number}.wav")
        write_picture(tmp_path / f"{number}.png", (80 * number, 0, 0))
    return tmp_path


def test_a_folders_table_may_be_parquet(folder):
    rows = {
        "audio": ["0.wav", "1.wav"],
        "image": ["0.png", "0.png"],
        "split": ["train", "test"],
        "speaker": ["a", None],
    }
    datasets.Dataset.from_dict(rows).to_parquet(folder / "metadata.parquet")
    data = load_speech_image_dataset(folder, split="test")
    assert data.features == datasets.Features(COLUMNS)
    assert data[0]["audio"]["path"] == str(folder / "1.wav") and data[0]["speaker"] == data[0]["text"] == ""


def test_a_folders_missing_files_are_skipped_when_asked(folder, caplog):
    write_lines(folder / "metadata.csv", "audio,image", "0.wav,0.png", "9.wav,0.png", "1.wav,9.png")
    data = load_speech_image_dataset(folder, on_error="skip")
    assert data["caption_id"][:] == ["train-1"]
    assert "broken or missing: 2 (" in caplog.text and "row 2" in caplog.text and "row 3" in caplog.text


@pytest.fixture
def foreign(folder):
    """A data set with columns of its own, as somebody may have saved or published it."""
    rows = {
        "sound": [str(folder / f"{n}.wav") for n in (0, 1, 2)],
        "picture": [str(folder / f"{n}.png") for n in (0, 0, 1)],
        "photo": ["p0", "p0", "p1"],
        "who": [1, 2, 3],
        "caption": ["zero", None, "one"],
    }
    return datasets.Dataset.from_dict(rows)


MAPPED = {"audio": "sound", "image": "picture", "text": "caption", "speaker": "who"}


@pytest.mark.parametrize("form", ["saved", "saved with splits", "parquet", "parquet folder"])
@pytest.mark.parametrize("streaming", [False, True])
def test_any_data_set_is_given_the_common_columns(foreign, tmp_path, form, streaming):
    path = tmp_path / "foreign"
    if form == "saved":
        foreign.save_to_disk(path)
    elif form == "saved with splits":
        datasets.DatasetDict({"train": foreign, "test": foreign}).save_to_disk(path)
    else:
        path = path if form == "parquet folder" else tmp_path / "foreign.parquet"
        foreign.to_parquet(path / "train-00000-of-00001.parquet" if form == "parquet folder" else path)
    data = load_speech_image_dataset(path, columns=MAPPED, streaming=streaming, cache_dir=str(tmp_path / "cache"))
    assert data.features == datasets.Features(COLUMNS)
    rows = list(data)
    assert [row["speaker"] for row in rows] == ["1", "2", "3"]
    assert [row["text"] for row in rows] == ["zero", "", "one"]
    assert [row["caption_id"] for row in rows] == ["train-0", "train-1", "train-2"]
    ids = [row["image_id"] for row in rows]
    assert ids[0] == ids[1] != ids[2]
    assert len(load_audio(rows[0]["audio"])) == 1600


def test_ids_that_are_names_become_numbers_the_same_in_a_stream(foreign, tmp_path):
    foreign.save_to_disk(tmp_path / "foreign")
    columns = {**MAPPED, "image_id": "photo"}
    data = load_speech_image_dataset(tmp_path / "foreign", columns=columns)
    stream = load_speech_image_dataset(tmp_path / "foreign", columns=columns, streaming=True)
    assert data["image_id"][0] == data["image_id"][1] != data["image_id"][2]
    assert [row["image_id"] for row in stream] == data["image_id"][:]


def test_a_repository_of_the_hub_is_asked_for_by_its_name(foreign, monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs["split"], kwargs["revision"]))
        if kwargs["split"] == "test":
            raise ValueError("Unknown split \"test\". Should be one of ['train'].")
        return foreign

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_speech_image_dataset("owner/spoken-pictures", columns=MAPPED, revision="abc")
    assert len(data) == 3 and asked == [(("owner/spoken-pictures", None), "train", "abc")]
    with pytest.raises(ValueError, match="owner/spoken-pictures: Unknown split"):
        load_speech_image_dataset("owner/spoken-pictures", split="test", columns=MAPPED)
    with pytest.raises(ValueError, match="leave streaming out"):
        load_speech_image_dataset("owner/spoken-pictures", streaming=True, on_error="skip")


@pytest.mark.parametrize(
    "columns, named",
    [
        ({}, "no column 'audio', 'image'; its columns are sound, picture"),
        ({**MAPPED, "text": "words"}, "no column 'words'"),
        ({**MAPPED, "words": "caption"}, "columns maps words"),
        ({**MAPPED, "image_id": "picture"}, "stands for two"),
    ],
)
def test_columns_that_do_not_fit_are_errors(foreign, tmp_path, columns, named):
    foreign.save_to_disk(tmp_path / "foreign")
    with pytest.raises(ValueError, match=named):
        load_speech_image_dataset(tmp_path / "foreign", columns=columns)


def test_a_split_that_a_saved_data_set_does_not_have_is_an_error(foreign, tmp_path):
    datasets.DatasetDict({"train": foreign}).save_to_disk(tmp_path / "foreign")
    with pytest.raises(ValueError, match="no split 'test': it has train"):
        load_speech_image_dataset(tmp_path / "foreign", split="test", columns=MAPPED)
    foreign.to_parquet(tmp_path / "one" / "train.parquet")
    with pytest.raises(ValueError, match="no parquet files of the split 'test'.*train.parquet"):
        load_speech_image_dataset(tmp_path / "one", split="test", columns=MAPPED)
