"""Several workers on one machine: each a process of its own, their events merged into one stream."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from hpsearch.events import Event, WorkerWarned, from_json

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# What kills a process that nobody asked to leave: the machine, for want of memory, or a library that crashed.
KILLING = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
MOST_STARTS = 4  # of one worker


@dataclass(frozen=True)
class WorkerExited:
    """The process of a worker has ended with this exit code."""

    code: int


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Worker processes, one for each list of arguments, on an equal share of the cores.

    They get every Ctrl-C of the terminal themselves; `terminate` passes a SIGTERM on. One that is killed starts again,
    so that its device does not stay idle. If this process dies, their next event finds no reader and they leave as if
    interrupted. What they print that is no event goes to the standard error.
    """

    def __init__(self, arguments: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
        threads = max(1, num_cores() // len(arguments))
        self._environment = {**environment, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONUNBUFFERED": "1"}
        self._arguments = arguments
        self._events: queue.Queue[tuple[int, Event | WorkerExited]] = queue.Queue()
        self._starting, self._leaving = threading.Lock(), False
        self._processes = [self._start(index) for index in range(len(arguments))]
        for index in range(len(arguments)):
            threading.Thread(target=self._read, args=(index,), daemon=True).start()

    def events(self) -> Iterator[tuple[int, Event | WorkerExited]]:
        """Events with the index of their worker, until all have exited."""
        running = len(self._processes)
        while running:
            index, event = self._events.get()
            running -= isinstance(event, WorkerExited)
            yield index, event

    def leave(self) -> None:
        """Start none again from now on: they have been asked to leave."""
        with self._starting:
            self._leaving = True

    def terminate(self) -> None:
        """Ask every worker to give its trial back and leave."""
        self.leave()
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _start(self, index: int) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            # -P: nothing that lies in the current folder is imported
            [sys.executable, "-P", "-m", "hpsearch", "worker", "--events", *self._arguments[index]],
            stdout=subprocess.PIPE,
            text=True,
            errors="backslashreplace",  # events are ASCII; what else is printed may be anything
            env=self._environment,
        )

    def _read(self, index: int) -> None:
        """Pass on what one worker says, until it has ended and does not start again."""
        try:
            for start in range(MOST_STARTS):
                output: IO[str] | None = self._processes[index].stdout
                assert output is not None
                with output:
                    for line in output:
                        self._take(index, line)
                if not self._starts_again(index, start):
                    return
        finally:  # whoever reads the events waits for this one
            self._events.put((index, WorkerExited(self._processes[index].wait())))

    def _starts_again(self, index: int, start: int) -> bool:
        """Start a worker that was killed for the next time, unless that was often, or all are to leave."""
        code = self._processes[index].wait()
        counts = "--max-trials" in self._arguments[index]  # how many it has done is lost
        with self._starting:
            if self._leaving or counts or start + 1 == MOST_STARTS or code not in [-number for number in KILLING]:
                return False
            killed = signal.Signals(-code).name
            self._events.put((index, WorkerWarned(f"its process was killed ({killed}), and starts again")))
            self._processes[index] = self._start(index)
        return True

    def _take(self, index: int, line: str) -> None:
        try:
            self._events.put((index, from_json(line)))
        except ValueError:
            print(line, end="", file=sys.stderr)
