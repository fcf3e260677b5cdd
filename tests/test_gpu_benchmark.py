"""benchmarks/gpu.py at toy size on the CPU: results of every part, whatever becomes of the others."""

import importlib.util
import json
import subprocess
import sys

import pytest


def load(repository_root, name):
    spec = importlib.util.spec_from_file_location(name, repository_root / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu(repository_root):
    return load(repository_root, "gpu")


def run(repository_root, output, *options):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--output", str(output), *options]
    subprocess.run(command, cwd=repository_root, check=True)
    return json.loads((output / "gpu.json").read_text(encoding="utf-8"))


def test_a_part_writes_its_rows_and_the_table_says_that_they_are_a_cpus(repository_root, tmp_path):
    results = run(repository_root, tmp_path, "--parts", "kernels")
    assert list(results["parts"]) == ["kernels"]
    assert all(row["times faster"] > 0 for row in results["parts"]["kernels"]["rows"][1:])
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "**A CPU with tiny models" in table and "| quantisation" in table


@pytest.mark.slow
def test_every_part_runs_at_toy_size(repository_root, gpu, tmp_path):
    parts = run(repository_root, tmp_path)["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert {name: part["end"] for name, part in parts.items()} == dict.fromkeys(gpu.PARTS, "finished")
    golden = parts["numerics"]["rows"][0]
    assert golden["passed"] > 50 and golden["failed"] == 0
    failed = {row["case"] for part in parts.values() for row in part["rows"] if "result" in row}
    assert failed <= {"flash_attention_2", "flex_attention"}  # need a GPU


def test_a_part_that_fails_or_hangs_is_reported_and_ended(gpu):
    assert gpu.run_part("no such part", "cpu", 60) == ("ended with exit code 1", [])
    assert gpu.run_part("kernels", "cpu", 0) == ("stopped after 0 s", [])


def test_results_are_shown_with_what_went_wrong(gpu, tmp_path):
    facts = {"device": "NVIDIA", "torch": "2", "date": "2026-01-01"}
    rows = [{"case": "a", "ms": 1.23456}, {"case": "b", "result": "OutOfMemoryError: 80 | GB"}]
    gpu.write(tmp_path, facts, {"steps": {"end": "finished", "seconds": 1.0, "rows": rows}})
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "| a | 1.235 |  |" in table
    assert "| b |  | OutOfMemoryError: 80 / GB |" in table
    assert "CPU" not in table


def test_wheels_come_first_on_the_path(gpu, tmp_path):
    (tmp_path / "speechclip_plus.py").write_text("raise SystemExit(3)")
    assert gpu.run_part("steps", "cpu", 60, tmp_path)[0] == "ended with exit code 3"
