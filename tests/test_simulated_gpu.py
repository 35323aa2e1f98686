"""Networks and losses on a GPU that is not there: no tensor stays behind on the CPU."""

import json

import pytest

from tests.running import run_script

REFUSALS = """
import torch
from tests.simulated_gpu import plug_in

ones = torch.ones(2).to(plug_in())
for name, wrong in {"mixed": lambda: ones + torch.ones(2), "array": lambda: ones.numpy()}.items():
    try:
        wrong()
    except (RuntimeError, TypeError):
        print(name)
print(ones.device, (ones * ones).mean().item())
"""


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> dict[str, str]:
    """What went wrong in the cases of ``tests/on_simulated_gpu.py``, which needs a process of its own."""
    return json.loads(run_script("tests/on_simulated_gpu.py", cwd=tmp_path_factory.mktemp("gpu")).out)


def test_training_validation_segmentation_and_explanations_keep_to_the_gpu(wrong):
    assert not wrong, "\n".join(f"{case}: {error}" for case, error in wrong.items())


def test_simulated_gpu_refuses_what_a_gpu_refuses(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(REFUSALS)
    assert run_script(program, cwd=tmp_path).out.split() == ["mixed", "array", "simulated:0", "1.0"]
