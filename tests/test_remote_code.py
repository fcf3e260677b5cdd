"""A saved model loads where this package is not installed, and computes the same."""

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec, resolve_name
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

import speechclip_plus
from speechclip_plus import SpeechClipPlusModel, SpeechClipPlusProcessor, remote_code
from speechclip_plus.trainer.tiny_backbones import tiny_backbone

# What the README says that loading a pushed model takes.
NEEDED = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", "PIL", "soundfile", "soxr"}

WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "speechclip_plus":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""

ANSWER = """
import json
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

folder, again, trusted = sys.argv[1], sys.argv[2], {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trusted)
model = AutoModel.from_pretrained(folder, **trusted)
processor = AutoProcessor.from_pretrained(folder, **trusted)
rng = np.random.default_rng(0)
speech = processor(audio=[rng.normal(0, 0.1, size) for size in (8_000, 30_000)], sampling_rate=16_000)
images = processor(images=[rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)])
with torch.no_grad():
    output = model(**speech, **images)
tensors = {name: output[name].contiguous() for name in ("speech_embeds", "image_embeds", "cascaded_embeds", "alphas")}
model.save_pretrained(again)
processor.save_pretrained(again)
save_file(tensors, again + "/answer.safetensors")
waveform = {"raw": rng.normal(0, 0.1, 40_000).astype(np.float32), "sampling_rate": 16_000}
keywords = pipeline("speech-keyword-extraction", model=folder, **trusted)(waveform, return_timestamps=True)
labels = pipeline("zero-shot-speech-classification", model=folder, **trusted)(waveform, candidate_labels=["a", "b"])
classes = [f"{type(part).__module__}.{type(part).__name__}" for part in (config, model, processor)]
print("ANSWER", json.dumps({"classes": classes, "keywords": keywords, "labels": labels}))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with its processor, and with the code of both."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    torch.manual_seed(0)
    speech, clip = tiny_backbone("hubert"), tiny_backbone("clip")
    model = SpeechClipPlusModel.from_backbones(speech, clip, config="hybrid_plus-tiny")
    model.save_pretrained(folder, remote_code=True)
    SpeechClipPlusProcessor.from_backbones(speech, clip).save_pretrained(folder, remote_code=True)
    return folder


@pytest.fixture(scope="module")
def answers(saved, start_hub, tmp_path_factory):
    """What the model says with this package, and in processes without it, from its folder and from the Hub.

    By name, each with the folder into which it was saved there again.
    """
    with start_hub() as hub:
        push = "import sys; from speechclip_plus_cli.main import main; sys.exit(main(['push', *sys.argv[1:]]))"
        hub.run_python(push, saved, "ann/travels", home=tmp_path_factory.mktemp("pusher"))
        found = {}
        for name, preamble, source in (
            ("package", "import sys\nimport speechclip_plus\n", saved),
            ("folder", WITHOUT_PACKAGE, saved),
            ("hub", WITHOUT_PACKAGE, "ann/travels"),
        ):
            work = tmp_path_factory.mktemp(name)
            said = hub.run_python(preamble + ANSWER, source, work / "again", home=work / "home").stdout
            line = next(line for line in said.splitlines() if line.startswith("ANSWER "))
            found[name] = (json.loads(line.removeprefix("ANSWER ")), work / "again")
    return found


def test_without_the_package_the_travelling_classes_load_and_with_it_its_own(answers):
    (with_package, _) = answers["package"]
    assert all(name.startswith("speechclip_plus.") for name in with_package["classes"])
    for name in ("folder", "hub"):
        classes = answers[name][0]["classes"]
        assert all(each.startswith("transformers_modules.") for each in classes)
        assert [each.rsplit(".", 1)[1] for each in classes] == [
            each.rsplit(".", 1)[1] for each in with_package["classes"]
        ]


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_both_compute_the_same_bits_and_the_same_answers(answers, source):
    (with_package, one), (without, other) = answers["package"], answers[source]
    tensors, others = load_file(one / "answer.safetensors"), load_file(other / "answer.safetensors")
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name
    assert without["keywords"] == with_package["keywords"] and without["keywords"]
    assert without["labels"] == with_package["labels"]


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_a_travelled_model_saves_all_of_its_code_again(saved, answers, source):
    _, again = answers[source]
    files = {file.name: file.read_bytes() for file in saved.glob("*.py")}
    assert {file.name: file.read_bytes() for file in again.glob("*.py")} == files
    config = json.loads((again / "config.json").read_text(encoding="utf-8"))
    for reference in [*config["auto_map"].values(), *(task["impl"] for task in config["custom_pipelines"].values())]:
        module, name = reference.split(".")
        assert f"class {name}" in files[f"{module}.py"].decode()


def test_where_the_package_is_installed_no_trust_is_asked_for(saved):
    assert type(AutoConfig.from_pretrained(saved)) is speechclip_plus.SpeechClipPlusConfig
    assert type(AutoModel.from_pretrained(saved)) is SpeechClipPlusModel
    assert type(AutoProcessor.from_pretrained(saved)) is SpeechClipPlusProcessor
    extract = pipeline("speech-keyword-extraction", model=str(saved))
    assert type(extract).__module__.startswith("speechclip_plus.")
    assert extract({"raw": np.zeros(16_000, dtype=np.float32), "sampling_rate": 16_000})


def test_every_file_carries_the_version_and_needs_only_what_transformers_needs(saved):
    files = sorted(saved.glob("*.py"))
    assert [file.stem for file in files] == sorted(remote_code.ROOTS)
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert f"speechclip-plus {speechclip_plus.__version__}" in text.splitlines()[0]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and (saved / f"{node.module}.py").is_file(), (file.name, node.module)
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in NEEDED | sys.stdlib_module_names, (file.name, name)


def test_a_saved_model_holds_no_code_unless_it_is_asked_for(saved, tmp_path):
    SpeechClipPlusModel.from_pretrained(saved).save_pretrained(tmp_path)
    SpeechClipPlusProcessor.from_pretrained(saved).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    for name in ("config.json", "processor_config.json"):
        content = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        assert "auto_map" not in content and "custom_pipelines" not in content
    assert type(AutoModel.from_pretrained(tmp_path)) is SpeechClipPlusModel
    assert (tmp_path / "README.md").read_text().count("AutoModel.from_pretrained") == 1


def test_sentence_transformers_is_told_how_to_read_a_saved_model(saved):
    (module,) = json.loads((saved / "modules.json").read_text())
    assert module["path"] == "" and module["type"].startswith("sentence_transformers.")
    config = json.loads((saved / "sentence_bert_config.json").read_text())
    assert set(config["modality_config"]) == {"text", "image", "audio"}
    for way in config["modality_config"].values():
        assert hasattr(SpeechClipPlusModel, way["method"]) and way["method_output_name"] == "pooler_output"


def test_presets_say_that_they_did_not_travel(saved, tmp_path):
    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            WITHOUT_PACKAGE
            + "from transformers import AutoConfig\n"
            + f"AutoConfig.from_pretrained({str(saved)!r}, trust_remote_code=True).from_preset('hybrid_plus-tiny')",
        ],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "The presets do not travel with a saved model: `pip install speechclip-plus`." in answer.stderr


HELPER = '''"""Helper."""

import os
from math import (
    pi,
)

LIMIT = os.sep
'''

ROOT = '''"""Root."""

import os

from .helper import LIMIT


def half():
    from .helper import pi

    return pi / 2
'''


def test_modules_of_one_file_share_their_imports_and_names(tmp_path, monkeypatch):
    package = tmp_path / "merged"
    package.mkdir()
    for name, text in (("__init__", ""), ("helper", HELPER), ("root", ROOT)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(remote_code, "ROOTS", {"root": "merged.root"})
    text = remote_code.remote_code_files()["root.py"]
    values = {}
    exec(text, values)
    assert values["LIMIT"] == os.sep and values["half"]() == pytest.approx(1.5708, abs=1e-4)
    assert ast.get_docstring(ast.parse(text)) == "Root."


def meanings(module, file, file_of):
    """Names that a module gives a meaning in its file, each with what tells two meanings apart."""
    for node in ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            target = "." * node.level + (node.module or "")
            origin = resolve_name(target, find_spec(module).parent) if node.level else node.module
            if file_of.get(origin) != file:
                yield from ((alias.asname or alias.name, f"{origin}.{alias.name}") for alias in node.names)
            else:
                assert not any(alias.asname for alias in node.names), f"{module} imports a name as another"
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, ast.unparse(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
                yield from ((name, ast.unparse(node)) for name in names if name != "__all__")


def test_a_name_means_the_same_in_all_modules_of_one_file():
    groups = remote_code._grouped_modules()
    file_of = {module: file for file, modules in groups.items() for module in modules}
    assert sum(map(len, groups.values())) > 15
    for file, modules in groups.items():
        found = {}
        for module in modules:
            for name, meaning in meanings(module, file, file_of):
                first = found.setdefault(name, (meaning, module))
                assert first[0] == meaning, f"{name} means different things in {first[1]} and {module}: rename one"
