"""What a training pushes to the Hub, and when."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
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


@pytest.fixture(autouse=True)
def clients_of_this_hub(monkeypatch):
    """transformers keeps one client for all its pushes, with the address of the first test's Hub."""
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)


def pushed(hub, **where):
    files = hub.files("ann/trained", **where)
    return {name: content for name, content in files.items() if name != ".gitattributes" and not name.endswith(".py")}


@pytest.mark.parametrize(
    ("strategy", "checkpoints"),
    [
        ("end", set()),
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-1", "checkpoint-2"}),
    ],
)
def test_pushes_hold_what_the_strategy_says_and_never_the_token(on_hub, tmp_path, strategy, checkpoints):
    trainer = make_trainer(
        tmp_path / "run", hub_strategy=strategy, hub_token=on_hub.token, hub_private_repo=True, run_name="first"
    )
    trainer.train()
    during = pushed(on_hub)
    assert ("model.safetensors" in during) == (strategy != "end")
    trainer.push_to_hub(tags=["first-try"])
    assert on_hub.repository("ann/trained").private
    files = pushed(on_hub)
    assert MODEL <= files.keys()
    assert {name.split("/")[0] for name in files if "checkpoint" in name} == checkpoints
    if checkpoints:
        assert files[f"{max(checkpoints)}/optimizer.pt"] == (tmp_path / "run/checkpoint-2/optimizer.pt").read_bytes()
    assert not any(on_hub.token.encode() in content for content in on_hub.files("ann/trained").values())
    arguments = torch.load(tmp_path / "run/checkpoint-2/training_args.bin", weights_only=False)
    assert arguments.hub_token is None and arguments.run_name == "first" and trainer.args.hub_token == on_hub.token

    assert "modeling_speechclip_plus.py" in on_hub.files("ann/trained")  # loads where this package is not installed
    loaded = SpeechClipPlusModel.from_pretrained("ann/trained", token=on_hub.token)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert SpeechClipPlusProcessor.from_pretrained("ann/trained").tokenizer.vocab_size
    card = ModelCard(files["README.md"].decode())
    assert "first-try" in card.data.tags and card.data.library_name == "transformers"
    assert "ann/trained" in card.text and "generated from Trainer" not in card.text
    card.validate()


def test_a_hub_that_is_down_does_not_stop_a_training(on_hub, tmp_path):
    trainer = make_trainer(tmp_path / "run", hub_strategy="every_save")
    on_hub.fail("preupload", times=1000)
    trainer.train()
    assert trainer.state.global_step == 2 and pushed(on_hub) == {}
    on_hub.heal()
    trainer.push_to_hub()
    assert MODEL <= set(pushed(on_hub))


def test_a_card_that_somebody_wrote_stays(on_hub, tmp_path):
    trainer = make_trainer(tmp_path / "run", hub_strategy="end")
    trainer.push_to_hub()
    written = pushed(on_hub)["README.md"]
    trainer.push_to_hub(license="mit")  # a generated card is made anew
    assert b"license: mit" in pushed(on_hub)["README.md"] and b"license: mit" not in written
    (tmp_path / "run" / "README.md").write_text("---\nlicense: mit\n---\n\nMy words.\n")
    trainer.push_to_hub()
    assert pushed(on_hub)["README.md"].endswith(b"My words.\n")
