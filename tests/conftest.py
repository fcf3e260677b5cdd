"""What all tests share: no network, no user caches, and tiny stand-ins built once per session."""

import atexit
import os
import shutil
import tempfile

# Set before anything imports huggingface_hub, which reads them once.
_HF_HOME = tempfile.mkdtemp(prefix="speechclip-plus-tests-")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ.update(
    HF_HOME=_HF_HOME,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    TOKENIZERS_PARALLELISM="false",
)
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_ENDPOINT", "HF_TOKEN"):
    os.environ.pop(_name, None)

import importlib.util  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def repository_root() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def start_hub(repository_root):
    """The class `LoopbackHub` of tests/loopback_hub.py: a Hub on this machine, running inside `with start_hub():`."""
    spec = importlib.util.spec_from_file_location("loopback_hub", repository_root / "tests" / "loopback_hub.py")
    module = sys.modules["loopback_hub"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LoopbackHub


@pytest.fixture
def hub(start_hub):
    """An empty Hub on this machine, for one test."""
    with start_hub() as hub:
        yield hub


@pytest.fixture
def on_hub(hub, tmp_path, monkeypatch):
    """The same, with this process as its client, logged in as `hub.owner`; waiting for it takes no time."""
    import time

    import datasets
    import huggingface_hub

    client = {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub_cache"),
    }
    for name, value in client.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()


@pytest.fixture
def assert_replaces_only_its_own_output(tmp_path, capsys):
    """Check of a command that its output folder is replaced when it made it, and that nothing else is ever lost.

    `run(folder)` runs the command with this output folder, told to replace it, and returns the exit code; each of
    `inputs`, which it reads, has a parent folder of its own in `tmp_path`.
    """

    def check(run, inputs):
        out = tmp_path / "output"
        assert run(out) == 0 and run(out) == 0  # an earlier output is replaced

        def assert_refused(folder: Path, message: str) -> None:
            before, links = _content(tmp_path), [path for path in tmp_path.rglob("*") if path.is_symlink()]
            capsys.readouterr()
            assert run(folder) == 1
            assert message in capsys.readouterr().err.splitlines()[-1]
            assert _content(tmp_path) == before and all(link.is_symlink() for link in links)

        for name in ("mine.txt", "mine/deeper/mine.txt"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text("mine")
            assert_refused(out, f"{out / name} was not written by")
            (out / name).unlink()
        (out / "link").symlink_to(tmp_path)
        assert_refused(out, f"{out / 'link'} was not written by")
        (out / "link").unlink()
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        for file in out.iterdir():
            if file.is_file():
                (foreign / file.name).write_text("mine")
        assert_refused(foreign, "was not written by")
        (tmp_path / "link").symlink_to(out)
        assert_refused(tmp_path / "link", "is a symbolic link")
        for place in inputs:
            assert_refused(place, "is a file" if place.is_file() else "is or holds")
            assert_refused(place.parent, "is or holds")

    return check


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes that CLIP's (and GPT-2's) subword vocabularies start from."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """A CLIPTokenizer with every byte, a few merges, and CLIP's own start and end tokens."""
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    merges = [("d", "o"), ("do", "g</w>"), ("r", "e"), ("re", "d</w>")]
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(left + right for left, right in merges)]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges), encoding="utf-8"
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}), encoding="utf-8"
    )
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_processor(tiny_tokenizer):
    """A SpeechClipPlusProcessor with 32 x 32 images that leaves waveforms as they are."""
    from transformers import CLIPImageProcessor, Wav2Vec2FeatureExtractor

    from speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor

    return SpeechClipPlusProcessor(
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=False),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tiny_tokenizer,
    )
