"""`speechclip-plus demo`: a saved model in the browser, on this machine or as a folder for a Space of the Hub."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import numpy as np

from .console import QUICKSTART_MODEL, model_source, quiet_libraries

SCENES = "drawn scenes"
NUM_SCENES = 48
SPACE_SCENES = 24
IMAGE_SIZE = 256  # pixels: larger than what the model sees, for people
_MODEL_LINE = 'MODEL_ID = ""'
_SCENE_SEED = 1  # not the quickstart's own scenes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument(
        "--model", metavar="DIR", help=f"folder of a saved model, or a repository (default: {QUICKSTART_MODEL})"
    )
    parser.add_argument(
        "--index",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders of images and recordings, each an index to search (default: drawn scenes, described)",
    )
    parser.add_argument("--port", type=int, help="port to serve on (default: the first free one from 7860)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument(
        "--share", action="store_true", help="also make a public address, through the servers of Gradio's makers"
    )
    space = parser.add_argument_group("as a Space")
    space.add_argument(
        "--write-space", type=Path, metavar="OUT", help="write a Space for the repository --model instead of serving"
    )
    space.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted, or write a Space; returns the exit code."""
    if args.write_space is not None:
        write_space(args.write_space, args.model or "", args.index, force=args.force)
        print(f"{args.write_space}: a Space that answers with {args.model}")
        return 0
    model = model_source(args.model)
    for folder in args.index:
        if not folder.is_dir():
            raise ValueError(f"--index {folder} is no folder.")
    app = load_app()
    quiet_libraries()
    with ExitStack() as stack:
        folders = args.index or [
            write_scenes(Path(stack.enter_context(tempfile.TemporaryDirectory())) / SCENES, NUM_SCENES)
        ]
        print(f"Loading {model} and embedding what can be searched.", flush=True)
        demo = app.Demo(app.Searcher(model), folders)
        counts = ", ".join(
            f"{sum(len(index.labels) for index in own.values()):,} {kind}" for kind, own in demo.indexes.items()
        )
        page = app.launch(
            demo,
            server_name="127.0.0.1",
            server_port=args.port,
            share=args.share,
            inbrowser=not args.no_browser,
            prevent_thread_lock=True,
            quiet=True,
        )
        stack.callback(page.close, verbose=False)
        print(f"Serving {counts} at {page.local_url}", flush=True)
        if page.share_url:
            print(f"and, for everybody who knows it, at {page.share_url}", flush=True)
        print("Ctrl-C ends it.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("Ended; nothing was kept.", flush=True)
    return 0


def load_app() -> ModuleType:
    """Import the Space's app, which also runs as a file without this package."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('The demo needs gradio, which is not installed: pip install "speechclip-plus[demo]".')
    return importlib.import_module("speechclip_plus.hub_cards.space.app")


def write_scenes(folder: Path, count: int) -> Path:
    """Make a folder of so many drawn scenes of the test split and their descriptions, spoken by espeak-ng."""
    import soundfile

    from speechclip_plus.trainer.spoken_scenes.dataset import random_voice
    from speechclip_plus.trainer.spoken_scenes.espeak import SAMPLING_RATE, TEST_VOICES, synthesise
    from speechclip_plus.trainer.spoken_scenes.scenes import sample_scenes

    (folder / "images").mkdir(parents=True)
    (folder / "recordings").mkdir()
    rng = np.random.default_rng(_SCENE_SEED)
    for scene in sample_scenes("test", count, seed=_SCENE_SEED):
        caption = scene.caption(rng)
        voice = random_voice(TEST_VOICES[int(rng.integers(len(TEST_VOICES)))], rng)
        scene.draw(IMAGE_SIZE).save(folder / "images" / f"{caption}.png")
        soundfile.write(folder / "recordings" / f"{caption}.flac", synthesise(caption, voice), SAMPLING_RATE)
    return folder


def write_space(folder: Path, model: str, folders: Sequence[Path] = (), *, force: bool = False) -> None:
    """Write a Space that answers with a model of the Hub and searches copies of the folders, or drawn scenes.

    Raises:
        ValueError: If `model` is no repository's name, or a folder is not to be used.
    """
    from huggingface_hub import RepoCard

    from speechclip_plus import hub_cards
    from speechclip_plus.atomic_files import check_new_folder, finished_folder, write_text

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or Path(model).exists():
        raise ValueError("A Space loads its model from the Hub: give the repository, as in --model USER/NAME.")
    names = [source.resolve().name for source in folders]
    for source in folders:
        if not source.is_dir() or names.count(source.resolve().name) > 1:
            raise ValueError(f"--index {source} is no folder, or another one has the same name.")
    check_new_folder(folder, force, folders)
    with finished_folder(folder) as work:
        for file in (Path(hub_cards.__file__).resolve().parent / "space").iterdir():
            if file.is_file():
                shutil.copy(file, work)
        code = (work / "app.py").read_text(encoding="utf-8")
        write_text(work / "app.py", code.replace(_MODEL_LINE, f"MODEL_ID = {model!r}".replace("'", '"'), 1))
        card = RepoCard.load(work / "README.md")
        card.data["models"] = [model]
        card.save(work / "README.md")
        for source, name in zip(folders, names, strict=True):
            shutil.copytree(source, work / "indexes" / name)
        if not folders:
            write_scenes(work / "indexes" / SCENES, SPACE_SCENES)
