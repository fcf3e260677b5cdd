"""Adapters of PEFT on the speech encoder, trained beside the branch by the Trainer."""

import importlib.util
from pathlib import Path

import peft
import pytest
import torch

from speechclip_plus.trainer.collator import SpeechImageCollator

spec = importlib.util.spec_from_file_location("training_runs", Path(__file__).parent / "training_runs.py")
training_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(training_runs)

BRANCH = ["branch", "layer_sum", "cif", "keyword_projection", "keyword_norm", "parallel_projection"]


def with_adapter(dropout=0.0):
    adapter = peft.LoraConfig(
        target_modules=r"speech_encoder\..*\.(q_proj|v_proj)", modules_to_save=BRANCH, r=2, lora_dropout=dropout
    )
    return peft.get_peft_model(training_runs.make_model(), adapter)


def embeds(model):
    batch = SpeechImageCollator(training_runs.make_processor())(list(training_runs.make_dataset(4)))
    with torch.no_grad():
        return model.eval().get_audio_features(batch["input_values"], batch["attention_mask"]).pooler_output


@pytest.mark.parametrize("chunk", [None, 2])
def test_an_adapter_is_trained_saved_reloaded_and_merged(tmp_path, chunk):
    model = with_adapter()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = training_runs.make_trainer(
        tmp_path / "run",
        model=model,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        gradient_cache_chunk=chunk,
    )
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("lora_B" in name for name in changed) and any("modules_to_save" in name for name in changed)
    assert all("lora_" in name or "modules_to_save" in name for name in changed), changed
    assert trainer.state.log_history[0]["parallel_loss"] > 0 and trainer.evaluate()["eval_utterances"] == 11

    saved = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.best_global_step}"
    assert (saved / "adapter_model.safetensors").is_file() and not (saved / "model.safetensors").exists()
    expected = embeds(model)
    reloaded = peft.PeftModel.from_pretrained(training_runs.make_model(), saved)
    torch.testing.assert_close(embeds(reloaded), expected)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(embeds(merged), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(embeds(type(merged).from_pretrained(tmp_path / "merged")), embeds(merged))


def test_a_resumed_adapter_ends_with_the_same_weights_as_one_never_stopped(tmp_path):
    whole = training_runs.make_trainer(tmp_path, with_adapter(0.1), max_steps=4, save_strategy="steps", save_steps=3)
    whole.train()
    resumed = training_runs.make_trainer(tmp_path / "resumed", with_adapter(0.1), max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
