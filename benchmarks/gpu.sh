#!/usr/bin/env bash
# What a machine with one CUDA GPU can tell about speed: checked first, then timed, in few calls.
#
#   benchmarks/gpu.sh [--wheels FOLDER] [--out FOLDER] [--steps 1,2] [--tiny]
#
#   1 check       small shapes on the GPU against float32 on the CPU; ends here if anything is wrong
#   2 full        a forward of 14B shapes, full, 480x832x81: plain, exact, WanPipeline, compiled, each attention kernel
#   3 lite        the same for lite, x121, without the kernels
#   4 clip        a whole clip in its phases, full: plain, exact, WanPipeline
#   5 quantized   each quantization, plain and compiled
#   6 budget      every --vram-budget: peak memory as measured beside as planned, and the time lost
#   7 reference   the reference implementation beside ours; LYNX_REFERENCE is its checkout
#   8 profile     where the microseconds of one block go: plain, exact, compiled
#
# The models have random weights and are made on the GPU: no file is read, no network used. --wheels: wheels to install first, without
# their dependencies. --out: the results, by default benchmarks/results/DATE_GPU: a file for each part, and summary.md with all of them.
# What is there is not run again, so the script goes on where it was. --steps: only these. --tiny: the same code at toy size on the
# CPU, in minutes. PYTHON: the interpreter. LIMIT: seconds that a part may take, 580 by default.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
LYNX_VIDEO=${LYNX_VIDEO:-"$PYTHON -m lynx_video"}
LIMIT=${LIMIT:-580}
wheels="" out="" steps=1,2,3,4,5,6,7,8 tiny=""
while [ $# -gt 0 ]; do
    case $1 in
        --wheels) wheels=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --steps) steps=$2; shift 2 ;;
        --tiny) tiny=yes; shift ;;
        *) echo "unknown option $1; the options are --wheels, --out, --steps and --tiny" >&2; exit 2 ;;
    esac
done
if [ -n "$wheels" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps "$wheels"/*.whl
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" KINETO_LOG_LEVEL=9 PYTHONWARNINGS=ignore
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
gpu=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "CPU")')
if [ "$gpu" = CPU ] && [ -z "$tiny" ]; then
    echo "no CUDA GPU that torch can use; --tiny runs the same code at toy size on the CPU" >&2
    exit 2
fi
out=${out:-benchmarks/results/$(date +%F)_${gpu}${tiny:+_tiny}}
mkdir -p "$out"

# How large, how often, and what there is to try.
if [ -n "$tiny" ]; then
    device=(--device cpu) size=nano reference=toy rounds=1 clip=(--num-inference-steps 4 --steps 1)
    backends=native quantize="int8 fp8-storage" budgets="1 0.02"
else
    device=(--device cuda) size=14b reference=14b rounds=3 clip=(--steps 1)
    backends=native,cudnn,flash,flash3 quantize="fp8 int8 fp8-storage" budgets="24 16 12 8"
fi
read -ra lynx <<<"$LYNX_VIDEO"
race=("${lynx[@]}" bench --size "$size" "${device[@]}" --overwrite)
forwards=("${race[@]}" --no-video --rounds "$rounds")
clips=("${race[@]}" "${clip[@]}" --rounds 1)

failed=""
# step NUMBER NAME COMMAND...: runs it, unless its result is there or it was not asked for. The command writes "$result".
step() {
    local number=$1 name=$2 began=$SECONDS code=0
    shift 2
    case ",$steps," in *",$number,"*) ;; *) return 0 ;; esac
    if [ -s "$out/${number}_$name.md" ]; then
        echo "== $number $name: there already"
        return 0
    fi
    echo "== $number $name"
    timeout --kill-after 10 "$LIMIT" "$@" >"$out/log.txt" 2>&1 || code=$?
    echo "   $((SECONDS - began)) s, exit code $code"
    if [ ! -s "$out/${number}_$name.md" ]; then
        failed="$failed ${number}_$name"
        tail -n 5 "$out/log.txt"
        return 1
    fi
}
result() { echo "$out/$1.md"; }

step 1 check "$PYTHON" -m lynx_video.bench.check "${device[@]}" --output "$(result 1_check)" || {
    echo "something computes what it should not, or cannot be run: nothing is timed" >&2
    exit 1
}
step 2 full "${forwards[@]}" --compile --backends "$backends" --output "$(result 2_full)" || true
step 3 lite "${forwards[@]}" --arm lite --compile --output "$(result 3_lite)" || true
step 4 clip "${clips[@]}" --output "$(result 4_clip)" || true
for kind in $quantize; do # one at a time: they need not lie on the GPU together, and one that is too slow costs no other
    step 5 "quantized_$kind" "${forwards[@]}" --sides exact --compile --quantize "$kind" \
        --output "$(result "5_quantized_$kind")" || true
done
for budget in $budgets; do
    step 6 "budget_$budget" "${clips[@]}" --sides exact --budgets "$budget" --output "$(result "6_budget_$budget")" || true
done
if [ -n "${LYNX_REFERENCE:-}" ]; then
    step 7 reference "$PYTHON" benchmarks/reference.py --reference "$LYNX_REFERENCE" --size "$reference" --steps 1 --rounds 1 \
        "${device[@]}" --output "$(result 7_reference)" || true
else
    echo "== 7 reference: LYNX_REFERENCE is not set"
fi
step 8 profile "${forwards[@]}" --sides plain,exact --compile --profile --output "$(result 8_profile)" || true
rm -f "$out/log.txt"

# All results in one file, which says too what is missing.
{
    echo "# $(date +%F), $gpu${tiny:+, toy size on the CPU}"
    echo
    echo "\`benchmarks/gpu.sh${tiny:+ --tiny}\`, steps $steps${failed:+; without a result:$failed}"
    for file in "$out"/[1-8]_*.md; do
        [ -e "$file" ] || continue
        printf '\n## %s\n\n' "$(basename "$file" .md | tr _ ' ')"
        cat "$file"
    done
} >"$out/summary.md"
cat "$out/summary.md"
echo
echo "written to $out"
[ -z "$failed" ]
