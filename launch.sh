#!/usr/bin/env bash
# The one entry point. Builds the environment on first use, then hands over to rl/cli.py; see ./launch.sh --help.
# Everything that can be refused (Python, disk, tools, a misspelt recipe) is refused before anything is downloaded.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
venv="${SLUICE_VENV:-$root/.venv}"
needed_gb=8 # 4 GB installed, and room for the wheels while pip unpacks them

say() { printf 'launch: %s\n' "$*" >&2; }
die() {
    printf 'launch: error: %s\n' "$*" >&2
    exit 2
}

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3; do
        # Run it: version managers leave shims on PATH for versions that are not installed.
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or 3.12 on PATH (python3 is $(python3 -V 2>&1 || true)); install one, e.g. apt-get install python3.11 python3.11-venv"
}

has_gpu() { [[ $(nvidia-smi -L 2>/dev/null || true) == GPU* ]]; }

preflight() {
    local python="$1" free_gb
    command -v git >/dev/null || die "git is missing; install it, e.g. apt-get install git"
    command -v flock >/dev/null || die "flock is missing; install it, e.g. apt-get install util-linux"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$python lacks the venv and pip modules; install them, e.g. apt-get install python3-venv"
    free_gb=$(($(df -Pk "$root" | awk 'NR == 2 { print $4 }') / 1024 / 1024))
    ((free_gb >= needed_gb)) ||
        die "$free_gb GB free in $root, and the environment needs $needed_gb GB; free some space or set SLUICE_VENV to an environment elsewhere"
}

count_installed() { find "$venv"/lib/python3*/site-packages -maxdepth 1 -name '*.dist-info' | wc -l; }

# pip prints hundreds of lines; the console gets one, and the log keeps all of them.
install_with_progress() {
    local python="$1" lock="$2" log="$3" total pip started=$SECONDS next=0 step="" said="" before
    total=$(grep -c '^[a-zA-Z0-9]' "$lock")
    before=$(count_installed) # pip itself
    "$python" -m pip install --no-deps --disable-pip-version-check --no-input --progress-bar off -r "$lock" >"$log" 2>&1 &
    pip=$!
    trap 'kill "$pip" 2>/dev/null || true; wait "$pip" 2>/dev/null || true; say "interrupted; the next start builds again"; exit 130' INT TERM
    while kill -0 "$pip" 2>/dev/null; do
        if grep -q '^Installing collected packages' "$log"; then
            step="installed $(($(count_installed) - before))"
        else
            step="fetched $(grep -c '^Collecting ' "$log" || true)"
        fi
        if [[ -t 2 ]]; then
            printf '\rlaunch: %s of %d packages, %d s ' "$step" "$total" $((SECONDS - started)) >&2
        elif ((SECONDS - started >= next)) && [[ $step != "$said" ]]; then
            say "$step of $total packages, $((SECONDS - started)) s"
            next=$((SECONDS - started + 30)) said=$step
        fi
        sleep 0.3
    done
    [[ ! -t 2 ]] || printf '\n' >&2
    trap - INT TERM
    wait "$pip"
}

build() {
    local python="$1" lock="$2" stamp="$3" log started=$SECONDS
    say "building $venv from ${lock#"$root"/} with $("$python" -V); once, about 5 minutes and 4 GB on disk"
    # From nothing: packages half-written by an interrupted build would look installed.
    rm -rf "$venv"
    "$python" -m venv "$venv"
    log="$venv/build.log"
    if ! install_with_progress "$venv/bin/python" "$lock" "$log"; then
        grep -v '^WARNING' "$log" | tail -n 15 >&2 || true
        if grep -q 'No matching distribution found for torch==' "$log"; then
            die "pip found no $(grep '^torch==' "$lock"): add PyTorch's wheel index for it with PIP_EXTRA_INDEX_URL (pytorch.org, \"Get started\", names it) and start again; log: $log"
        fi
        die "pip failed (see above; log: $log); start again once it is cured"
    fi
    printf '%s\n' "$stamp" >"$venv/.lock-hash" # last: only a finished build carries it
    say "environment ready after $((SECONDS - started)) s"
}

ensure_environment() {
    if [[ -n ${SLUICE_VENV:-} ]]; then
        [[ -x $venv/bin/python ]] || die "SLUICE_VENV=$SLUICE_VENV holds no bin/python; unset it to have .venv built"
        return
    fi
    local lock="$root/locks/cpu.txt" stamp python
    ! has_gpu || lock="$root/locks/gpu.txt"
    stamp=$(sha256sum <"$lock")
    [[ $(cat "$venv/.lock-hash" 2>/dev/null) != "$stamp" ]] || return 0
    python=$(find_python)
    preflight "$python"
    exec 9<"$root" # a lock on the directory itself leaves no file behind
    flock -n 9 || { say "another start is building $venv; waiting for it" && flock 9; }
    [[ $(cat "$venv/.lock-hash" 2>/dev/null) == "$stamp" ]] || build "$python" "$lock" "$stamp"
    exec 9<&-
}

ensure_bubblewrap() {
    ! command -v bwrap >/dev/null || return 0
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        say "bubblewrap is missing, and the sandbox refuses to run without it; install it, e.g. sudo apt-get install bubblewrap"
        return
    fi
    say "installing the bubblewrap package (the sandbox for code that models write)"
    local output
    output=$(apt-get install -y -qq bubblewrap 2>&1 </dev/null) ||
        output=$(apt-get update -qq 2>&1 </dev/null && apt-get install -y -qq bubblewrap 2>&1 </dev/null) ||
        { printf '%s\n' "$output" | tail -n 5 >&2 && say "bubblewrap could not be installed (see above); the sandbox will refuse to run"; }
}

case "${1:---help}" in
    -h | --help | help)
        cat "$root/rl/help.txt"
        exit 0
        ;;
    doctor | lock) # these describe or repair the environment, so they do not wait for one
        interpreter="$venv/bin/python"
        [[ -x $interpreter ]] || interpreter=$(find_python)
        ;;
    *)
        recipe=$1
        case "$1" in
            test | check) recipe="" ;;
            plan) recipe=${2:-} && [[ -n $recipe ]] || die "plan needs a recipe: ./launch.sh plan RECIPE [key=value …]" ;;
        esac
        [[ -z $recipe || -f $recipe ]] || die "no recipe file and no verb is called '$recipe'; ./launch.sh --help lists the verbs"
        ensure_environment
        case "$1" in plan | check) ;; *) ensure_bubblewrap ;; esac
        interpreter="$venv/bin/python"
        ;;
esac

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # rl, rollout and rewards import from here, in child processes too
export TOKENIZERS_PARALLELISM=false                  # its threads do not survive the forks of datasets and ray
export RAY_USAGE_STATS_ENABLED=0                     # no part of a run reports home unless asked to
export VLLM_NO_USAGE_STATS=1
export DO_NOT_TRACK=1
# -P: the caller's directory may hold an `rl` folder of its own.
exec "$interpreter" -P -m rl.cli "$@"
