#!/usr/bin/env bash
# Runs all benchmarks one after the other, writes the figures of each to FOLDER/NAME.json, and prints all at the end:
#
#     bash benchmarks/run_all.sh [FOLDER]         runs/benchmarks by default
#
# A benchmark that fails does not keep the others from running, but makes the exit status 1. The times in
# benchmarks/README.md add up to hours, most of them for exact_score, beyond and front. These are resumed when this
# script is killed and started again. ONLY="driver network" runs only these. Without an accelerator, gpu is left out.
set -euo pipefail
folder=$(realpath -m "${1:-$(dirname "$0")/../runs/benchmarks}")
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHON=$python
mkdir -p "$folder"

failed=""
run() { # NAME COMMAND…
    local name=$1
    shift
    case " ${ONLY:-$name} " in *" $name "*) ;; *) return 0 ;; esac
    echo "== $name: $*"
    local since=$SECONDS
    "$@" || failed="$failed $name"
    echo "== $name: $((SECONDS - since)) s"
    echo
}

run driver "$python" -m benchmarks.driver --mnist --json "$folder/driver.json"
run network "$python" -m benchmarks.network --json "$folder/network.json"
run lanes "$python" -m benchmarks.lanes --json "$folder/lanes.json"
run processes "$python" -m benchmarks.processes --json "$folder/processes.json"
run evaluation "$python" -m benchmarks.evaluation --json "$folder/evaluation.json"
run coverage "$python" -m benchmarks.coverage --json "$folder/coverage.json"
run few_samples "$python" -m benchmarks.few_samples --json "$folder/few_samples.json"
run peers "$python" -m benchmarks.peers --json "$folder/peers.json"
run scale "$python" -m benchmarks.scale --json "$folder/scale.json"
run restore "$python" -m benchmarks.restore --json "$folder/restore.json"
run real_images "$python" -m benchmarks.real_images --json "$folder/real_images.json"
if "$python" -c 'import jax, sys; sys.exit(jax.default_backend() == "cpu")'; then
    run gpu bash benchmarks/gpu.sh "$folder/gpu.json"
else
    echo "== gpu: left out, as JAX sees no accelerator"
fi
run paths "$python" -m benchmarks.paths --json "$folder/paths.json"
run posterior "$python" -m benchmarks.posterior --json "$folder/posterior.json"
run guidance "$python" -m benchmarks.guidance --json "$folder/guidance.json" --workdir "$folder/guidance"
run ablation "$python" -m benchmarks.ablation --json "$folder/ablation.json"
run step_control "$python" -m benchmarks.step_control --json "$folder/step_control.json"
run exact_score "$python" -m benchmarks.exact_score --json "$folder/exact_score.json"
run strong_error "$python" -m benchmarks.strong_error --json "$folder/strong_error.json"
run beyond "$python" -m benchmarks.beyond --json "$folder/beyond.json"
run front "$python" -m benchmarks.front --json "$folder/front.json"

"$python" -m benchmarks.report "$folder"
if [ -n "$failed" ]; then
    echo "FAILED:$failed" >&2
    exit 1
fi
