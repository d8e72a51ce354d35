#!/bin/sh
# Makes the virtual environment of `make loop` and `make test`: finds a Python, says which and why, installs Ratchet.
#
#   sh deploy/setup.sh VENV [PYTHON]
#
# Python 3.11 is preferred: it is what Ratchet is tested on. Otherwise the first of 3.12, 3.13 and `python3` that can
# make a virtual environment and has a CPU build of torch; PyPI's own Linux builds bring 3 GB of CUDA.
set -eu

venv=$1
wanted=${2:-}
torch='torch>=2.10,<2.14'
cpu_index=${RATCHET_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

say() { echo "setup: $*" >&2; }

usable() { # Print why this Python cannot be used; print nothing if it can.
  command -v "$1" >/dev/null 2>&1 || { echo "not installed"; return; }
  "$1" - <<'PY' 2>/dev/null || echo "does not run"
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    print("is Python %d.%d: 3.11 to 3.13 are needed" % sys.version_info[:2])
else:
    try:
        import ensurepip, venv
    except ImportError:
        print("has no venv module: apt-get install python%d.%d-venv" % sys.version_info[:2])
PY
}

# Print where pip finds a CPU build of torch for the Python of $venv: `default`, `index`, or nothing.
cpu_torch() {
  for source in default index; do
    options=
    if [ $source = index ]; then
      "$venv/bin/python" -c "import urllib.request; urllib.request.urlopen('$cpu_index/', timeout=5)" 2>/dev/null || return 0
      options="--index-url $cpu_index"
    fi
    # shellcheck disable=SC2086
    if "$venv/bin/pip" install --dry-run --quiet --no-deps --ignore-installed --report "$venv/torch.json" $options "$torch" \
        >/dev/null 2>&1 && "$venv/bin/python" - "$venv/torch.json" <<'PY'
import json, sys
(torch,) = json.load(open(sys.argv[1]))["install"]
requires = " ".join(torch["metadata"].get("requires_dist", []))
sys.exit("+cpu" not in torch["metadata"]["version"] and ("nvidia" in requires or "cuda" in requires))
PY
    then echo $source; return 0; fi
  done
}

make_environment() { # $1: a usable Python. Fails if torch would bring CUDA and this machine has no GPU.
  "$1" -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --upgrade 'pip>=25'
  [ -e /dev/nvidia0 ] && return 0
  case $(cpu_torch) in
    default) ;;
    index) "$venv/bin/pip" install --quiet --constraint constraints.txt --index-url "$cpu_index" "$torch" ;;
    *) return 1 ;;
  esac
}

# An environment without torch is what an interrupted set-up left: it is made again, or pip would take PyPI's build.
if ls -d "$venv"/lib/python*/site-packages/torch >/dev/null 2>&1 && [ -z "$(usable "$venv/bin/python")" ]; then
  say "using $venv, $("$venv/bin/python" --version)"
elif [ -n "$wanted" ]; then
  reason=$(usable "$wanted")
  [ -z "$reason" ] || { say "PYTHON=$wanted: $reason"; exit 1; }
  say "using $wanted, $("$wanted" --version): PYTHON says so"
  make_environment "$wanted" || say "no CPU build of torch for it: PyPI's, with CUDA, is installed (about 3 GB)"
else
  chosen= tried= versions=
  for python in python3.11 python3.12 python3.13 python3; do
    reason=$(usable "$python")
    if [ -z "$reason" ]; then
      version=$("$python" --version)
      case "$versions" in *"$version,"*) continue ;; esac # `python3` is often one of those before it.
      versions="$versions$version,"
      if make_environment "$python"; then chosen=$python; break; fi
      reason="no CPU build of torch for it"
    fi
    tried="$tried; $python: $reason"
  done
  if [ -z "$chosen" ]; then
    rm -rf "$venv"
    say "found no Python that can be used${tried}"
    say "Install one: apt-get install python3.11 python3.11-venv. Or accept PyPI's torch with CUDA: make PYTHON=python3 …"
    exit 1
  fi
  say "using $chosen, $("$chosen" --version)${tried:+ (tried before: ${tried#; })}"
fi

say "installing Ratchet into $venv (two to five minutes the first time)"
"$venv/bin/pip" install --quiet --constraint constraints.txt --editable '.[dev]' --editable ./client
