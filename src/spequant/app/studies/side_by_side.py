"""Runs side by side, each in its own process: one may fail, be killed and be resumed without the others."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from spequant.app.terminal import in_time
from spequant.train.interruption import interruptions


@dataclass(frozen=True)
class Job:
    """One run: the name of its recipe, its folder, the arguments of `spequant`, and what its lines begin with."""

    recipe: str
    folder: Path
    arguments: tuple[str, ...]
    title: str = ""


def threads_each(at_once: int) -> list[str]:
    """The option that gives each of `at_once` runs its share of the CPU's threads; one run has them all without it."""
    return ["--train.threads", str(max(1, torch.get_num_threads() // at_once))] if at_once > 1 else []


def side_by_side(jobs: Sequence[Job], at_once: int) -> list[int]:
    """Carry out `jobs`, `at_once` at the same time, and print their lines as they come, with number and title.

    Returns:
        The exit status of each job.

    Raises:
        ValueError: `at_once` is less than 1.
        KeyboardInterrupt: SIGINT or SIGTERM came. It is passed on to the runs, which save and end; a second one kills
            them.
    """
    if at_once < 1:
        raise ValueError(f"at_once is {at_once}; expected 1 or more")
    with ThreadPoolExecutor(at_once) as pool, _Processes(len(jobs)) as processes:
        codes = [pool.submit(processes.carry_out, job, i) for i, job in enumerate(jobs, 1)]
        with interruptions() as asked:
            while wait(codes, timeout=0.2).not_done and not asked():
                pass
            interrupted = asked()
        if interrupted:
            processes.stop(signal.SIGINT)
            wait(codes)
    if interrupted:
        raise KeyboardInterrupt("interrupted; the same command goes on with these runs")
    return [code.result() for code in codes]


def all_finished(jobs: Sequence[Job], codes: Sequence[int]) -> None:
    """Check that all jobs ended with exit status 0.

    Raises:
        ChildProcessError: names the jobs that did not.
    """
    failed = [f"{job.folder} (exit {code})" for job, code in zip(jobs, codes, strict=True) if code]
    if failed:
        raise ChildProcessError(f"not finished: {', '.join(failed)}; the reasons stand above")


class _Processes:
    """The runs under way, of so many in all."""

    def __init__(self, count: int) -> None:
        self.lock, self.running, self.stopped = threading.Lock(), set[subprocess.Popen[str]](), False
        self.count, self.done, self.begin = count, 0, time.monotonic()

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # a second Ctrl-C
            self.stop(signal.SIGKILL)

    def carry_out(self, job: Job, number: int) -> int:
        """Carry out a run; its exit status. Nothing is started after `stop`."""
        name = f"[{number}/{self.count}] {job.title or job.folder.name}  "
        command = [sys.executable, "-m", "spequant", *job.arguments]
        with self.lock:
            if self.stopped:
                return 130
            process = subprocess.Popen(  # in its own session: Ctrl-C reaches it once, through `stop`
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self.running.add(process)
        assert process.stdout is not None
        own_name = re.compile(rf"^{re.escape(job.folder.name)}(, seed \d+)?  ")
        try:
            _say(f"{name}started")
            with process.stdout as lines:
                for line in lines:
                    _say(name + own_name.sub("", line.removesuffix("\n"), count=1))
            _say(f"{name}{self._ended(process.wait())}")
        except BaseException:  # nobody reads its lines any more
            self.stop(signal.SIGINT)
            raise
        finally:
            code = process.wait()
            with self.lock:
                self.running.remove(process)
        return code

    def _ended(self, code: int) -> str:
        """Count a run that ended; what there is to say."""
        with self.lock:
            self.done += 1
            left = (time.monotonic() - self.begin) / self.done * (self.count - self.done)
        status = "" if code == 0 else f" (exit {code})"
        return f"ended{status}; {self.done} of {self.count} runs done, about {in_time(left)} left"

    def stop(self, number: signal.Signals) -> None:
        """Send a signal to each run: SIGINT to save, as a scheduler may have sent SIGTERM, and a second one kills."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.send_signal(number)


def _say(line: str) -> None:
    """Print a line in one piece: the runs' lines come from several threads."""
    print(f"{line}\n", end="", flush=True)
