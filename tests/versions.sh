#!/usr/bin/env bash
# Runs the tests in environments with other versions, one line of result for each.
#
#   bash tests/versions.sh FOLDER                     the fast tests
#   bash tests/versions.sh FOLDER -m slow             the slow ones; any arguments of pytest go on to it
#   ONLY=1.4 bash tests/versions.sh FOLDER tests/data/test_shapes.py
#                                                     environments whose name has 1.4 in it
#
# FOLDER holds the environments (about 6 GB each), which are made once, and a log of each. pip's own variables are
# obeyed. A Python that is not there is looked for as pythonX.Y; PYTHONS (a folder) is looked into as well.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
shift
[ $# -ge 1 ] || set -- -m "not slow"

# python torch torchvision hydra
table="
3.11 2.11.0 0.26.0 1.3.6
3.11 2.14.1 0.29.1 1.3.8
3.12 2.15.0 0.29.2 1.4.0rc3
3.13 2.15.0 0.29.2 1.3.8
"

find_python() {
    command -v "python$1" && return
    for one in "${PYTHONS:-/nowhere}/$1"*/bin/python3; do [ -x "$one" ] && { echo "$one"; return; }; done
    return 1
}

status=0
while read -r python torch torchvision hydra; do
    name=py${python/./}-torch$torch-hydra$hydra
    [ -n "$python" ] && [[ $name == *"${ONLY:-}"* ]] || continue
    there=$folder/$name log=$folder/$name.log
    if [ ! -f "$there/ready" ]; then
        found=$(find_python "$python") || { echo "$name: no python$python here"; status=1; continue; }
        begun=$SECONDS
        "$found" -m venv "$there" && "$there/bin/python" -m pip install --quiet --disable-pip-version-check \
            "torch==$torch" "torchvision==$torchvision" "hydra-core==$hydra" -e "$root[dev]" >"$log" 2>&1 ||
            { echo "$name: not installed, see $log"; status=1; continue; }
        touch "$there/ready"
        echo "$name: installed in $((SECONDS - begun)) s"
    fi
    begun=$SECONDS
    (cd "$root" && PYTHONPATH=$root OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$there/bin/python" -m pytest -q -p no:cacheprovider \
        -n "${PROCESSES:-auto}" --dist worksteal "$@") >"$log" 2>&1 </dev/null || status=1
    echo "$name: $(tail -n 1 "$log") ($((SECONDS - begun)) s, $log)"
done <<<"$table"
exit $status
