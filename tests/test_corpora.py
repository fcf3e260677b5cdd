"""The corpora by their own files, in miniature: the layouts and the faults of the published archives."""

import csv
import json
import logging

import datasets
import numpy as np
import pytest
import soundfile
from datasets.distributed import split_dataset_by_node
from PIL import Image

from speechclip_plus.modeling_speechclip_plus.audio_utils import load_audio
from speechclip_plus.trainer.collator import SpeechImageCollator
from speechclip_plus.trainer.data.load import is_data_path, load_speech_image_dataset

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


def write_image(path, colour=(200, 30, 30)):
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
            if not stray:  # the image of this name is in a list and not in the archive
                write_image(tmp_path / "Flicker8k_Dataset" / f"{name}.jpg")
            for k in range(5):
                tokens.append(f"{name}.jpg{stray}#{k}\tCaption {k} of {name} , with a comma .")
                if (name, k) != ("12_b", 3):  # a recording that does not exist
                    write_wav(audio / "wavs" / f"{name}_{k}.wav")
                    said.append(f"{name}_{k}.wav {name}.jpg #{k}")
                    spoken.append(f"{name}_{k}.wav {k + 1}")
    write_lines(text / "Flickr8k.token.txt", *tokens)
    write_lines(audio / "wav2capt.txt", *said)
    write_lines(audio / "wav2spk.txt", *spoken)
    (audio / "wavs" / "._11_a_0.wav").write_bytes(b"resource fork")
    (audio / "wavs" / "readme.txt").write_text("stray")
    write_wav(audio / "wavs" / "99_z_0.wav")
    write_image(tmp_path / "Flicker8k_Dataset" / "98_y.jpg")
    return tmp_path


def test_flickr8k_has_the_common_columns_and_the_official_split(flickr8k):
    for split, images in {"train": 2, "validation": 1, "test": 2}.items():
        data = load_speech_image_dataset("flickr8k", split=split, data_dir=flickr8k)
        assert data.features == datasets.Features(COLUMNS)
        assert len(set(data["image_id"])) == images
        assert {row["caption_id"].rsplit("_", 1)[0] for row in data} <= set(NAMES[split])


def test_recording_k_of_flickr8k_says_caption_k_of_its_image(flickr8k):
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
    assert len(data) == 9  # 3 images of 5, less the missing image and the missing recording
    (record,) = [record for record in caplog.records if record.name.startswith("speechclip_plus")]
    message = record.getMessage()
    for expected in (
        "recordings missing: 1 (12_b_3.wav)",
        "images of the list missing: 1 (2258277193_586949ec62.jpg)",
        "captions of Flickr8k.token.txt with a stray ending of the image's name: 5 (",
        "stray files beside the recordings: 2 (._11_a_0.wav, readme.txt)",
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


@pytest.mark.parametrize(
    "gone, named", [("Flicker8k_Dataset", "images"), ("flickr_audio", "recordings"), ("Flickr8k_text", "list")]
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
    image = flickr8k / "Flicker8k_Dataset" / "32_e.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    data = load_speech_image_dataset("flickr8k", split="test", data_dir=flickr8k, on_error="skip")
    assert data["caption_id"][:] == ["31_d_4"]
    assert "broken or missing: 5 (" in caplog.text  # the image once, though five captions have it
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
    write_image(folder / "mscoco" / image)
    spoken = []
    for k in range(captions):
        wav = f"wavs/{split}/0/m1-{number}-{k}.wav"
        write_wav(folder / wav)
        spoken.append({"text": f"TEXT {number} {k}", "speaker": f"m{k}", "uttid": f"m1-{number}-{k}", "wav": wav})
    return {"image": image, "captions": spoken, **more}


def write_list(folder, name, entries):
    bases = {"image_base_path": "/data/their/coco", "audio_base_path": "/data/their/SpokenCOCO"}  # read by nobody
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


def test_spokencoco_in_a_folder_of_its_own_beside_the_images(spokencoco):
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


# ------------------------------------------------------------------------------------ folder, parquet and the Hub


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write_wav(tmp_path / f"{number}.wav")
        write_image(tmp_path / f"{number}.png", (80 * number, 0, 0))
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
    assert (
        "broken or missing: 2 (" in caplog.text and "row 2 (line 3)" in caplog.text and "row 3 (line 4)" in caplog.text
    )


HEADER = "audio,image,text,split"


@pytest.mark.parametrize(
    "table, named",
    [
        (
            f"{HEADER}\n0.wav,0.png,a,train\n1.wav,0.png,a dog, running,train\n",
            "row 2 .line 3.: 5 fields.*header has 4",
        ),
        (f"{HEADER}\n0.wav,0.png,a\n", "row 1 .line 2.: 3 fields"),
        (f'{HEADER}\n0.wav,0.png,a,train\n0.wav,0.png,"open,train\n1.wav,1.png,b,train\n', "row 2 .line 3.*quote"),
        (f'{HEADER}\n0.wav,0.png,"open,train\n1.wav,1.png,"b",train\n', "row 1 .line 2.*quote"),
        ("audio,image,text,text\n0.wav,0.png,a,b\n", "'text' is there twice"),
        ("audio,image,text\n0.wav,0.png,café\n".encode("cp1252"), "is not UTF-8"),
        ("audio,image,text\n0.wav,0.png,a\n".encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_table_that_would_lose_text_or_rows_is_an_error_that_names_file_and_row(folder, table, named):
    (folder / "metadata.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(ValueError, match=f"metadata.csv.*{named}"):
        load_speech_image_dataset(folder)


@pytest.mark.parametrize("value, named", [(7, "text is int"), (["a", "b"], "text is list"), (True, "text is bool")])
def test_text_of_another_type_is_named_with_its_row(folder, value, named):
    rows = [{"audio": "0.wav", "image": "0.png", "text": text} for text in (None, "fine", value)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=f"metadata.jsonl, row 3 .line 3.: {named}"):
        load_speech_image_dataset(folder)


def test_speaker_0_of_a_table_is_a_speaker(folder):
    rows = [{"audio": "0.wav", "image": "0.png", "speaker": speaker} for speaker in (0, None)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_speech_image_dataset(folder)["speaker"][:] == ["0", ""]


@pytest.mark.parametrize(
    "header",
    [
        "file_name,image",
        "audio_file_name,image_file_name",
        "file_name,image_file_name",
        "audio,file_name",
        "sound,photo",
    ],
)
def test_columns_of_a_folder_may_have_the_names_of_datasets_or_ones_own(folder, header):
    write_lines(folder / "metadata.csv", f"{header},text", "1.wav,2.png,a", "0.wav,1.png,b")
    columns = {"audio": "sound", "image": "photo"} if header == "sound,photo" else None
    row = load_speech_image_dataset(folder, columns=columns)[0]
    assert row["audio"]["path"] == str(folder / "1.wav") and row["image"]["path"] == str(folder / "2.png")


def test_the_home_folder_may_be_written_as_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    write_lines(folder / "metadata.csv", "audio,image", "0.wav,0.png")
    assert len(load_speech_image_dataset("folder", data_dir=f"~/{folder.name}")) == 1


def test_a_share_of_the_images_can_be_held_out_of_a_table_without_splits(folder):
    write_lines(folder / "metadata.csv", "audio,image", "0.wav,0.png", "1.wav,0.png", "2.wav,1.png", "2.wav,2.png")
    with pytest.raises(ValueError, match="it has train. Hold .* out with validation_share=0.1"):
        load_speech_image_dataset(folder, split="validation")
    train, validation = (
        load_speech_image_dataset(folder, split=split, validation_share=0.1) for split in ("train", "validation")
    )
    images = [{row["image"]["path"] for row in data} for data in (train, validation)]
    assert len(train) + len(validation) == 4 and len(images[1]) == 1 and not images[0] & images[1]
    write_lines(folder / "metadata.csv", "audio,image,split", "0.wav,0.png,train")
    with pytest.raises(ValueError, match="has a column split"):
        load_speech_image_dataset(folder, validation_share=0.1)


@pytest.mark.parametrize("data", ["spoken_scenes", "flickr8k", "folder", "."])
def test_an_unknown_option_is_named_with_those_that_there_are(data):
    with pytest.raises(TypeError, match=f"{data!r} has no option 'num_scene'.*: it has"):
        load_speech_image_dataset(data, num_scene=3)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, r"has no audio and no image, .* Its columns: sound, photo, caption; say which is audio with columns="),
        (
            {"sound": "audio"},
            r"columns names sound, .* own name for any of audio, image, .* columns=\{\"audio\": \"sound",
        ),
        ({"audio": "sond"}, "no column 'sond', which columns gives for audio; there are sound, photo, caption"),
        ({"audio": "sound", "image": "sound"}, "one column for two"),
    ],
)
def test_columns_that_do_not_fit_a_folder_are_errors_that_say_what_to_give(folder, columns, said):
    write_lines(folder / "metadata.csv", "sound,photo,caption", "0.wav,0.png,a")
    with pytest.raises(ValueError, match=said):
        load_speech_image_dataset(folder, columns=columns)


def test_columns_that_are_no_mapping_are_an_error(folder):
    with pytest.raises(TypeError, match="columns='sound': expected a mapping"):
        load_speech_image_dataset(folder, columns="sound")


def test_an_unknown_name_or_option_is_answered_with_the_nearest_one():
    with pytest.raises(TypeError, match="did you mean 'num_scenes'"):
        load_speech_image_dataset("spoken_scenes", num_scene=3)
    with pytest.raises(ValueError, match="did you mean 'flickr8k'"):
        load_speech_image_dataset("flikr8k")


def test_a_stray_parquet_file_does_not_make_a_folder_of_images_a_data_set(folder, foreign):
    foreign.to_parquet(folder / "notes.parquet")
    assert not is_data_path(folder)
    foreign.to_parquet(folder / "train-00000-of-00001.parquet")
    assert is_data_path(folder)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["audio", "image", "image_id"])
def test_null_where_a_file_or_an_id_should_be_is_named_with_its_row(foreign, tmp_path, column, streaming):
    own = {**MAPPED, "image_id": "photo"}[column]
    rows = foreign.to_dict()
    rows[own][1] = None
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "null.parquet")
    arguments = {"columns": {**MAPPED, "image_id": "photo"}, "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match=f"null.parquet, row 2: .*{column}"):
        next(iter(load_speech_image_dataset(tmp_path / "null.parquet", streaming=streaming, **arguments)))


def test_rows_with_null_are_left_out_when_asked(foreign, tmp_path, caplog):
    rows = foreign.to_dict()
    rows["image"][1] = None
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "null.parquet")
    arguments = {"columns": MAPPED, "on_error": "skip", "cache_dir": str(tmp_path / "cache")}
    assert load_speech_image_dataset(tmp_path / "null.parquet", **arguments)["text"][:] == ["zero", "one"]
    assert "broken or missing: 1 (image of train-1" in caplog.text


@pytest.fixture
def foreign(folder):
    """A data set with columns of its own, as somebody may have saved or published it."""
    rows = {
        "sound": [str(folder / f"{n}.wav") for n in (0, 1, 2)],
        "image": [str(folder / f"{n}.png") for n in (0, 0, 1)],
        "photo": ["p0", "p0", "p1"],
        "who": [1, 2, 3],
        "caption": ["zero", None, "one"],
    }
    return datasets.Dataset.from_dict(rows)


MAPPED = {"audio": "sound", "image": "image", "text": "caption", "speaker": "who"}


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
    data = load_speech_image_dataset("owner/spoken-images", columns=MAPPED, revision="abc")
    assert len(data) == 3 and asked == [(("owner/spoken-images", None), "train", "abc")]
    with pytest.raises(ValueError, match="owner/spoken-images: Unknown split"):
        load_speech_image_dataset("owner/spoken-images", split="test", columns=MAPPED)
    with pytest.raises(ValueError, match="leave streaming out"):
        load_speech_image_dataset("owner/spoken-images", streaming=True, on_error="skip")


@pytest.mark.parametrize(
    "columns, named",
    [
        ({}, "no column 'audio'; its columns are sound, image"),
        ({**MAPPED, "text": "words"}, "no column 'words'"),
        ({**MAPPED, "words": "caption"}, "columns names words, which this data set does not have"),
        ({**MAPPED, "image_id": "image"}, "one column for two"),
        ({"audio": "sound", "text": "image"}, "stands for two"),
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
    with pytest.raises(ValueError, match="one has no split 'test': it has train"):
        load_speech_image_dataset(tmp_path / "one", split="test", columns=MAPPED)
