"""Examples of the documentation run as they stand, page by page, on a few files."""

import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel, SpeechClipPlusProcessor
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus_cli import main as cli

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^```([\w{}-]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def blocks(page):
    """Language and content of each block of a page that is to run."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    assert len(found) == len(re.findall("^```", text, re.MULTILINE)) / 2
    return [(language, content) for reason, language, content in found if not reason]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """What the pages speak of: the quickstart's model (untrained), recordings, images, and a folder of both."""
    folder = tmp_path_factory.mktemp("docs")
    torch.manual_seed(0)
    model = SpeechClipPlusModel(SpeechClipPlusConfig.from_preset("hybrid_plus-tiny"))
    model.save_pretrained(folder / "quickstart" / "model")
    processor = SpeechClipPlusProcessor.from_backbones(tiny_backbone("hubert"), tiny_backbone("clip"))
    processor.save_pretrained(folder / "quickstart" / "model")
    rng = np.random.default_rng(0)
    for name, seconds in (("query.wav", 1), ("other.wav", 2), ("lecture.flac", 12)):
        soundfile.write(folder / name, rng.normal(0, 0.1, seconds * 16_000), 16_000)
    (folder / "images").mkdir()
    for name in ("first.png", "second.png", "third.png"):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(folder / name)
        (folder / "images" / name).symlink_to(folder / name)
    own = folder / "my_recordings"
    own.mkdir()
    lines = ["audio,image,text,speaker,split"]
    for number, split in enumerate(("train", "train", "train", "validation", "validation", "test", "test")):
        soundfile.write(own / f"{number}.wav", rng.normal(0, 0.1, 12_000), 16_000)
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(own / f"{number}.png")
        lines.append(f"{number}.wav,{number}.png,a red circle,ana,{split}")
    (own / "metadata.csv").write_text("\n".join(lines))
    (folder / "hub_cards").symlink_to(ROOT / "hub_cards")
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(kind in ("python", "bash") for kind, _ in blocks(page))]
)
def test_the_examples_of_a_page_run_one_after_the_other(page, desk, monkeypatch):
    monkeypatch.chdir(desk)
    names = {}
    for language, content in blocks(page):
        if language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(content, names)
        elif language == "bash":
            for line in content.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "speechclip-plus" and cli.main(arguments) == 0, line


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language(page):
    assert {language for language, _ in blocks(page)} <= {"python", "bash", "text", "yaml", "{toctree}", "{eval-rst}"}
