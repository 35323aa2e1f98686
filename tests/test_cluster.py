"""docs/cluster.md: its script is one that a shell reads, and its commands are ones that the program understands."""

import shlex
import subprocess

import pytest

import cross_validation
from tests.running import BARE, ROOT

PAGE = (ROOT / "docs/cluster.md").read_text()


def blocks(language: str) -> list[str]:
    return [block.split("```")[0] for block in PAGE.split(f"```{language}\n")[1:]]


def commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("cross_validation.py ")[1] for line in lines if "cross_validation.py " in line]


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = cross_validation.parse_args(shlex.split(command))
    assert settings.launcher == "ray" or settings.folds.aggregate


def test_job_of_the_array_runs_its_own_fold_on_the_cpus_that_it_got(tmp_path, monkeypatch):
    (script,) = blocks("bash")
    (tmp_path / "folds.sbatch").write_text(script)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf \'%s\\n\' "$OMP_NUM_THREADS" "$@"\n')
    python.chmod(0o755)
    env = {**BARE, "SLURM_CPUS_PER_TASK": "8", "SLURM_ARRAY_TASK_ID": "3"}
    done = subprocess.run(["bash", "folds.sbatch"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    threads, program, *words = done.stdout.splitlines()
    monkeypatch.chdir(ROOT)
    settings = cross_validation.parse_args(words)
    assert (threads, program) == ("8", "cross_validation.py")
    assert settings.folds.folds_to_run == (3,) and settings.num_workers == 7
    assert f"#SBATCH --array=0-{settings.folds.k - 1}\n" in script
