"""Two processes train as one does with their batches joined, with DDP and with FSDP."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from speechclip_plus import SpeechClipPlusModel
from speechclip_plus.trainer.checkpoints import last_complete_checkpoint
from speechclip_plus.trainer.sharding import prepare_sharding

SCRIPT = Path(__file__).parent / "training_runs.py"
spec = importlib.util.spec_from_file_location("training_runs", SCRIPT)
training_runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(training_runs)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return training_runs.distributed_runs(tmp_path_factory.mktemp("one"), batch_size=4)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, repository_root):
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository_root / "src")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return torch.load(folder / "runs.pt", weights_only=False) | {"folder": folder}


RUNS = ["random", "grouped", "cached", "sharded_random", "sharded_grouped"]


@pytest.fixture
def expected(one_process, run):
    return one_process[run.removeprefix("sharded_")]


@pytest.mark.parametrize("run", RUNS)
def test_gradients_of_every_step_are_those_of_one_process(expected, two_processes, run):
    found = two_processes[run]["gradients"]
    assert len(found) == len(expected["gradients"]) >= 3
    for step, (mine, theirs) in enumerate(zip(expected["gradients"], found, strict=True)):
        assert mine.keys() == theirs.keys()
        norm = torch.stack([value.norm() for value in mine.values()]).norm()
        for name, value in mine.items():
            assert (theirs[name] - value).norm() < 1e-5 * norm, (step, name)


@pytest.mark.parametrize("run", RUNS)
def test_weights_and_running_statistics_are_those_of_one_process(expected, two_processes, run):
    start = training_runs.make_model("cascaded" if run.endswith("grouped") else "hybrid_plus").state_dict()
    apart, moved = [], []
    for name, value in expected["weights"].items():
        difference = two_processes[run]["weights"][name].double() - value.double()
        assert difference.abs().max() < 1e-5, name
        apart.append(difference.norm())
        moved.append((value.double() - start[name].double()).norm())
    assert torch.stack(apart).norm() < 3e-4 * torch.stack(moved).norm()


@pytest.mark.parametrize("run", RUNS)
def test_logged_losses_and_metrics_are_those_of_one_process(expected, two_processes, run):
    for mine, theirs in zip(expected["logs"], two_processes[run]["logs"], strict=True):
        for name in ("loss", "parallel_loss", "cascaded_loss", "quantity_loss", "distinct_keywords", "grad_norm"):
            assert (name in theirs) == (name in mine)
            assert theirs.get(name, 0) == pytest.approx(mine.get(name, 0), rel=1e-4), name
    mine, theirs = expected["metrics"], two_processes[run]["metrics"]
    timings = ("runtime", "per_second", "loss", "epoch")  # eval_loss is of each batch, and the batches differ
    for name in mine:
        if not name.endswith(timings):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
    assert theirs["eval_utterances"] == training_runs.NUM_ROWS


def test_batches_of_unequal_size_were_among_them(one_process):
    assert training_runs.NUM_ROWS % 4 == 3  # the last batch of an epoch: two rows for one process, one for the other


def test_each_process_streams_rows_of_its_own(two_processes):
    first, second = (set(seen) for seen in two_processes["streamed"])
    assert not first & second
    assert first | second == set(range(12))
    assert [len(seen) for seen in two_processes["streamed"]] == [12, 12]  # two passes over its six rows


@pytest.mark.parametrize(("name", "optimizer"), [("command", "optimizer.pt"), ("sharded_command", "optimizer.bin")])
def test_the_command_trains_and_resumes_with_two_processes(two_processes, name, optimizer):
    assert two_processes[name] == [0, 0]
    run = two_processes["folder"] / name
    results = json.loads((run / "results.json").read_text())
    assert max(entry["step"] for entry in results["history"]) == 4
    assert results["metrics"]["utterances"] == 4
    assert (run / "model" / "README.md").is_file()
    model = SpeechClipPlusModel.from_pretrained(run / "model")
    assert model.config.architectures == ["SpeechClipPlusModel"]
    newest = last_complete_checkpoint(run)
    assert Path(newest).name == "checkpoint-4"
    assert {"rng_state_0.pth", "rng_state_1.pth", optimizer} <= {path.name for path in Path(newest).iterdir()}
    assert not (run / ".unfinished").exists()


def test_a_sharded_run_resumes_bit_for_bit_and_saves_the_whole_model(two_processes):
    whole, resumed = two_processes["sharded_random"]["weights"], two_processes["sharded_resumed"]
    saved = SpeechClipPlusModel.from_pretrained(two_processes["folder"] / "sharded" / "saved").state_dict()
    assert whole.keys() == resumed.keys() == saved.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
        assert torch.equal(saved[name], value), name


def test_sharded_weights_stay_in_float32_under_bfloat16(one_process, two_processes):
    found = two_processes["sharded_in_half"]
    assert found["dtypes"] == {"torch.float32"}
    exact = one_process["random"]["logs"][0]["loss"]
    assert found["loss"] != pytest.approx(exact, rel=1e-5)  # computed in half precision
    assert found["loss"] == pytest.approx(exact, rel=2e-2)


def test_sharding_that_would_not_happen_is_refused(tmp_path):
    trainer = training_runs.make_trainer(tmp_path)
    with pytest.raises(ValueError, match="accelerate shards on GPUs alone and this run is on cpu"):
        prepare_sharding(trainer.accelerator, trainer.model, wanted=True)
    first_version = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1)))
    with pytest.raises(ValueError, match="sharded by FSDP2, and the settings ask for version 1"):
        prepare_sharding(first_version, trainer.model, wanted=True)
