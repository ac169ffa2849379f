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

from hpsearch.events import Event, from_json

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class WorkerExited:
    """The process of a worker has ended with this exit code."""

    code: int


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Worker processes, one for each list of arguments, on an equal share of the cores.

    They get every Ctrl-C of the terminal themselves; `terminate` passes a SIGTERM on. If this process dies, their
    next event finds no reader and they leave as if interrupted. What they print that is no event goes to the standard
    error.
    """

    def __init__(self, arguments: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
        threads = max(1, num_cores() // len(arguments))
        environment = {**environment, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONUNBUFFERED": "1"}
        self._events: queue.Queue[tuple[int, Event | WorkerExited]] = queue.Queue()
        self._processes = [
            subprocess.Popen(
                # -P: nothing that lies in the current folder is imported
                [sys.executable, "-P", "-m", "hpsearch", "worker", "--events", *own],
                stdout=subprocess.PIPE,
                text=True,
                errors="backslashreplace",  # events are ASCII; what else is printed may be anything
                env=environment,
            )
            for own in arguments
        ]
        for index, process in enumerate(self._processes):
            threading.Thread(target=self._read, args=(index, process), daemon=True).start()

    def events(self) -> Iterator[tuple[int, Event | WorkerExited]]:
        """Events with the index of their worker, until all have exited."""
        running = len(self._processes)
        while running:
            index, event = self._events.get()
            running -= isinstance(event, WorkerExited)
            yield index, event

    def terminate(self) -> None:
        """Ask every worker to give its trial back and leave."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _read(self, index: int, process: "subprocess.Popen[str]") -> None:
        output: IO[str] | None = process.stdout
        assert output is not None
        try:
            with output:
                for line in output:
                    self._take(index, line)
        finally:  # whoever reads the events waits for this one
            self._events.put((index, WorkerExited(process.wait())))

    def _take(self, index: int, line: str) -> None:
        try:
            self._events.put((index, from_json(line)))
        except ValueError:
            print(line, end="", file=sys.stderr)
