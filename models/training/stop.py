"""A training that is stopped from outside ends with exit code 128 + signal, and the same command goes on."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from types import FrameType
from typing import Any

import pytorch_lightning as pl

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SLURM and docker stop, Ctrl-C, a closed terminal


class Stopped(SystemExit):
    """The end of a program by a signal; its code is that of a shell."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal_name = signal.Signals(number).name


class Stop(pl.Callback):
    """Takes the signals of a training, here and, handed over by Lightning, in its processes on several devices."""

    def __init__(self) -> None:
        self.process, self.number = os.getpid(), 0

    def take(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker of a loader, which is a fork
            os._exit(128 + number)
        self.number = number
        signal.signal(signal.SIGCHLD, lambda *_: None)  # or torch would raise that a worker has ended
        for process in active_children():
            if not process.daemon:  # of another device; in a collective operation it would wait for the others
                process.kill()
        if not _in_object(frame):
            self.leave()

    def leave(self) -> None:
        if self.number:
            raise Stopped(self.number)

    def on_train_start(self, trainer, module) -> None:
        """Replace Lightning's own handlers, which end a program with exit code 0."""
        listen(self.take if os.getpid() == self.process else signal.SIG_DFL)

    def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
        self.leave()

    def on_validation_batch_start(self, trainer, module, batch, batch_index, dataloader_index=0) -> None:
        self.leave()


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Raise `Stopped` from the block at a signal; the callback is for the block's trainer.

    After that a signal ends the program at once.
    """
    stop = Stop()
    before = listen(stop.take)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if stop.number else handler)
        stop.leave()  # also where it met with an error, such as of a worker that the signal has ended first


def listen(handler: Any) -> dict[int, Any]:
    """Set the handler of the signals, but for those that are ignored (``nohup``); the handlers before."""
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}


def _in_object(frame: FrameType | None) -> bool:
    """Whether an object is begun or ended, such as a loader with its workers: an exception would be printed and lost,
    there or later."""
    while frame and frame.f_code.co_name not in ("__init__", "__del__"):
        frame = frame.f_back
    return frame is not None
