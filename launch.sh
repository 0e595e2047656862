#!/usr/bin/env bash
# The one entry point. Builds the environment on first use, then hands over to rl/cli.py; see ./launch.sh --help.
# Everything that can be refused (Python, disk, tools, a misspelt recipe) is refused before anything is downloaded.
set -euo pipefail

say() { printf 'launch: %s\n' "$*" >&2; }
die() {
    printf 'launch: error: %s\n' "$*" >&2
    exit 2
}

# The repository. sbatch runs a copy of this script from a folder of SLURM's, and scontrol knows which file was submitted.
find_root() {
    local here submitted folder
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
    if [[ ! -f $here/rl/cli.py && -n ${SLURM_JOB_ID:-} ]]; then
        submitted=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p' || true)
        for folder in "${submitted%%/launch.sh*}" "${SLURM_SUBMIT_DIR:-}"; do
            [[ ! -f $folder/rl/cli.py || ! -f $folder/launch.sh ]] || { root=$(cd "$folder" && pwd -P) && return; }
        done
        die "this is SLURM's copy of launch.sh, and neither the script that was submitted (${submitted:-unknown}) nor the folder that it was submitted from (${SLURM_SUBMIT_DIR:-unknown}) is in the repository on this node: submit REPOSITORY/launch.sh, in a folder that all nodes share"
    fi
    root=$here
}

# In a SLURM job a run starts once, on a node of the job. A shell that salloc has opened may be on another machine.
enter_slurm_job() {
    ((${SLURM_STEP_NUM_TASKS:-1} == 1)) ||
        die "srun starts this $SLURM_STEP_NUM_TASKS times, and a run is one command that reaches the other nodes itself: start it without srun, or with srun --ntasks=1"
    [[ -n ${SLURM_JOB_NODELIST:-} && " $* " != *" run.hostfile="* && " $* " != *" run.ray_address="* ]] || return 0
    local nodes job=$SLURM_JOB_ID name step=(--overlap --nodes=1 --ntasks=1 --mpi=none --cpu-bind=none)
    nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null) || {
        [[ -n ${SLURMD_NODENAME:-} ]] || die "scontrol does not say which nodes the SLURM job $job has: put SLURM's commands on PATH"
        return 0 # in a container without SLURM's commands: a run that needs the other nodes says so
    }
    ! grep -qxF -- "${SLURMD_NODENAME:-}" <<<"$nodes" || return 0
    say "this machine is not in the SLURM job $job: going on on its first node, ${nodes%%$'\n'*}"
    # Most variables of SLURM's are options of srun too, which were meant for the job.
    for name in ${!SLURM@} ${!SRUN_@} ${!SALLOC_@}; do
        [[ " SLURM_CONF SLURM_JWT SLURM_JOB_NODELIST SLURM_JOB_NUM_NODES SLURM_HET_SIZE " == *" $name "* ]] || unset "$name"
    done
    [[ ! -t 0 || ! -t 1 ]] || step+=(--pty)
    exec srun --jobid="$job" "${step[@]}" --nodelist="${nodes%%$'\n'*}" "$root/launch.sh" "$@"
}

# The Pythons that rl/recipe/machine.py names for the device, oldest first: every wheel of the lock exists for them.
find_python() {
    local version candidate
    for version in $pythons; do
        for candidate in "python$version" python3; do
            # Run it: version managers leave shims on PATH for versions that are not installed.
            if "$candidate" -c "import sys; sys.exit('$version' != '%d.%d' % sys.version_info[:2])" 2>/dev/null; then
                command -v "$candidate"
                return
            fi
        done
    done
    die "no Python ${pythons// /, } on PATH (python3 is $(python3 -V 2>&1 || true)); install one, e.g. apt-get install python3 python3-venv$hint"
}

# What rl/recipe/machine.py counts too: the GPUs that nvidia-smi lists, unless CUDA_VISIBLE_DEVICES hides all of them.
sees_gpu() {
    [[ ! ${CUDA_VISIBLE_DEVICES-all} =~ ^[[:space:]]*(-1|,|$) ]] && [[ $(nvidia-smi -L 2>/dev/null || true) == GPU* ]]
}

# The one rule of which lock, which environment and which device: they are chosen together, here.
choose_device() {
    if [[ $1 == test && -z ${SLUICE_DEVICE:-}${SLUICE_VENV:-} ]] && sees_gpu; then
        say "GPUs are seen, but the suite is made for the CPU environment; SLUICE_DEVICE=cuda ./launch.sh test -m gpu runs what needs them"
        SLUICE_DEVICE=cpu
    fi
    case "${SLUICE_DEVICE:-auto}" in
        cpu | cuda) device=$SLUICE_DEVICE ;;
        auto) device=$(sees_gpu && echo cuda || echo cpu) ;;
        *) die "SLUICE_DEVICE=$SLUICE_DEVICE is no device; use cpu, cuda or auto" ;;
    esac
    # needed_gb: what is installed, and room for the wheels while pip unpacks them; rl/recipe/machine.py has the same numbers.
    if [[ $device == cpu ]]; then
        lock="$root/locks/cpu.txt" venv="${SLUICE_VENV:-$root/.venv}" needed_gb=8 ordinary_gb=12 cost="about 5 minutes"
        pythons="3.11 3.12 3.13 3.14" hint=""
        export CUDA_VISIBLE_DEVICES="" # for torch, vLLM and Ray, whose CPU builds meet the GPUs of the machine otherwise
    else
        lock="$root/locks/gpu.txt" venv="${SLUICE_VENV:-$root/.venv-gpu}" needed_gb=20 cost="10 minutes or more and about 10 GB on disk"
        pythons="3.11 3.12" hint="; vLLM for GPUs wants a cuda-python that has no wheels for later ones, and SLUICE_DEVICE=cpu starts on the CPU"
    fi
    torch_lock="$root/locks/torch.txt" # beside the CPU lock, which leaves torch out
    state="$venv.build" # beside the environment: it is there before one is, and stays when one is replaced
    export SLUICE_DEVICE="$device"
}

refuse_unfit_machine() {
    local python="$1"
    [[ $(uname -sm) != "Linux aarch64" ]] ||
        die "this is aarch64: the packages of locks/cpu.txt exist for it, but nobody has run Sluice on it; set SLUICE_VENV to an environment of your own to be the first"
    [[ $(uname -sm) == "Linux x86_64" ]] ||
        die "the lock files pin wheels for Linux on x86_64, and this is $(uname -sm); set SLUICE_VENV to an environment of your own, made from pyproject.toml"
    command -v git >/dev/null || die "git is missing; install it, e.g. apt-get install git"
    command -v flock >/dev/null || die "flock is missing; install it, e.g. apt-get install util-linux"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$python lacks the venv and pip modules; install them, e.g. apt-get install python3-venv"
    require_disk "$needed_gb"
    { mkdir -p "$state" && : >>"$state/build" && : >>"$state/use"; } 2>/dev/null ||
        die "cannot write to $state; make $root writable, or set SLUICE_VENV to an environment elsewhere"
}

require_disk() {
    local free_gb
    free_gb=$(($(df -Pk "$root" | awk 'NR == 2 { print $4 }') / 1024 / 1024))
    (($1 <= free_gb)) ||
        die "$free_gb GB free in $root, and the environment needs $1 GB; free some space or set SLUICE_VENV to an environment elsewhere"
}

count_installed() { find "$venv"/lib/python3*/site-packages -maxdepth 1 -name '*.dist-info' | wc -l; }

# torch for the CPU environment: a CPU build where a configured package source has one, else from PyTorch's own index, of
# which nothing but torch is taken; else the ordinary build with its CUDA libraries, which computes the same on CPUs.
choose_torch() {
    local index="${SLUICE_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" pin
    pin=$(grep '^torch==' "$torch_lock") torch_packages=1
    if "${pip[@]}" --dry-run "$pin+cpu" >"$log" 2>&1; then
        torch=("$pin+cpu")
        say "$pin+cpu is in a configured package source: 4 GB on disk in all"
    elif "${pip[@]}" --dry-run --retries 1 --timeout 15 --index-url "$index" "$pin+cpu" >>"$log" 2>&1; then
        torch=(--index-url "$index" "$pin+cpu")
        say "$pin+cpu comes from $index (SLUICE_TORCH_INDEX names another): 4 GB on disk in all"
    else
        torch=(-r "$torch_lock") torch_packages=$(grep -c '^[a-zA-Z0-9]' "$torch_lock")
        say "no $pin+cpu at $index (SLUICE_TORCH_INDEX names another): the ordinary build with its CUDA libraries, 7 GB on disk in all"
    fi
}

# pip prints hundreds of lines; the console gets one, and the log keeps all of them.
install_with_progress() {
    local child next=0 step="" said=""
    "${pip[@]}" "$@" >>"$log" 2>&1 &
    child=$!
    trap 'interrupted "$child" 130' INT
    trap 'interrupted "$child" 143' TERM
    while kill -0 "$child" 2>/dev/null; do
        if [[ $(tail -n 1 "$log") == "Installing collected packages"* ]]; then
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
        sleep 0.1
    done
    [[ ! -t 2 ]] || printf '\n' >&2
    trap 'put_back; exit 130' INT
    trap 'put_back; exit 143' TERM
    wait "$child"
}

interrupted() {
    kill "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
    put_back
    say "interrupted; the next start builds again"
    exit "$2"
}

# A build that fails leaves the finished environment that was there, at the path that its scripts name.
put_back() {
    rm -rf "$venv"
    [[ ! -d $venv.old ]] || mv "$venv.old" "$venv"
}

build() {
    local python="$1" stamp="$2" log="$state/log" started=$SECONDS total before torch=() torch_packages=0
    local pip=("$venv/bin/python" -m pip install --no-deps --disable-pip-version-check --no-input --progress-bar off)
    say "building $venv from ${lock#"$root"/} with $("$python" -V); once, $cost"
    [[ ! -f $venv/.lock-hash ]] || { rm -rf "$venv.old" && mv "$venv" "$venv.old"; }
    trap 'put_back; exit 130' INT
    trap 'put_back; exit 143' TERM
    # From nothing: packages half-written by an interrupted build would look installed.
    rm -rf "$venv"
    "$python" -m venv "$venv" || { put_back && die "$python could not make an environment in $venv (see above)"; }
    [[ $device != cpu ]] || choose_torch
    [[ ${torch[0]:-} != -r ]] || (require_disk "$ordinary_gb") || { put_back && exit 2; }
    : >"$log"
    before=$(count_installed) # pip itself
    total=$(($(grep -c '^[a-zA-Z0-9]' "$lock") + torch_packages))
    [[ -z ${torch[*]} ]] || install_with_progress "${torch[@]}" || pip_failed
    install_with_progress -r "$lock" || pip_failed
    trap - INT TERM
    printf '%s\n' "$stamp" >"$venv/.lock-hash" # last: only a finished build carries it
    rm -rf "$venv.old"
    say "environment ready after $((SECONDS - started)) s"
}

pip_failed() {
    put_back
    grep -v '^WARNING' "$log" | tail -n 15 >&2 || true
    die "pip failed (see above; log: $log); start again once it is cured"
}

ready() { [[ -x $venv/bin/python && $(cat "$venv/.lock-hash" 2>/dev/null) == "$1" ]]; }

# Two locks, both on files: NFS takes no exclusive lock on a directory. Builds wait for each other on `build`. Every run
# shares `use` until it ends (the descriptor survives the exec below), so that no build takes its packages away.
ensure_environment() {
    local stamp python
    stamp=$(cat "$lock" "$torch_lock" | sha256sum)
    if ! ready "$stamp"; then
        python=$(find_python)
        refuse_unfit_machine "$python"
    fi
    ensure_bubblewrap "$@"
    if ! ready "$stamp"; then
        exec 8<>"$state/build"
        flock -n 8 || { say "another start is building $venv; waiting for it" && flock 8; }
        ready "$stamp" || build_alone "$python" "$stamp"
        exec 8<&-
    fi
    share_environment
}

build_alone() {
    exec 9<>"$state/use"
    flock -n 9 || die "$venv must be built again (${lock#"$root"/} has changed), and a run that is still going uses it; wait for that run to end"
    build "$@"
}

share_environment() {
    [[ -r $state/use ]] || { mkdir -p "$state" && : >>"$state/use"; } 2>/dev/null || return 0 # read-only: nobody builds
    exec 9<"$state/use"
    flock -s 9 2>/dev/null || true # a file system without locks: runs go on, unprotected
}

ensure_bubblewrap() {
    [[ $1 != plan && $1 != k8s && $1 != check && $1 != model ]] && ! command -v bwrap >/dev/null || return 0
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        say "installing the bubblewrap package (the sandbox for code that models write)"
        local output install=(apt-get -o DPkg::Lock::Timeout=120 install -y -qq bubblewrap)
        output=$("${install[@]}" 2>&1 </dev/null) ||
            output=$(apt-get update -qq 2>&1 </dev/null && "${install[@]}" 2>&1 </dev/null) ||
            printf '%s\n' "$output" | tail -n 5 >&2
        ! command -v bwrap >/dev/null || return 0
    fi
    say "bubblewrap is missing, and what runs code that models write is refused without it; install it, e.g. sudo apt-get install bubblewrap, or write sandbox: unsafe-none in the recipe"
}

show_help() {
    cat "$root/rl/help.txt"
    exit 0
}

find_root
verb="${1:---help}"
case "${2:-}" in -h | --help) [[ $verb == test ]] || show_help ;; esac # pytest has a help page of its own
case "$verb" in
    -h | --help | help) show_help ;;
    doctor | lock | new) # these describe or repair the environment, or need no package: they do not wait for one
        [[ $verb != doctor || -z ${2:-} || -z ${SLURM_JOB_ID:-} ]] || enter_slurm_job "$@"
        choose_device "$verb"
        interpreter="$venv/bin/python"
        [[ -x $interpreter ]] || interpreter=$(find_python)
        ;;
    *)
        recipe=$verb
        case "$verb" in
            test | check | model | reward-test | report | node) recipe="" ;;
            plan | eval | rollout | play | k8s) recipe=${2:-} && [[ -n $recipe ]] || die "$verb needs a recipe: ./launch.sh $verb RECIPE [key=value …]" ;;
        esac
        if [[ -n $recipe && ! -f $recipe ]]; then
            if command -v python3 >/dev/null; then # of any version: this needs the standard library only
                python3 "$root/rl/verbs/absent.py" "$recipe" || exit 2
            fi
            die "no recipe file and no verb is called '$recipe'; ./launch.sh --help lists the verbs"
        fi
        [[ -z $recipe || $verb == plan || $verb == play || -z ${SLURM_JOB_ID:-} ]] || enter_slurm_job "$@"
        choose_device "$verb"
        if [[ -n ${SLUICE_VENV:-} ]]; then
            [[ -x $venv/bin/python ]] || die "SLUICE_VENV=$SLUICE_VENV holds no bin/python; unset it to have one built"
            ensure_bubblewrap "$@"
        else
            ensure_environment "$@"
        fi
        interpreter="$venv/bin/python"
        ;;
esac

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # rl, rollout and rewards import from here, in child processes too
export TOKENIZERS_PARALLELISM=false                  # its threads do not survive the forks of datasets and ray
export RAY_USAGE_STATS_ENABLED=0                     # no part of a run reports home unless asked to
# As `ray start` does by itself where there is a token; without it a run could not join that cluster (run.ray_address).
[[ -n ${RAY_AUTH_MODE:-} || ! -f ${HOME:-}/.ray/auth_token ]] || export RAY_AUTH_MODE=token
export VLLM_NO_USAGE_STATS=1
export DO_NOT_TRACK=1
# -P: the caller's directory may hold an `rl` folder of its own.
exec "$interpreter" -P -m rl.cli "$@"
