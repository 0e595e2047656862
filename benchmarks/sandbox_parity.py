"""Ordinary programs in the sandbox and under plain Python: how many behave differently, and which.

    python -m benchmarks.sandbox_parity HumanEval.jsonl.gz [MUTANTS]

The programs are HumanEval's solutions with their tests, mutants of them, and the standard library's own examples (the
doctests of its modules). Compared are the exit code, what is printed, and the error with which a program ends.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.judge_parity import problems
from benchmarks.mutants import mutants
from rewards.sandbox import bubblewrap
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Execution, Sandbox
from rollout.envs.python import last_error

WALL_S = 20.0
MODULES = """
abc argparse array ast base64 bisect calendar cmath cmd code codecs collections colorsys configparser
contextlib copy copyreg csv ctypes dataclasses datetime decimal difflib dis email.message enum fileinput
fnmatch fractions ftplib functools getopt getpass glob graphlib gzip hashlib heapq hmac html html.parser
http.client http.cookies imaplib inspect io ipaddress itertools json json.encoder json.decoder keyword
linecache locale logging mailbox math mimetypes mmap multiprocessing numbers opcode operator optparse os
pathlib pdb pickle pickletools platform plistlib poplib posixpath pprint profile pstats pty queue quopri
random re reprlib rlcompleter sched secrets select shelve shlex shutil signal smtplib socket socketserver
sqlite3 ssl stat statistics string stringprep struct subprocess symtable sysconfig tarfile tempfile textwrap
threading timeit tkinter tokenize trace traceback types typing unicodedata unittest unittest.mock
urllib.parse urllib.request urllib.robotparser uuid warnings wave weakref webbrowser xml.dom.minidom
xml.etree.ElementTree xml.sax.saxutils zipfile zlib zoneinfo
"""


def programs(file: str, count: int) -> Iterator[tuple[str, str]]:
    """Names and sources."""
    for number, problem in enumerate(problems(file)):
        reference = problem["prompt"] + problem["canonical_solution"]
        tests = f"{problem['test']}\ncheck({problem['entry_point']})\nprint('passed')\n"
        for place, source in enumerate([reference, *mutants(reference, problem["entry_point"], count, seed=number)]):
            yield f"{problem['task_id']} {place}", f"{source}\n{tests}"
    for module in MODULES.split():
        yield f"doctests of {module}", f"import doctest, {module}\nprint(doctest.testmod({module}))\n"


def plain(source: str) -> tuple[object, str, str]:
    """Exit code, output and error of a program under plain Python."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "main.py").write_text(source, encoding="utf-8")
        try:
            done = subprocess.run(
                [bubblewrap.interpreter(), "-X", "utf8", "main.py"], cwd=folder, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=WALL_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "timeout", "", ""
    return done.returncode, _bare(done.stdout, folder), _bare(last_error(done.stderr), folder)


def sandboxed(execution: Execution) -> tuple[object, str, str]:
    if execution.outcome == "timeout":
        return "timeout", "", ""
    return execution.exit_code, _bare(execution.stdout, "/tmp"), _bare(last_error(execution.stderr), "/tmp")


def _bare(text: str, folder: str) -> str:
    """Text without what differs from run to run: addresses and the program's folder."""
    return re.sub(r"0x[0-9a-f]+", "0x", text.replace(folder, "")).strip()


async def compare(file: str, count: int) -> None:
    sandbox = Sandbox(SandboxConfig(wall_s=WALL_S, cpu_s=20, memory_mb=1024, concurrency=2))
    sandbox.require()
    found: Counter[str] = Counter()
    slots = asyncio.Semaphore(2)

    async def one(name: str, source: str) -> None:
        async with slots:
            expected = await asyncio.to_thread(plain, source)
            own = sandboxed(await sandbox.run(source))
        kind = "doctests" if name.startswith("doctests") else "HumanEval"
        found[f"{kind}: {'the same' if own == expected else 'different'}"] += 1
        if own != expected:
            print(f"DIFFERS {name}\n  plain     {expected!r:.500}\n  sandboxed {own!r:.500}", flush=True)

    await asyncio.gather(*(one(name, source) for name, source in programs(file, count)))
    for name, times in sorted(found.items()):
        print(f"{times:6} {name}")


if __name__ == "__main__":
    asyncio.run(compare(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5))
