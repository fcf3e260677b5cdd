"""Data set cards: what was counted, found again by the Hub's viewer and `load_dataset`."""

import json
import re

import datasets
import numpy as np
import pytest
import soundfile
from huggingface_hub import DatasetCard
from PIL import Image

from speechclip_plus.hub_cards.cards import DatasetCardFacts, SplitSize, render_dataset_card
from speechclip_plus.trainer.card_data import given_name
from speechclip_plus.trainer.data.check import check_files
from speechclip_plus.trainer.data.load import load_speech_image_dataset
from speechclip_plus.trainer.data.schema import Findings
from speechclip_plus_cli import main as cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "huts"
    root.mkdir()
    lines = ["audio,image,text,speaker,split"]
    for number in range(7):
        soundfile.write(root / f"{number}.wav", np.sin(np.arange(16_000 * (1 + number)) / 20), 16_000)
        Image.new("RGB", (8, 8), (20 * (number // 2), 0, 0)).save(root / f"{number // 2}.png")
        text, speaker = ("" if number == 3 else f"caption {number}"), ("ann", "bob")[number % 2]
        lines.append(f"{number}.wav,{number // 2}.png,{text},{speaker},{'train' if number < 4 else 'test'}")
    (root / "metadata.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def copy(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("copies") / "hut-pairs"
    arguments = ["data", "check", str(folder), "--write", str(target), "--license", "cc-by-4.0"]
    assert cli.main(arguments) == 0
    return target


def test_every_number_of_the_card_was_counted(folder, copy):
    card = DatasetCard.load(copy / "README.md")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.text.splitlines() if "|" in line]
    table = {row[0]: row[1:] for row in rows if row[0] in ("train", "test")}
    for split in ("train", "test"):
        data = load_speech_image_dataset(folder, split=split)
        size = check_files(data, Findings()).size
        written = sum(map(bool, data["text"]))
        expected = [size.rows, size.images, size.speakers, round(size.hours, 2), written]
        assert [float(cell) for cell in table[split]] == pytest.approx(expected)
    sizes = {split["name"]: split["num_examples"] for split in card.data.to_dict()["dataset_info"]["splits"]}
    assert sizes == {"train": 4, "test": 3}
    assert card.data.to_dict()["dataset_info"]["download_size"] == sum(
        file.stat().st_size for file in copy.glob("*.parquet")
    )


def test_the_copy_loads_by_its_card_with_the_same_rows(folder, copy, tmp_path):
    loaded = datasets.load_dataset(str(copy), cache_dir=str(tmp_path))
    assert list(loaded) == ["train", "test"]
    original = load_speech_image_dataset(folder, split="train")
    assert loaded["train"].features == original.features
    assert loaded["train"]["text"][:] == original["text"][:]
    assert loaded["train"][0]["audio"]["bytes"] == (folder / "0.wav").read_bytes()
    assert load_speech_image_dataset(copy, split="test", cache_dir=str(tmp_path))["caption_id"][:]


def test_the_cards_code_runs(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(copy.parent)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (copy / "README.md").read_text(), re.DOTALL)
    for block in blocks:
        values = {}
        exec(block, values)
        assert len(values["data"]) == 4
    assert len(blocks) == 2


def test_the_metadata_say_what_it_is(copy, folder):
    text = (copy / "README.md").read_text()
    data = DatasetCard(text).data
    assert data.license == "cc-by-4.0" and data.size_categories == "n<1K" and data.pretty_name == "hut-pairs"
    configs = data.to_dict()["configs"]
    assert configs[0]["data_files"] == [
        {"split": "train", "path": "train-*.parquet"},
        {"split": "test", "path": "test-*.parquet"},
    ]
    assert "speechclip-plus data check huts" in text and str(folder.parent) not in text and "ask the speakers" in text


def test_a_known_corpus_brings_its_licence_and_languages():
    sizes = {"train": SplitSize(5090, 626, 14, 2.01)}
    card = render_dataset_card(DatasetCardFacts("scenes", "spoken_scenes", splits=sizes, languages=("fr", "pt-BR")))
    data = DatasetCard(card).data
    assert data.license == "mit" and data.language == ["fr", "pt"] and data.multilinguality == "multilingual"
    assert "espeak-ng" in card and "5,090" in card and "ask the speakers" not in card
    card = render_dataset_card(DatasetCardFacts("f", "flickr8k", splits=sizes, languages=("en",)))
    assert DatasetCard(card).data.license is None and "CC BY-SA" in card  # not one licence for all its parts
    assert "Not stated" in render_dataset_card(DatasetCardFacts("mine", splits=sizes))


def test_a_folder_called_like_a_corpus_does_not_get_its_licence(tmp_path):
    (tmp_path / "flickr8k").mkdir()
    assert given_name("flickr8k", None) == "flickr8k" and given_name("me/pairs", None) == "me/pairs"
    assert (
        given_name(tmp_path / "flickr8k", None) == given_name("folder", tmp_path / "flickr8k") == "flickr8k (folder)"
    )
    assert given_name("folder", tmp_path) == tmp_path.name


def test_files_that_were_left_out_are_counted():
    sizes = {"train": SplitSize(10, 5, None, 0.1)}
    card = render_dataset_card(DatasetCardFacts("mine", splits=sizes, left_out={"train": 2}))
    assert "2 files of train are broken or missing" in card and "not known" in card


PUSHED = """
import json, re, sys
import datasets
from huggingface_hub import DatasetCard, HfApi
from speechclip_plus_cli import main as cli

command = ["data", "check", sys.argv[1], "--push", "ann/huts"]
assert cli.main(command) == 0
first = DatasetCard.load("ann/huts").content
DatasetCard(re.sub("<!--.*-->", "", first).replace("Spoken captions", "My captions")).push_to_hub("ann/huts")
assert cli.main(command) == 0
loaded = datasets.load_dataset("ann/huts", cache_dir=sys.argv[2])
print(json.dumps({
    "first": first, "second": DatasetCard.load("ann/huts").content,
    "rows": {split: len(data) for split, data in loaded.items()},
    "audio": len(loaded["train"][0]["audio"]["bytes"]),
    "private": HfApi().dataset_info("ann/huts").private,
}))
"""


def test_a_pushed_data_set_has_a_card_and_one_that_somebody_changed_stays(folder, hub, tmp_path):
    done = hub.run_python(PUSHED, folder, tmp_path / "cache", home=tmp_path / "home")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == {"train": 4, "test": 3} and found["private"]
    assert found["audio"] == (folder / "0.wav").stat().st_size
    first = DatasetCard(found["first"])
    assert '"ann/huts"' in first.text and "| test | 3 | 2 |" in first.text
    paths = {file["split"]: file["path"] for file in first.data.to_dict()["configs"][0]["data_files"]}
    assert paths == {"train": "train-*.parquet", "test": "test-*.parquet"}
    assert "My captions" in found["second"]
