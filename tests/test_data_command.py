"""`speechclip-plus data check`: what it counts, what it finds broken, and the copies it writes."""

import numpy as np
import pytest
import soundfile
from PIL import Image

from speechclip_plus.configuration.presets import load_vocabulary
from speechclip_plus.conversion.open_clip import openai_tokenizer
from speechclip_plus.conversion.state_dict_names import read_vocabulary
from speechclip_plus.trainer.data import check as data_copies
from speechclip_plus.trainer.data.check import count_tokens, write_parquet
from speechclip_plus.trainer.data.load import load_speech_image_dataset
from speechclip_plus_cli import main as cli

ROWS = [
    # audio, image, text, speaker, split, samples
    ("a.wav", "0.png", "A dog runs.", "ann", "train", 16_000),
    ("b.wav", "0.png", "A dog.", "bob", "train", 32_000),
    ("c.wav", "1.png", "A red cat.", "ann", "train", 48_000),
    ("d.wav", "2.png", "Two dogs", "cyd", "test", 8_000),
]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    lines = ["audio,image,text,speaker,split"]
    for audio, image, text, speaker, split, samples in ROWS:
        soundfile.write(root / audio, np.sin(np.arange(samples) / 20), 16_000)
        Image.new("RGB", (8, 8), (ord(image[0]), 0, 0)).save(root / image)
        lines.append(f"{audio},{image},{text},{speaker},{split}")
    (root / "metadata.csv").write_text("\n".join(lines))
    return root


def check(*arguments):
    return cli.main(["data", "check", *map(str, arguments)])


def test_check_prints_rows_images_speakers_and_durations_of_every_split(folder, capsys):
    assert check(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("validation: not there")
    assert lines[1].split() == "recordings images speakers hours shortest mean longest broken".split()
    assert lines[2].split() == "train 3 2 2 0.00 1.00 s 2.00 s 3.00 s 0".split()
    assert lines[3].split() == "test 1 1 1 0.00 0.50 s 0.50 s 0.50 s 0".split()


def test_check_prints_the_commonest_tokens(folder, capsys):
    assert check(folder, "--split", "train") == 0
    out = capsys.readouterr().out
    assert (
        "captions: 3, 3 of them different, with 8 of CLIP's token ids" in out
    )  # padding, start, end, a, dog, runs, red, cat
    assert "most frequent: a 3, dog 2, " in out


def test_check_names_missing_and_broken_files_and_fails(folder, tmp_path, capsys):
    (folder / "a.wav").unlink()
    (folder / "b.wav").write_bytes(b"no sound")
    soundfile.write(folder / "c.wav", np.zeros(10), 16_000)
    (folder / "2.png").write_bytes(b"no image")
    assert check(folder, "--write", tmp_path / "copy") == 1
    out = capsys.readouterr().out
    assert "train: broken or missing: 3 (" in out and "test: broken or missing: 1 (" in out
    for expected in ("a.wav", "b.wav): cannot be read as audio", "c.wav): too short", "2.png): cannot be read"):
        assert expected in out
    assert not (tmp_path / "copy").exists()


def test_skip_writes_a_copy_without_what_is_broken(folder, tmp_path, capsys):
    (folder / "a.wav").unlink()
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[:50])  # opens, but cannot be decoded
    assert check(folder, "--split", "train", "--on-error", "skip", "--write", tmp_path / "copy") == 0
    assert "train: broken or missing: 2 (" in capsys.readouterr().out
    assert load_speech_image_dataset(tmp_path / "copy")["text"][:] == ["A dog."]


def test_a_long_list_of_broken_files_is_cut(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    rows = [f"{number}.wav,0.png" for number in range(25)]
    (tmp_path / "metadata.csv").write_text("\n".join(["audio,image", *rows]))
    assert check(tmp_path, "--split", "train") == 1
    out = capsys.readouterr().out
    assert "broken or missing: 25 (" in out and "19.wav" in out and "and 5 more" in out and "20.wav" not in out


def test_a_parquet_copy_loads_back_to_equal_rows_without_the_files(folder, tmp_path):
    original = load_speech_image_dataset(folder)
    files = [((folder / row[0]).read_bytes(), (folder / row[1]).read_bytes()) for row in ROWS[:3]]
    assert check(folder, "--split", "train", "--write", tmp_path / "copy") == 0
    (folder / "metadata.csv").rename(folder / "gone.csv")
    copy = load_speech_image_dataset(tmp_path / "copy", cache_dir=str(tmp_path / "cache"))
    assert copy.features == original.features
    for row, before, (audio, image) in zip(copy, original, files, strict=True):
        assert (row["audio"]["bytes"], row["image"]["bytes"]) == (audio, image)
        assert all(row[key] == before[key] for key in ("image_id", "text", "caption_id", "speaker"))


def test_a_large_copy_is_divided_and_loads_back_in_order(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data_copies, "_SHARD_BYTES", 100_000)
    data = load_speech_image_dataset(folder)
    names = write_parquet({"train": data}, tmp_path / "copy")
    assert names == [f"train-{number:05d}-of-00002.parquet" for number in range(2)]
    copy = load_speech_image_dataset(tmp_path / "copy", streaming=True, cache_dir=str(tmp_path / "cache"))
    assert [row["caption_id"] for row in copy] == data["caption_id"][:] and copy.num_shards == 2


def test_only_an_earlier_copy_is_replaced_and_only_when_asked(folder, tmp_path, capsys):
    target = tmp_path / "copy"
    arguments = (folder, "--split", "test", "--write", target)
    assert check(*arguments) == 0
    assert check(*arguments) == 1 and "--force" in capsys.readouterr().err
    assert check(*arguments, "--force") == 0
    assert load_speech_image_dataset(target, split="test", cache_dir=str(tmp_path / "cache"))["text"][:] == [
        "Two dogs"
    ]
    (target / "notes.txt").write_text("mine")
    assert check(*arguments, "--force") == 1
    assert (target / "notes.txt").read_text() == "mine" and "notes.txt was not written by" in capsys.readouterr().err


def test_tokens_that_are_no_whole_characters_are_shown_as_the_tokenizer_writes_them(folder, capsys):
    table = (folder / "metadata.csv").read_text().replace("A dog.", "\U00013000 \x7f")  # a hieroglyph, delete
    (folder / "metadata.csv").write_text(table, encoding="utf-8")
    assert check(folder, "--split", "train") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "most frequent" in line)
    assert line.isprintable() and "\ufffd" not in line and "id " not in line.split("most frequent")[1]


def test_force_replaces_an_earlier_copy_and_nothing_else(folder, tmp_path, assert_replaces_only_its_own_output):
    own = tmp_path / "data sets" / "data"
    own.parent.mkdir()
    folder.rename(own)
    assert_replaces_only_its_own_output(lambda out: check(own, "--split", "train", "--write", out, "--force"), [own])


def test_options_reach_the_data_set(folder, tmp_path, capsys):
    data = load_speech_image_dataset(folder).rename_columns({"audio": "sound", "text": "words"})
    data.save_to_disk(tmp_path / "saved")
    columns = 'columns={"audio": "sound", "text": "words"}'
    assert check(tmp_path / "saved", "--split", "train", "--option", columns) == 0
    assert check(tmp_path / "saved", "--split", "train", "--option", "columns") == 1
    assert "columns is not KEY=VALUE" in capsys.readouterr().err


def test_a_split_that_is_asked_for_has_to_be_there(folder, capsys):
    assert check(folder, "--split", "validation") == 1
    assert "no rows of the split 'validation': it has test, train" in capsys.readouterr().err


def test_the_vocabulary_is_written_as_the_original_has_it(folder, tmp_path):
    file = tmp_path / "ids.npy"
    assert check(folder, "--vocabulary", file) == 0
    counts = np.load(file)
    tokenizer = openai_tokenizer()
    a, dog = (tokenizer(word)["input_ids"][1] for word in ("a", "dog"))
    padded = 4 * 77 - counts[counts[:, 0] != 0, 1].sum()
    assert counts[0].tolist() == [0, padded]
    assert counts[1:5].tolist() == [[49406, 4], [49407, 4], [a, 3], [dog, 2]]
    assert (np.diff(counts[:, 1]) <= 0).all()
    assert read_vocabulary(file) == counts[:, 0].tolist()


def test_tokens_are_those_of_the_shipped_vocabularies():
    # The final full stop is no token of the original's vocabulary of a caption, commas inside are.
    counts, truncated = count_tokens(
        ["A child in a pink dress , climbing .", "A child in a pink dress , climbing"], openai_tokenizer()
    )
    assert truncated == 0 and set(counts[:, 0]) <= set(load_vocabulary("flickr8k"))
    assert dict(counts.tolist())[320] == 4
    assert openai_tokenizer()(".")["input_ids"][1] not in counts[:, 0]


def test_a_caption_too_long_for_clip_is_cut_and_counted():
    counts, truncated = count_tokens([" ".join(["dog"] * 100)], openai_tokenizer())
    assert truncated == 1 and counts[:, 1].sum() == 77 and sorted(counts[:, 1]) == [1, 1, 75]


def test_a_vocabulary_without_captions_is_an_error(folder, tmp_path, capsys):
    table = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join(["audio,image", *(",".join(r.split(",")[:2]) for r in table[1:])]))
    assert check(folder, "--split", "train") == 0
    assert "none written" in capsys.readouterr().out
    assert check(folder, "--split", "train", "--vocabulary", tmp_path / "ids.npy") == 1
    assert "no written captions" in capsys.readouterr().err
