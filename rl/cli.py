"""The table of the verbs behind launch.sh, and nothing else. A verb's module is imported only when that verb is run.

The help page is rl/help.txt, which launch.sh prints without starting Python. Exit codes: rl.exitcodes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HELP = ("-h", "--help")
TRAIN = "rl.verbs.train:train"
VERBS: Mapping[str, str] = {
    "plan": "rl.verbs.plan:plan",
    "eval": "rl.verbs.evaluate:evaluate",
    "rollout": "rl.verbs.rollout:rollout",
    "play": "rl.verbs.play:play",
    "reward-test": "rl.verbs.reward_test:reward_test",
    "report": "rl.verbs.report:report",
    "new": "rl.verbs.new:new",
    "test": "rl.verbs.develop:test",
    "check": "rl.verbs.develop:check",
    "lock": "rl.verbs.lock:lock",
    "k8s": "rl.verbs.k8s:k8s",
    "node": "rl.verbs.node:node",
    "doctor": "rl.verbs.doctor:doctor",
    "model": "rl.verbs.model:model",
}
"""Each verb's function as `module:name`. It takes the arguments after the verb and returns the exit code. Training has
no verb: a recipe as the first argument means TRAIN."""


def main(argv: Sequence[str]) -> int:
    """Run one verb and return the exit code. `argv` is what follows `./launch.sh`."""
    asked_of_a_verb = argv[1:] and set(argv[1:]) & set(HELP) and argv[0] != "test"  # pytest has a help page of its own
    if not argv or argv[0] in (*HELP, "help") or asked_of_a_verb:
        print(Path(__file__).with_name("help.txt").read_text(encoding="utf-8"), end="")
        return 0
    target, arguments = (VERBS[argv[0]], argv[1:]) if argv[0] in VERBS else (TRAIN, argv)
    module, _, name = target.partition(":")
    code: int = getattr(importlib.import_module(module), name)(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
