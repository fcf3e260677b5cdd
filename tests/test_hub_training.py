"""What a training pushes to the Hub, and when."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor

spec = importlib.util.spec_from_file_location("training_runs", Path(__file__).parent / "training_runs.py")
training_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(training_runs)

MODEL = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
MODEL |= {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}


def make_trainer(folder, **arguments):
    defaults = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "push_to_hub": True}
    defaults |= {"hub_model_id": "ann/trained", "hub_always_push": True, "logging_steps": 1}
    return training_runs.make_trainer(folder, **{**defaults, **arguments})


def pushed(hub, **where):
    files = hub.files("ann/trained", **where)
    return {name: content for name, content in files.items() if name != ".gitattributes" and not name.endswith(".py")}


@pytest.mark.parametrize(
    ("strategy", "checkpoints"),
    [
        ("every_save", []),
        ("checkpoint", ["last-checkpoint"]),
        ("all_checkpoints", ["checkpoint-1", "checkpoint-2"]),
    ],
)
def test_every_push_is_whole_and_holds_what_the_strategy_says(on_hub, tmp_path, strategy, checkpoints):
    trainer = make_trainer(
        tmp_path / "run", hub_strategy=strategy, hub_token=on_hub.token, hub_private_repo=True, save_total_limit=1
    )
    trainer.train()
    local = {
        path.relative_to(tmp_path / "run" / "checkpoint-2").as_posix(): path.read_bytes()
        for path in (tmp_path / "run" / "checkpoint-2").iterdir()
    }
    trainer.push_to_hub(tags=["first-try"])
    assert on_hub.repository("ann/trained").private
    history = on_hub.history("ann/trained")
    progress = [f"Training in progress, step {step}" for step in (2, 1)]
    assert [commit.title for commit in history] == ["End of training", *progress, "initial commit"]
    for commit, step in zip(history, (2, 2, 1), strict=False):
        names = pushed(on_hub, revision=commit.oid).keys()
        outside = {name for name in names if "/" not in name and name not in ("README.md", "training.png")}
        assert outside == MODEL and "README.md" in names
        folders = {name.split("/")[0] for name in names if "/" in name}
        assert folders == set(checkpoints[:step])
    if checkpoints:
        inside = {
            name.removeprefix(f"{checkpoints[-1]}/"): content
            for name, content in on_hub.files("ann/trained").items()
            if name.startswith(checkpoints[-1])
        }
        assert inside == local and {"optimizer.pt", "files.json", "trainer_state.json"} <= set(inside)
    assert not any((tmp_path / "run" / ".pushing").iterdir())
    assert not any(on_hub.token.encode() in content for content in on_hub.files("ann/trained").values())

    loaded = SpeechClipPlusModel.from_pretrained("ann/trained", token=on_hub.token)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert SpeechClipPlusProcessor.from_pretrained("ann/trained").tokenizer.vocab_size
    card = ModelCard(pushed(on_hub)["README.md"].decode())
    assert "first-try" in card.data.tags and card.data.library_name == "transformers"
    assert "ann/trained" in card.text and "generated from Trainer" not in card.text
    card.validate()


def test_a_hub_that_is_down_does_not_stop_a_training(on_hub, tmp_path, caplog):
    trainer = make_trainer(tmp_path / "run", hub_strategy="every_save", hub_revision="run-1")
    on_hub.fail("preupload", times=1000)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "A push to ann/trained failed, and the training went on without it" in caplog.text
    on_hub.heal()
    trainer.push_to_hub()
    assert set(pushed(on_hub)) == set()
    assert MODEL <= set(pushed(on_hub, revision="run-1"))


def test_a_card_that_somebody_wrote_stays_here_and_there(on_hub, tmp_path):
    trainer = make_trainer(tmp_path / "run", hub_strategy="end")
    trainer.push_to_hub()
    written = pushed(on_hub)["README.md"]
    trainer.push_to_hub(license="mit")  # a generated card is made anew
    assert b"license: mit" in pushed(on_hub)["README.md"] and b"license: mit" not in written
    on_hub.commit_as_other("ann/trained", {"README.md": b"---\nlicense: mit\n---\n\nBetter words.\n"})
    trainer.push_to_hub()
    assert pushed(on_hub)["README.md"].endswith(b"Better words.\n")
    (tmp_path / "run" / "README.md").write_text("---\nlicense: mit\n---\n\nMy words.\n")
    trainer.push_to_hub()
    assert pushed(on_hub)["README.md"].endswith(b"My words.\n")


def test_a_private_training_does_not_start_with_a_public_repository(on_hub, tmp_path):
    make_trainer(tmp_path / "run")
    with pytest.raises(ValueError, match="exists and is public"):
        make_trainer(tmp_path / "run", hub_private_repo=True)


def test_only_the_end_is_pushed_if_the_strategy_says_so_and_folders_of_this_machine_stay_on_it(on_hub, tmp_path):
    model = training_runs.make_model()
    model.config.speech_backbone = {"repo_id": str(tmp_path), "revision": None}
    trainer = make_trainer(tmp_path / "run", model=model, hub_strategy="end", max_steps=1)
    trainer.train()
    assert (tmp_path / "run" / "checkpoint-1").is_dir() and pushed(on_hub) == {}
    trainer.push_to_hub()
    files = pushed(on_hub)
    assert json.loads(files["config.json"])["speech_backbone"] is None
    assert not any(str(tmp_path).encode() in content for content in files.values())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["speech_backbone"]["repo_id"] == str(tmp_path)
