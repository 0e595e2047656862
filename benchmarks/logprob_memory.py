"""Measure the peak memory of label logprobs over the LM head, forward and backward: chunked against full logits.

Every measurement is a fresh process, because the peak of resident memory never falls. It reports how far the call
raised the peak. Gradients are included; inputs and parameters are not.

    .venv/bin/python -m benchmarks.logprob_memory [--vocabulary 151552] [--tokens 1024,2048,4096]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

HIDDEN = 64
"""Small on purpose: the measurement is about the logits, whose size does not depend on it."""
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_552, help="GLM-4.5's by default")
    parser.add_argument("--tokens", default="1024,2048,4096", help="comma-separated; full logits take 12 x T x V bytes")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--measure", choices=["full", "chunked"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, int(options.tokens), options.vocabulary, options.chunk)
        return
    print(f"| tokens | full logits, MiB | chunked ({options.chunk}), MiB | full, s | chunked, s |")
    print("|---|---|---|---|---|")
    for tokens in options.tokens.split(","):
        full, full_s = run("full", tokens, options)
        chunked, chunked_s = run("chunked", tokens, options)
        print(f"| {int(tokens):,} | {full} | {chunked} | {full_s} | {chunked_s} |", flush=True)


def run(kind: str, tokens: str, options: argparse.Namespace) -> tuple[str, str]:
    """Measure in a new process. Return the rise of the peak in MiB and the seconds; if it failed, its exit code and a
    dash."""
    command = [sys.executable, "-m", "benchmarks.logprob_memory", "--measure", kind, "--tokens", tokens]
    command += ["--vocabulary", str(options.vocabulary), "--chunk", str(options.chunk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed (exit {done.returncode})", "–"
    mib, seconds = done.stdout.split()
    return f"{float(mib):,.0f}", f"{float(seconds):.1f}"


def measure(kind: str, tokens: int, vocabulary: int, chunk: int) -> None:
    """Print the rise of the peak in MiB and the duration in seconds of one forward and backward."""
    import torch

    from rl.learner.logprobs import chunked_logprobs

    torch.manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    weight = torch.randn(vocabulary, HIDDEN, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,))
    (hidden[:8] @ weight[:8].T).sum().backward()  # starts thread pools and loads libraries before the first reading
    hidden.grad = weight.grad = None
    before, started = peak_bytes(), time.perf_counter()
    if kind == "chunked":
        logprobs, _ = chunked_logprobs(hidden, weight, labels, torch.ones(len(labels)), chunk)
    else:
        logprobs = torch.log_softmax(hidden @ weight.T, dim=-1).gather(1, labels[:, None])
    logprobs.sum().backward()
    print((peak_bytes() - before) / MIB, time.perf_counter() - started)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
