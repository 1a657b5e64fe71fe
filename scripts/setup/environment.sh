# Sourced by scripts/priorlab and scripts/test: builds .venv, again when its lock file changed, and sets $PYTHON. Takes about 20 ms when nothing changed.
#
# The environment is exactly the device's lock file (cpu.txt or gpu.txt, compiled from pyproject.toml; CONTRIBUTING.md says how).
# PRIORLAB_DEVICE=cpu|gpu overrides detection.

unset PYTHONPATH PYTHONHOME # the caller's packages are not ours
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$root/.venv
uv_version=0.13.9

device=${PRIORLAB_DEVICE:-}
if [ -z "$device" ]; then
    if [ -e /dev/nvidia0 ] || [ -e /dev/dxg ]; then device=gpu; else device=cpu; fi
fi
lock=$root/scripts/setup/$device.txt
stamp=$venv/priorlab.stamp

fail() {
    echo "priorlab set-up: $1" >&2
    exit 1
}

current() {
    [ -x "$venv/bin/priorlab" ] && cat "$lock" "$root/pyproject.toml" 2>/dev/null | cmp -s - "$stamp"
}

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

bring_python() {
    local tools uv
    echo "priorlab set-up: no Python 3.11, 3.12 or 3.13 on the PATH; asking uv for one" >&2
    tools=$(mktemp -d)
    uv=$(command -v uv) || {
        uv=$tools/bin/uv
        python3 -m venv "$tools" && "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
    } || fail "could not install uv; install Python 3.11, 3.12 or 3.13, or uv, and put it on the PATH"
    "$uv" venv --quiet --seed --python 3.13 "$venv" || fail "uv found no Python; install 3.11, 3.12 or 3.13 and put it on the PATH"
    rm -rf "$tools"
}

# gpu.txt is built for CUDA 13; better to hear of an old driver now than after a download of 8 GB.
check_driver() {
    local driver
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || true
    [[ $driver =~ ^[0-9]+ ]] || return 0
    [ "${driver%%.*}" -ge 580 ] ||
        fail "NVIDIA driver $driver is too old for CUDA 13; install driver 580 or newer, or set PRIORLAB_DEVICE=cpu"
}

install() {
    local python uv tag started=$SECONDS
    local -x PYTHONSAFEPATH=1 # so that no pip/ or venv/ in the current folder is taken for the module
    [ "$device" = cpu ] || check_driver
    echo "priorlab set-up: making $venv for the $device; this takes a minute or two, once" >&2
    # An environment without its stamp is one whose set-up was interrupted: start over.
    rm -rf "$venv"
    if python=$(find_python); then
        "$python" -m venv "$venv" || fail "could not make a virtual environment (on Debian: apt install python3-venv)"
    else
        bring_python
    fi
    uv=$(command -v uv) || {
        "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "uv==$uv_version" || fail "could not install uv"
        uv=$venv/bin/uv
    }
    tag=$("$venv/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    local options=(--python "$venv/bin/python" --no-deps --quiet)
    if [ "$device" = gpu ]; then
        options+=(--torch-backend=cu130)
    elif compgen -G "${PIP_FIND_LINKS:-/nowhere}/torch-*+cpu-$tag-*.whl" >/dev/null; then
        options+=(--find-links "$PIP_FIND_LINKS")
    else
        options+=(--torch-backend=cpu)
    fi
    # Compiled once here, not at every stage's start: importing torch, vllm and transformers takes a third of the time.
    "$uv" pip install "${options[@]}" --compile-bytecode --requirement "$lock" || fail "could not install $lock"
    "$uv" pip install "${options[@]}" --editable "$root" || fail "could not install priorlab itself"
    cat "$lock" "$root/pyproject.toml" >"$stamp"
    echo "priorlab set-up: done in $((SECONDS - started)) s" >&2
}

if ! current; then
    # Two commands at once must not build the same environment.
    if command -v flock >/dev/null; then
        exec 9>"$root/.venv.lock"
        flock 9
        current || install
        exec 9>&-
    else
        install
    fi
fi
PYTHON=$venv/bin/python
