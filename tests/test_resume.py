"""Runs that are killed, and the checkpoints they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speechclip_plus.atomic_files import write_json
from speechclip_plus.trainer.trainer_speechclip_plus import last_complete_checkpoint

# Imports once, then forks: a killed process costs no new start of Python. It never computes gradients itself.
KILLED_AGAIN_AND_AGAIN = """
import os, random, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
import training_runs
from speechclip_plus.trainer.trainer_speechclip_plus import last_complete_checkpoint

folder, kills = Path({folder!r}), {kills}
steps = 40

def train(run, resume, stop=None):
    trainer = training_runs.make_trainer(
        folder / run, training_runs.make_model(dropout=0.1), max_steps=steps, save_strategy="steps", save_steps=2,
        save_total_limit=2, eval_strategy="steps", eval_steps=8,
        max_audio_samples=6000, train_sampling_strategy="group_by_length",
    )
    trainer.train(resume_from_checkpoint=resume)
    torch.save({{"weights": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict(),
                "best": trainer.state.best_metric, "step": trainer.state.global_step}}, folder / (run + ".pt"))

def forked(*arguments):
    process = os.fork()
    if process == 0:
        code = 1
        try:
            train(*arguments)
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    return process

def finished(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

started = time.monotonic()
assert finished(forked("whole", None)) == 0
whole = time.monotonic() - started

def incomplete():
    return {{path for path in (folder / "killed").glob("checkpoint-*") if not (path / "files.json").is_file()}}

draw = random.Random({seed})
killed = writing = 0
while killed < kills or last_complete_checkpoint(folder / "killed") is None:
    resume = last_complete_checkpoint(folder / "killed") is not None
    wait_for_checkpoint = killed % 2 == 1
    if wait_for_checkpoint:
        for path in incomplete():
            shutil.rmtree(path)
    process = forked("killed", resume or None)
    if wait_for_checkpoint:
        while not incomplete() and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
    else:
        time.sleep(draw.uniform(0, whole / 2))
    os.kill(process, signal.SIGKILL)
    code = finished(process)
    assert code in (0, -signal.SIGKILL), code
    if code == 0:  # it had got to its end: once more from the beginning
        shutil.rmtree(folder / "killed")
    else:
        killed += 1
        writing += bool(incomplete())
assert writing
assert finished(forked("killed", True)) == 0
print("killed", killed, "times,", writing, "of them while a checkpoint was written")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_times_ends_bit_for_bit_as_one_never_killed(kills, tmp_path, repository_root):
    script = KILLED_AGAIN_AND_AGAIN.format(
        tests=str(Path(__file__).parent), folder=str(tmp_path), kills=kills, seed=kills
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository_root / "src")}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr[-5000:]
    print(result.stdout)
    expected = torch.load(tmp_path / "whole.pt", weights_only=False)
    found = torch.load(tmp_path / "killed.pt", weights_only=False)
    assert found["step"] == expected["step"] == 40 and found["best"] == expected["best"]
    assert all(torch.equal(found["weights"][name], value) for name, value in expected["weights"].items())
    for index, state in expected["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(found["optimizer"]["state"][index][name], value), (index, name)


def write_checkpoint(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    write_json(checkpoint / "files.json", {path.name: path.stat().st_size for path in checkpoint.iterdir()})
    return checkpoint


def test_the_last_complete_checkpoint_is_found(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path, 9)
    newest = write_checkpoint(tmp_path, 10)
    assert last_complete_checkpoint(tmp_path) == str(newest)


@pytest.mark.parametrize("damage", ["missing", "short", "never finished"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path, damage):
    whole, broken = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    if damage == "missing":
        (broken / "model.safetensors").unlink()
    elif damage == "short":
        (broken / "model.safetensors").write_bytes(b"wei")
    else:
        (broken / "files.json").unlink()
    assert last_complete_checkpoint(tmp_path) == str(whole)
