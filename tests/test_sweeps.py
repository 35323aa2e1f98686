"""Sweeps: what W&B's agent makes of them is what the scripts understand and log."""

import os
import subprocess

import pandas as pd
import pytest
import yaml
from wandb import wandb_agent

import train_rpn
import train_strokeformer
from models.segmentation.losses import build_loss
from tests.running import BARE, ROOT
from utils.settings import flat

SCRIPTS = {"rpn": train_rpn, "strokeformer": train_strokeformer}


def read_sweep(stage: str) -> dict:
    return yaml.safe_load((ROOT / f"sweeps/{stage}.yaml").read_text())


def drawn(parameters: dict) -> list[dict]:
    """Configurations in which each value of a parameter, or each end of its range, comes up."""
    options = {name: how.get("values") or [how["min"], how["max"]] for name, how in parameters.items()}
    longest = max(map(len, options.values()))
    return [{name: values[i % len(values)] for name, values in options.items()} for i in range(longest)]


def agents_command(sweep: dict, values: dict, folder) -> list[str]:
    """The command that W&B's agent starts for a configuration that the server has drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", {"WANDB_DIR": str(folder)})
        patch.setattr(wandb_agent, "AgentProcess", Process := type("Process", (), {"__init__": _keep}))
        agent = wandb_agent.Agent(None, None)
        agent._sweep_command = list(sweep["command"])
        args = {name: {"value": value} for name, value in values.items()}
        agent._command_run({"run_id": "r4nd0m", "program": sweep["program"], "args": args})
    (process,) = agent._run_processes.values()
    assert isinstance(process, Process)
    return process.command


def _keep(self, command, **_) -> None:
    self.command = command


def words_of(command: list[str], folder) -> list[str]:
    """What the program is started with, once env and the shell have read the command."""
    python = folder / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    env = {**BARE, "PATH": f"{folder}:{BARE['PATH']}", "WANDB_RUN_ID": "r4nd0m"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("stage", SCRIPTS)
def test_script_understands_what_an_agent_asks_for(stage, tmp_path):
    sweep = read_sweep(stage)
    for values in drawn(sweep["parameters"]):
        program, *words = words_of(agents_command(sweep, values, tmp_path), tmp_path)
        settings = flat(SCRIPTS[stage].parse_args(words))
        assert program == SCRIPTS[stage].__name__ + ".py"
        assert {name: settings[name] for name in values} == values
        assert settings["model_prefix"] == "sweep-r4nd0m" and "wandb" in settings["logger"]
        if stage == "strokeformer":
            build_loss(settings["seg_loss"], settings["seg_loss_cfg"])


def test_sweeps_watch_what_trainings_log(workspace):
    for stage, checkpoint in (("rpn", workspace.rpn), ("strokeformer", workspace.seg)):
        log = pd.read_csv(checkpoint.parent.parent / "logs/version_0/metrics.csv")
        assert log[read_sweep(stage)["metric"]["name"]].notna().sum() == 2  # once an epoch, as Hyperband counts
