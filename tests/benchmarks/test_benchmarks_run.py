"""The benchmarks run. What they measure is never asserted: a test's machine is not a benchmark's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["capture", "rollout", "relevance", "overlay", "links", "windows", "match"])
def test_a_benchmark_runs_and_writes_what_it_measured(name: str, tmp_path: Path) -> None:
    if name == "overlay":
        pytest.importorskip("pytorch_grad_cam", reason="grad-cam comes with the bench extra")
    said = _run(name, "--rounds", "1", "--tiny", "--no-memory", "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert all(line["way"] in said and line["cpu_ms"] > 0 for line in found["lines"])
    assert found["machine"]["rounds"] == "1"


def test_peak_memory_is_measured_in_a_process_of_its_own() -> None:
    said = _run("rollout", "--tiny", "--memory-of", "ViT-Ti/16, 64 px", "mmattn.attend + rollout")
    assert set(json.loads(said)) == {"peak_mb", "held_mb"}


def test_the_cost_of_an_import_is_told() -> None:
    assert "| torch, mmattn |" in _run("import_time", "--rounds", "1")


def _run(name: str, *options: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
