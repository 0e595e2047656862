# ruff: noqa: E501 (a program a line)
"""Answers that try to talk, reach or break their way to a passing verdict. None passes, and none is excused as an
infrastructure failure."""

from __future__ import annotations

import pytest

from tests.rewards.judge.judge_support import verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SQUARE = {"entry_point": "f", "tests": "assert f(2) == 4\nassert f(3) == 9"}
"""Tests that call the answer twice."""

EQUAL = "__eq__ = __le__ = __ge__ = __lt__ = __gt__ = __contains__ = lambda *_: True\n  __ne__ = lambda *_: False"
WRONG = "def f(x): return 0\n"
EVERY_FD = "import os\nfor fd in range(256):\n  try: os.write(fd, {data})\n  except OSError: pass\n"
MESSAGE = "import os\ndef say(kind, data):\n  os.write(3, kind + len(data).to_bytes(4, 'big') + data)\n"
"""The call socket may have another number; `SOCKET` finds it."""
SOCKET = (
    "import os, stat\n"
    "fd = next(n for n in range(3, 256) if os.path.exists(f'/proc/self/fd/{n}') and stat.S_ISSOCK(os.fstat(n).st_mode))\n"
    "def say(kind, data): os.write(fd, kind + len(data).to_bytes(4, 'big') + data)\n"
)
FOUR, TRUE = b"i" + (1).to_bytes(4, "big") + b"\4", b"T"
ANSWER = (
    b"t" + (3).to_bytes(4, "big") + b"s" + (5).to_bytes(4, "big") + b"value%s" + b"i" + (1).to_bytes(4, "big") + b"\0"
)

ATTACKS = {
    # Objects that say that they are equal.
    "equal object": f"class E:\n  {EQUAL}\ndef f(x): return E()",
    "equal int": f"class E(int):\n  {EQUAL}\ndef f(x): return E(0)",
    "equal float": f"class E(float):\n  {EQUAL}\ndef f(x): return E(0)",
    "equal text": f"class E(str):\n  {EQUAL}\ndef f(x): return E()",
    "equal bytes": f"class E(bytes):\n  {EQUAL}\ndef f(x): return E()",
    "equal list": f"class E(list):\n  {EQUAL}\ndef f(x): return E()",
    "equal tuple": f"class E(tuple):\n  {EQUAL}\ndef f(x): return E()",
    "equal dict": f"class E(dict):\n  {EQUAL}\ndef f(x): return E()",
    "equal set": f"class E(set):\n  {EQUAL}\n  __hash__ = None\ndef f(x): return E()",
    "equal complex": f"class E(complex):\n  {EQUAL}\ndef f(x): return E()",
    "equal class": f"class M(type):\n  {EQUAL}\n  __hash__ = type.__hash__\nclass E(metaclass=M): pass\ndef f(x): return E",
    "another class": "class E:\n  __class__ = property(lambda s: int)\n  __index__ = lambda s: 4\ndef f(x): return E()",
    "mock": "from unittest.mock import MagicMock\ndef f(x):\n  m = MagicMock()\n  m.__eq__ = lambda *_: True\n  return m",
    "any": "from unittest.mock import ANY\ndef f(x): return ANY",
    "not implemented": "def f(x): return NotImplemented",
    "decimal that lies": f"import decimal\nclass Decimal(decimal.Decimal):\n  {EQUAL}\ndef f(x): return Decimal(0)",
    "int in disguise": "class int_(int):\n  __eq__ = lambda *_: True\n  __hash__ = int.__hash__\nf = lambda x: int_(7)",
    # Ends.
    "exit on load": "import sys\nsys.exit(0)",
    "hard exit on load": "import os\nos._exit(0)",
    "exit in the call": "import sys\ndef f(x): sys.exit(0)",
    "hard exit in the call": "import os\ndef f(x): os._exit(0)",
    "exit at the second call": "import sys\ndef f(x): return 4 if x == 2 else sys.exit(0)",
    "raises SystemExit()": "def f(x): raise SystemExit",
    "an own SystemExit": "class S(SystemExit): code = 0\ndef f(x): raise S(0)",
    "interrupt": "def f(x): raise KeyboardInterrupt",
    "generator exit": "def f(x): raise GeneratorExit",
    "stop": "def f(x): raise StopIteration(4)",
    "kill itself": "import os\ndef f(x): os.kill(os.getpid(), 9)",
    "kill all": "import os\ndef f(x): os.kill(-1, 9)",
    "stop itself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)",
    "exit at exit": "import atexit, os\natexit.register(os._exit, 0)\n" + WRONG,
    # Excuses: errors that would mean broken tests if a line of the tests had raised them.
    "name error": "def f(x): raise NameError('check')",
    "import error": "def f(x): import numpyx",
    "import error on load": "import numpyx",
    "syntax error": "def f(x:",
    "null byte": "def f(x): return 4\n\0",
    "missing file": "def f(x): open('/data.txt')",
    "no such function": "def g(x): return x * x",
    "an infrastructure error": "class InfrastructureError(Exception): pass\ndef f(x): raise InfrastructureError('gone')",
    "an error of ours": "class AnswerLost(BaseException): pass\ndef f(x): raise AnswerLost('used up its time')",
    "a skipped test": "import unittest\ndef f(x): raise unittest.SkipTest('later')",
    "a group of errors": "def f(x): raise ExceptionGroup('many', [ValueError()])",
    "an error that cannot be shown": "class E(Exception):\n  def __str__(s): raise E\ndef f(x): raise E",
    "an error with an equal": f"class E(Exception):\n  {EQUAL}\n  __hash__ = None\ndef f(x): raise E",
    # Reaching for the judge.
    "patched builtins": "import builtins\nbuiltins.AssertionError = None\nbuiltins.int = lambda *_: 4\n" + WRONG,
    "patched comparison": "import operator\noperator.eq = lambda *_: True\n" + WRONG,
    "trace": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n" + WRONG,
    "frames": "import sys\ndef f(x):\n  frame = sys._getframe()\n  while frame:\n    frame.f_globals['f'] = lambda x: x * x\n"
    "    for name in ('PASSED', 'FAILED', 'BROKEN'): frame.f_globals[name] = 'passed'\n    frame = frame.f_back\n  return 0",
    "gc": "import gc\ndef f(x):\n  for o in gc.get_objects():\n    if type(o) is dict and 'FAILED' in o: o['FAILED'] = 'passed'\n"
    "  return 0",
    "our modules": "import sys\nfor m in list(sys.modules.values()):\n  if getattr(m, '__name__', '').startswith('rewards.judge'):\n"
    "    for name in ('FAILED', 'BROKEN'): setattr(m, name, 'passed')\n" + WRONG,
    "our peer": "from rewards.judge import peer\npeer.Peer._read_answer = lambda *_: ('value', 4)\n" + WRONG,
    "main": "import sys\nsys.modules['__main__'].f = lambda x: x * x\n" + WRONG,
    "signals": "import signal\nsignal.signal(signal.SIGALRM, lambda *_: None)\nsignal.setitimer(0, 0.001, 0.001)\n" + WRONG,
    "threads": "import os, threading, time\nthreading.Thread(target=lambda: [time.sleep(.01), os._exit(0)]).start()\n" + WRONG,
    "import hook": "import sys\nclass H:\n  def find_spec(*a): return None\nsys.meta_path.insert(0, H())\n" + WRONG,
    "report on every descriptor": EVERY_FD.format(data=b"passed\n") + WRONG,
    "report of the runner": EVERY_FD.format(data=b"ENDED ok 0\n") + WRONG,
    "other processes' descriptors": "import os\nfor p in os.listdir('/proc'):\n  for n in range(40):\n    try:\n"
    "      with open(f'/proc/{p}/fd/{n}', 'wb', 0) as file: os.set_blocking(file.fileno(), 0), file.write(b'passed\\n')\n"
    "    except OSError: pass\n" + WRONG,
    "prints": "print('passed')\ndef f(x):\n  print('passed\\n' * 3)\n  return 0",
    "files of the tests": "import glob\ndef f(x): return [open(p).read() for p in glob.glob('/tmp/*')]",
    # The wire.
    "garbage": SOCKET + "os.write(fd, b'garbage' * 100)\n" + WRONG,
    "an answer before the question": SOCKET + f"say(b'A', {ANSWER % FOUR!r})\n" + WRONG,
    "answers in plenty": SOCKET + f"def f(x):\n  for _ in range(100): say(b'A', {ANSWER % TRUE!r})\n  return 0",
    "an unknown tag": SOCKET + "def f(x):\n  say(b'A', b'?' * 40)\n",
    "an empty message": SOCKET + "def f(x):\n  say(b'A', b'')\n",
    "a message without an end": SOCKET + "def f(x):\n  os.write(fd, b'A' + (1 << 23).to_bytes(4, 'big') + b'x')\n  os._exit(0)",
    "a message that is too large": SOCKET + "def f(x):\n  os.write(fd, b'A\\xff\\xff\\xff\\xff' + b'x' * 1000)\n",
    "a list of a billion": SOCKET + "def f(x):\n  say(b'A', b't\\x3b\\x9a\\xca\\0')\n",
    "a list in a list in a list": SOCKET + "def f(x):\n  say(b'A', b'L\\0\\0\\0\\1' * 100_000)\n",
    "a reference to nothing": SOCKET + "def f(x):\n  say(b'A', b'&\\0\\0\\0\\7' * 9)\n",
    "a class by its name": SOCKET + "def f(x):\n  say(b'A', b'R\\0\\0\\0\\3int' * 9)\n",
    "a function by its name": SOCKET + "def f(x):\n  say(b'A', b'B\\0\\0\\0\\4exec' * 9)\n",
    "a module by its name": SOCKET + "def f(x):\n  say(b'A', b'X\\0\\0\\0\\tos.system' + b's\\0\\0\\0\\1x')\n",
    "a question of its own": SOCKET + "def f(x):\n  say(b'Q', b't\\0\\0\\0\\4' + b's\\0\\0\\0\\4call' * 4)\n  return 0",
    "a closed socket": SOCKET + "os.close(fd)\n" + WRONG,
    "a socket closed in the call": SOCKET + "def f(x): os.close(fd)",
    "two that answer": SOCKET + f"import os\ndef f(x):\n  if os.fork() == 0:\n    say(b'A', {ANSWER % FOUR!r})\n    os._exit(0)\n"
    "  os.wait()\n  return 0",
    # Values.
    "a list that holds itself": "def f(x):\n  l = []\n  l.append(l)\n  return l",
    "nested too deep": "def f(x):\n  l = []\n  for _ in range(5000): l = [l]\n  return l",
    "too many items": "def f(x): return [0] * 3_000_000",
    "too many bytes": "def f(x): return b'x' * 40_000_000",
    "keys that collide": "def f(x): return {(2**61 - 1) * i: i for i in range(2000)}",
    "a lone surrogate": "def f(x): return '\\ud800'",
    "a huge number": "def f(x): return 1 << 100_000_000",
    "not a number": "def f(x): return float('nan')",
    "a generator": "def f(x):\n  while True: yield 4",
    "an endless text": "class E(str):\n  def encode(s, *a): return b'4'\ndef f(x): return E('0')",
    "a bytearray": "def f(x): return bytearray(b'4')",
    "a module": "import os\ndef f(x): return os",
    "itself": "def f(x): return f",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_answer_talks_its_way_to_a_pass(attack: str) -> None:
    found = verdict(SQUARE, ATTACKS[attack], wall_s=3.0)
    assert found.kind == "failed", found


MUTATED = {"entry_point": "f", "tests": "l = [2, 1]\nf(l)\nassert l == [1, 2]\nassert type(l[0]) is int"}
CALLED = {
    "entry_point": "f",
    "tests": "secret = [9]\ndef ask(x):\n  return len(secret) + x\nassert f(ask) == 10 and secret == [9]",
}
TOOK = {"entry_point": "f", "tests": "r = f(3)\nassert r > 2 and r < 4 and r in (3,) and str(r) == '3' and r + 1 == 4"}
NEAR = {"entry_point": "f", "tests": "assert abs(f(2) - 4) < 1e-6 and 3.9 < f(2) and f(2) <= 4.1"}
FOUND = {"entry_point": "f", "tests": "assert 4 in f(2) and 9 in f(3)"}
ALMOST = {
    "entry_point": "f",
    "tests": "import unittest\nclass T(unittest.TestCase):\n  def test(self):\n    self.assertAlmostEqual(f(2), 4)\n    self.assertIn(4, [f(2)])\n    self.assertGreater(f(2), 3)",
}
AGREES = f"class E:\n  {EQUAL}\n  __sub__ = __rsub__ = __add__ = __mod__ = lambda *_: 0.0\n  __abs__ = lambda s: s\n  __round__ = lambda *_: 0\ndef f(x): return E()"
NODE = "class Node:\n  def __init__(self, v): self.v = v\n  def equals(self, other): return self.v == other.v\n  def size(self): return 1\n"
TRUSTED = {"entry_point": "f", "prompt": NODE, "tests": "assert f(3).equals(Node(9))"}
ARGUMENT = {"entry_point": "f", "prompt": NODE, "tests": "n = Node(1)\nf(n)\nassert n.size() == 5"}
SHOWN = {
    "entry_point": "f",
    "tests": "assert f('x').startswith('abc') and f('y').issubset({1, 2}) and f('z').equals([1])",
}
CHECKED = {"entry_point": "f", "tests": "def check(candidate):\n    assert candidate(4) == 8\n"}
NAMED = {"entry_point": "f", "tests": "print(f.__name__)\ndef check(candidate):\n    assert candidate(4) == 8\n"}
CASE = {
    "entry_point": "f",
    "tests": "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqual(f(1), 1)",
}
TAKEN = {"entry_point": "f", "tests": "assert f(lambda x: x + 1, [1, 2]) == [2, 3]"}
TAKE = (
    "from rewards.judge.proxy import _ask, Proxy\ndef ga(p, n): return _ask(p, 'call', '__getattribute__', (n,), {})\n"
    "def f(x, *more):\n  if type(x) is Proxy:\n    try:\n      obj = ga(ga(x, '__class__'), '__mro__')[-1]\n"
    "      for c in ga(obj, '__subclasses__')():\n        if type(c) is Proxy and ga(c, '__name__') == 'Proxy':\n"
    "          _ask(c, 'call', '__setattr__', ('__eq__', lambda *a: True), {})\n    except Exception: pass\n  return lambda: 0"
)
COMPARED = {
    "entry_point": "f",
    "tests": "assert sorted([f(2), 1]) == [1, 4]\nassert {f(2): 1} == {4: 1}\nassert [f(2)] == [4]",
}
OTHERS = {
    "contents that say that they are equal": (MUTATED, f"class E(int):\n  {EQUAL}\n  __hash__ = int.__hash__\ndef f(l): l[:] = [E(5)] * 2"),
    "a list of another kind": (MUTATED, "def f(l): l.append(object())"),
    "a function's globals": (CALLED, "def f(ask):\n  ask.__globals__['secret'].append(1)\n  return 10"),
    "a function's code": (CALLED, "def f(ask): return ask.__code__"),
    "a function's attributes": (CALLED, "def f(ask):\n  ask.x = 1\n  return 10 if ask.x else 0"),
    "a function that is no longer the same": (CALLED, "def f(ask):\n  ask.__call__ = lambda x: 10\n  return ask(1)"),
    "what a function is given": (CALLED, f"class E(int):\n  {EQUAL}\n  __hash__ = int.__hash__\ndef f(ask): return ask(E(0))"),
    "operators of an object": (TOOK, f"class E:\n  {EQUAL}\n  __str__ = lambda s: '3'\n  __add__ = lambda *_: 4\ndef f(x): return E()"),
    "a value in the place of a function": (CHECKED, "f = 3"),
    "a built-in function": (CHECKED, "f = len"),
    "a value in the place of a function, for a test case": (CASE, "f = None"),
    "a name that is asked first": (NAMED, "def f(x): return 0"),
    "a trusted class's method": (TRUSTED, "def f(x):\n  n = Node(0)\n  n.equals = lambda o: True\n  return n"),
    "the method of an argument": (ARGUMENT, "def f(n): n.size = lambda: 5"),
    "methods of plain values": (SHOWN, "class E: __getattr__ = lambda s, n: (lambda *a: True)\ndef f(x): return E()"),
    "all classes of the judge": (TAKEN, TAKE),
    "an answer that asks while it is read": (
        CHECKED, "import rewards.judge.peer as p\nclass E:\n  def __iter__(s): return iter(['value', f, 0])\n"
        "p.Peer._answered = lambda self, answer, first, shared: (lambda e: (e.write(E()), e.message())[1])(p.Encoder(self, shared))\ndef f(x): return 8",
    ),
    "a difference that is always nothing": (NEAR, AGREES),
    "a class in the place of a function": (NEAR, AGREES.replace("def f(x): return E()", "class f:\n  def __new__(cls, x): return E()")),
    "a container of everything": (FOUND, AGREES),
    "nearly equal": (ALMOST, AGREES),
    "places where equality is asked": (COMPARED, f"class E:\n  {EQUAL}\n  __hash__ = lambda s: 4\ndef f(x): return E()"),
}  # fmt: skip


@pytest.mark.parametrize("attack", OTHERS)
def test_nor_through_arguments_functions_and_operators(attack: str) -> None:
    payload, answer = OTHERS[attack]
    found = verdict(payload, answer, wall_s=3.0)
    assert found.kind == "failed", found


def test_what_a_right_answer_does_passes_all_of_these() -> None:
    """Else the attacks above would prove nothing."""
    right = "def f(x):\n  if callable(x): return x(9)\n  if isinstance(x, list): return x.sort()\n  return x if x == 3.0 else 4"
    assert verdict(SQUARE, "def f(x): return x * x").kind == "passed"
    assert [verdict(payload, right).kind for payload in (MUTATED, CALLED, TOOK, COMPARED, NEAR, ALMOST)] == [
        "passed"
    ] * 6
    assert verdict(FOUND, "def f(x): return {x * x}").kind == "passed"


def test_the_two_sides_share_no_namespace_and_the_answer_holds_its_socket_only() -> None:
    ask = (
        "import os\ndef f(name):\n  if name == 'fds':\n    return {n: os.readlink(f'/proc/self/fd/{n}').split(':')[0] "
        "for n in map(int, os.listdir('/proc/self/fd')) if os.path.exists(f'/proc/self/fd/{n}')}\n"
        "  return os.readlink(f'/proc/self/ns/{name}')"
    )
    tests = (
        "import os\nfor name in ('pid', 'ipc', 'mnt', 'net', 'uts'):\n"
        "  theirs = f(name)\n  assert theirs.startswith(name) and theirs != os.readlink(f'/proc/self/ns/{name}'), theirs\n"
        "held = f('fds')\nassert sorted(held.values()) == ['/dev/null'] * 3 + ['socket'], held"
    )
    assert verdict({"entry_point": "f", "tests": tests}, ask).kind == "passed"
