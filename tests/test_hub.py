"""Publishing to a Hub on this machine, and loading what was published in new processes with empty caches."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from PIL import Image

from speechclip_plus.hub_cards.push import push_folder
from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus_cli import main as cli

# ---- what a reader of a repository gets

PULL = """
import json, sys
import torch, evaluate
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor
import speechclip_plus
from speechclip_plus import SpeechClipPlusModel, SpeechClipPlusProcessor, load_speech_image_dataset

waveform = torch.load(sys.argv[1])
processor = AutoProcessor.from_pretrained("ann/whole", revision="v1")
speech = processor(audio=waveform.numpy(), sampling_rate=16_000)

def embedded(repo_id, **where):
    model = AutoModel.from_pretrained(repo_id, **where)
    assert type(model) is SpeechClipPlusModel
    with torch.no_grad():
        return model.get_audio_features(**speech).pooler_output[0].tolist()

def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except OSError as error:
        return str(error)
    raise AssertionError("it went well")

data = load_speech_image_dataset("ann/words", split="train")
metric = evaluate.load("ann/retrieval_recall")
scores = metric.compute(
    predictions=[[1.0, 0.0], [0.0, 1.0]], references=[7, 9],
    image_embeds=[[1.0, 0.0], [0.0, 1.0]], image_ids=[7, 9], ks=[1],
)
print(json.dumps({
    "processor": type(processor).__name__,
    "whole": embedded("ann/whole", revision="v1"),
    "sharded": embedded("ann/whole"),
    "trained part": embedded("ann/part"),
    "refused": refused(AutoModel.from_pretrained, "ann/private", token=False),
    "private": embedded("ann/private"),
    "card": ModelCard.load("ann/whole").data.to_dict(),
    "texts": data["text"][:],
    "speech in data": len(processor(audio=data[0]["audio"])["input_values"][0]),
    "scores": scores,
}))
"""


@pytest.fixture(scope="module")
def backbones():
    return tiny_backbone("hubert"), tiny_backbone("clip")


def test_a_new_process_with_an_empty_cache_loads_all_that_was_pushed(on_hub, backbones, tmp_path, repository_root):
    torch.manual_seed(0)
    waveform = torch.randn(16_000) / 10
    torch.save(waveform, tmp_path / "waveform.pt")
    for name, folder in zip(("hubert", "clip"), backbones, strict=True):
        push_folder(folder, f"ann/tiny-{name}", private=True)
    processor = SpeechClipPlusProcessor.from_backbones(*backbones)
    speech = processor(audio=waveform.numpy(), sampling_rate=16_000)

    def pushed(repo_id, model, **options):
        commit = model.push_to_hub(repo_id, **options)
        on_hub.repository(repo_id).tags.setdefault("v1", commit.oid)
        with torch.no_grad():
            return model.get_audio_features(**speech).pooler_output[0].tolist()

    def new_model(*sources):
        return SpeechClipPlusModel.from_backbones(*sources, config="hybrid_plus-tiny")

    expected = {"whole": pushed("ann/whole", new_model(*backbones))}
    processor.push_to_hub("ann/whole", revision="main")
    on_hub.repository("ann/whole").tags["v1"] = on_hub.repository("ann/whole").branches["main"]
    expected["sharded"] = pushed("ann/whole", new_model(*backbones), max_shard_size="2MB", tags=["second"])
    from_hub = new_model("ann/tiny-hubert", "ann/tiny-clip")
    expected["trained part"] = pushed("ann/part", from_hub, save_backbones=False)
    expected["private"] = pushed("ann/private", from_hub, private=True)

    assert sum("model-" in name for name in on_hub.files("ann/whole")) > 3
    assert "model.safetensors" not in on_hub.files("ann/whole")
    part, whole = on_hub.files("ann/part"), on_hub.files("ann/whole", revision="v1")
    assert len(part["model.safetensors"]) < len(whole["model.safetensors"]) / 2
    commits = {name: on_hub.repository(f"ann/tiny-{name}").branches["main"] for name in ("hubert", "clip")}
    config = json.loads(part["config.json"])
    assert config["speech_backbone"] == {"repo_id": "ann/tiny-hubert", "revision": commits["hubert"]}
    assert config["clip_backbone"] == {"repo_id": "ann/tiny-clip", "revision": commits["clip"]}
    for files in (part, whole, on_hub.files("ann/private")):
        assert not any(str(repository_root).encode() in content for content in files.values())

    corpus = write_corpus(tmp_path / "corpus")
    assert cli.main(["data", "check", str(corpus), "--push", "ann/words"]) == 0
    push_folder(repository_root / "hub_cards/metrics/retrieval_recall", "ann/retrieval_recall", repo_type="space")

    done = on_hub.run_python(PULL, tmp_path / "waveform.pt", home=tmp_path / "home")
    found = json.loads(done.stdout.splitlines()[-1])
    for name, embedding in expected.items():
        assert found[name] == pytest.approx(embedding, abs=1e-5), name
    assert expected["whole"] != pytest.approx(expected["sharded"], abs=1e-3)
    assert found["processor"] == "SpeechClipPlusProcessor"
    assert "ann/private is not a local folder and is not a valid model identifier" in found["refused"]
    assert found["card"]["library_name"] == "transformers" and "second" in found["card"]["tags"]
    assert found["texts"] == ["a red circle", "a blue square"] and found["speech in data"] == 8000
    assert found["scores"]["mean_R@1"] == 100.0


def write_corpus(folder):
    folder.mkdir()
    lines = ["audio,image,text,split"]
    for number, text in enumerate(["a red circle", "a blue square", "a third thing"]):
        soundfile.write(folder / f"{number}.wav", np.sin(np.arange(8000) / (10 + number)), 16_000)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        lines.append(f"{number}.wav,{number}.png,{text},{'train' if number < 2 else 'test'}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def test_backbones_in_a_folder_of_this_machine_are_not_left_out_of_a_push(on_hub, backbones):
    model = SpeechClipPlusModel.from_backbones(*backbones, config="hybrid_plus-tiny")
    with pytest.raises(ValueError, match=r"folder of this machine.*save_backbones=True.*owner/name"):
        model.push_to_hub("ann/part", save_backbones=False)
    assert not on_hub.repositories


def test_a_pushed_model_gets_our_card_and_one_that_is_there_stays_and_gets_the_tags(on_hub, tiny_model, tmp_path):
    tiny_model.push_to_hub("ann/model")
    plain = on_hub.files("ann/model")["README.md"].decode()
    assert "[More Information Needed]" not in plain and "`parallel`" in plain
    assert 'AutoModel.from_pretrained("ann/model", trust_remote_code=True)' in plain
    with pytest.raises(ValueError, match="ann/model exists and is public"):
        tiny_model.push_to_hub("ann/model", private=True)
    tiny_model.push_to_hub("model", tags="new")
    assert "- new\n" in on_hub.files("ann/model")["README.md"].decode()
    theirs = "---\nlicense: mit\n---\n\nTheir words.\n"
    on_hub.commit_as_other("ann/model", {"README.md": theirs.encode()})
    tiny_model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="ann/model", commit_message="Saved")
    assert on_hub.files("ann/model")["README.md"].decode() == theirs and (tmp_path / "model" / "config.json").is_file()
    assert not list((tmp_path / "model").glob("*.py")) and "modeling_speechclip_plus.py" in on_hub.files("ann/model")
    tiny_model.push_to_hub("ann/model", tags=["new"])
    card = ModelCard(on_hub.files("ann/model")["README.md"].decode())
    assert card.data.tags == ["new"] and card.data.license == "mit" and card.text.strip() == "Their words."
    push_folder(tmp_path / "model", "ann/model")  # with the plain card that saving wrote
    assert "Their words." in on_hub.files("ann/model")["README.md"].decode()
    push_folder(tmp_path / "model", "ann/other")
    pushed = on_hub.files("ann/other")
    assert sum(name.endswith(".py") for name in pushed) == 4 and b"custom_pipelines" in pushed["config.json"]
    assert b'AutoModel.from_pretrained("ann/other"' in pushed["README.md"]


@pytest.fixture
def tiny_model():
    spec = importlib.util.spec_from_file_location("training_runs", Path(__file__).parent / "training_runs.py")
    training_runs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(training_runs)
    return training_runs.make_model("parallel")
