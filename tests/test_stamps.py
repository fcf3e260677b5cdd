"""The script that writes Tux Paint's stamps as a folder data set."""

import numpy as np
import pytest
import soundfile
from PIL import Image
from stamps import STAMPS, read_stamps, write_stamps

from speechclip_plus import load_speech_image_dataset
from speechclip_plus.trainer.data.schema import SPLITS, Findings
from speechclip_plus.trainer.spoken_scenes.espeak import TEST_VOICES, TRAIN_VOICES


def write_wav(path, samples=1600):
    soundfile.write(path, np.full(samples, 0.1), 16_000, format=path.suffix[1:].upper())


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stamps") / "animals"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (24, 16), (6 * number, 0, 0)).save(folder / f"beast{number}.png")
        text = f"Beast number {number}.\nfr.utf8=La bête {number}.\nnl.utf8=\n"
        (folder / f"beast{number}.txt").write_text(text, encoding="utf-8")
        write_wav(folder / f"beast{number}.ogg")  # what the animal sounds like
        # As in the real ones, images of the same thing come with copies of one recording.
        write_wav(folder / f"beast{number}_desc_fr.ogg", 1600 + number // 2)
        write_wav(folder / f"beast{number}_desc_pt_BR.wav", 2600 + number // 2)
    write_wav(folder / "beast0_desc.ogg")
    write_wav(folder / "beast0_desc_nl.ogg")
    (folder / "beast0_desc_da.ogg.ogg").write_bytes(b"stray")
    (folder / "drawn.svg").write_text("<svg/>")
    write_wav(folder / "drawn_desc_fr.ogg")
    return folder.parent


def load(folder):
    return {split: load_speech_image_dataset(folder, split=split) for split in SPLITS}


def test_stamps_become_a_folder_data_set_with_the_language_as_speaker(stamps, tmp_path, capsys):
    sizes = write_stamps(tmp_path / "out", stamps)
    splits = load(tmp_path / "out")
    assert {split: len(data) for split, data in splits.items()} == sizes and sum(sizes.values()) == 82
    rows = [row for data in splits.values() for row in data if row["image"]["path"].endswith("/beast0.png")]
    assert {row["speaker"]: row["text"] for row in rows} == {
        "en": "Beast number 0.",
        "fr": "La bête 0.",
        "nl": "Beast number 0.",  # not translated
        "pt_BR": "Beast number 0.",
    }
    images = [{row["image"]["path"] for row in data} for data in splits.values()]
    assert all(images) and sum(map(len, images)) == 40 == len(set().union(*images))
    out = capsys.readouterr().out
    for expected in (
        "sound effects, left out: 40 (",
        "images that are drawings (.svg) only, left out: 1 (animals/drawn.svg)",
        "descriptions of images left out or missing: 1 (animals/drawn_desc_fr.ogg)",
        "stray recordings: 1 (animals/beast0_desc_da.ogg.ogg)",
    ):
        assert expected in out


def test_recordings_held_out_are_unheard_while_their_images_are_known(stamps, tmp_path):
    write_stamps(tmp_path / "out", stamps, held_out="recordings", languages=["fr", "pt_BR"])
    files = {}
    for split, data in load(tmp_path / "out").items():
        files[split] = {open(row["audio"]["path"], "rb").read() for row in data}
    assert all(files.values())
    assert not files["train"] & files["test"] and not files["train"] & files["validation"]


def test_synthetic_voices_speak_the_captions_and_those_of_test_are_unheard(stamps, tmp_path):
    sizes = write_stamps(tmp_path / "out", stamps, voices="synthetic", voices_per_image=1)
    splits = load(tmp_path / "out")
    assert sum(sizes.values()) == 40
    assert set(splits["train"]["speaker"]) <= set(TRAIN_VOICES) and set(splits["test"]["speaker"]) <= set(TEST_VOICES)
    assert 0.5 < soundfile.info(splits["test"][0]["audio"]["path"]).duration < 6


def test_nothing_is_written_without_stamps_or_over_other_files(stamps, tmp_path):
    with pytest.raises(FileNotFoundError, match="tuxpaint-stamps-default"):
        write_stamps(tmp_path / "out", tmp_path)
    with pytest.raises(ValueError, match="described in it; there are en, fr, nl, pt_BR"):
        write_stamps(tmp_path / "out", stamps, languages=["it"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="exists"):
        write_stamps(stamps / "animals", stamps)


@pytest.mark.skipif(not STAMPS.is_dir(), reason="tuxpaint-stamps-default is not installed")
def test_the_installed_stamps_share_no_image_and_hardly_a_recording_between_splits():
    images, recordings, languages = {}, {}, set()
    for stamp in read_stamps(STAMPS, Findings()):
        images.setdefault(stamp.image.read_bytes(), set()).add(stamp.split)
        for language, recording in stamp.recordings.items():
            languages.add(language)
            recordings.setdefault(recording.read_bytes(), set()).add(stamp.split)
    assert len(images) > 700 and {"fr", "ru", "el", "en"} <= languages
    assert all(len(splits) == 1 for splits in images.values())
    assert {split for splits in images.values() for split in splits} == set(SPLITS)
    # Several images of a thing have the same recording; one is also used under two different captions.
    assert sum(len(splits) > 1 for splits in recordings.values()) <= 2
