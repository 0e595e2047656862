"""The thread that ends a driver whose main thread does not come back to Python, and only such a driver."""

from __future__ import annotations

import subprocess
import sys
import textwrap

BEGINNING = """
import ctypes, os, signal, threading, time
import rl.processes.lastword
from rl.processes.lastword import LastWord

rl.processes.lastword.AFTER_S = 0.5
for signum in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(signum, lambda number, _: print("handled", number, flush=True))

def say(signum):
    print("last word", signum.name, flush=True)

def never_return():
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def driver(code: str) -> tuple[int, str]:
    program = BEGINNING + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_main_thread_that_never_comes_back_gets_no_signal_and_the_process_ends_all_the_same() -> None:
    code, said = driver(
        """
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with LastWord(say):
            never_return()
        """
    )
    assert (code, said) == (143, "last word SIGTERM\n")


def test_no_word_is_said_after_leaving_at_a_signal_or_of_another_signal() -> None:
    code, said = driver(
        """
        with LastWord(say):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)
        """
    )
    assert (code, said) == (0, "handled 10\nhandled 15\nhandled 15\n")


def test_a_signal_to_a_forked_child_is_none_to_its_parent() -> None:
    code, said = driver(
        """
        with LastWord(say):
            child = os.fork()
            if child == 0:
                while True:
                    time.sleep(0.1)
            time.sleep(0.5)
            os.kill(child, signal.SIGTERM)
            time.sleep(1.5)
            os.kill(child, signal.SIGKILL)
        """
    )
    assert (code, said) == (0, "handled 15\n")
