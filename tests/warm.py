"""Runs Python programs, each in a fork of this process, which has imported the heavy libraries: seconds less a program.

Nothing of the project is imported before a fork, and a program ends as any other: with its exit code, its traceback
and what it does at exit. A job is a line of JSON on stdin; its exit code is the answer on stdout.
"""

import gc
import importlib
import json
import os
import random
import resource
import runpy
import sys
from pathlib import Path

LIBRARIES = ["matplotlib.pyplot", "monai", "nibabel", "pandas", "pytorch_lightning", "torchvision"]
LIBRARIES += ["nilearn.plotting", "pytorch_grad_cam", "wandb.apis.public", "wandb.sdk.wandb_init"]


def take_job() -> dict:
    """The next job, in a fork; this process itself stays here until there are no more."""
    for line in sys.stdin:
        if (program := os.fork()) == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]), flush=True)
    sys.exit()


def draw_anew() -> None:
    """As at a start of Python: numbers are others every time, unless a program sets a seed (torch has its own)."""
    random.seed()
    sys.modules["numpy"].random.seed()


for library in LIBRARIES:
    importlib.import_module(library)
gc.freeze()
job = take_job()
for stream, path in enumerate((os.devnull, job["out"], job["err"])):
    os.dup2(os.open(path, os.O_RDWR), stream)
os.chdir(job["cwd"])
if job["largest_file"] is not None:
    # A file that Python compiles may not be cut off at the limit: the next program would read half of it.
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], job["largest_file"]))
draw_anew()
Path(sys.modules["wandb.sdk.data_types._private"].MEDIA_TMP.name).mkdir(
    exist_ok=True
)  # a program removes it as it ends
program, *arguments = job["command"]
if program == "-m":
    sys.path[0], sys.argv = job["cwd"], arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
else:
    sys.path[0], sys.argv = str(Path(program).parent), job["command"]
    runpy.run_path(program, run_name="__main__")
