#!/usr/bin/env bash
# Trains `small` by the clock and leaves weights that `gic compress --checkpoint` uses: the recipe of the weights that ship.
#
#   recipes/small.sh MINUTES SHARDS OUT [options of gic fit]
#
# SHARDS holds train-*.tar and val-*.tar, as `gic shards` makes them. Everything lands in OUT: a folder for each stage with
# its log, tables, pictures and checkpoints, and small.safetensors. Started again with the same OUT it goes on where it
# was interrupted. The stages of configs/weights/ follow each other, each with its share of the minutes, which hold
# starting, training, measuring and saving. On a laptop's CPU batches are small, on a GPU data.cuda_batch_size.
#
#   ADVERSARIAL=yes a last stage with a discriminator: for hours on a GPU
#   --model.autocast bfloat16    on a CPU that has it (`lscpu` says avx512_bf16 or amx_bf16): a third of the time less
#   INIT=none       begin from nothing; INIT=FILE (.safetensors, .ckpt) from other weights. Without: from those that ship
#   GIC_PYTHON=...  what starts Python
#
# A stage that would have less than a minute is left out, and its time goes to the one after it. LPIPS' backbones
# are needed: they are downloaded, or found in the folder that GIC_METRIC_WEIGHTS names (`gic weights`).
set -euo pipefail

fail() {
    echo "small.sh: $1" >&2
    exit 2
}

clock() {
    printf '%02d:%02d:%02d' $(($1 / 3600)) $(($1 / 60 % 60)) $(($1 % 60))
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    exit
fi
[[ $# -ge 3 ]] || fail "usage: recipes/small.sh MINUTES SHARDS OUT [options of gic fit]"
minutes=$1 shards=$2 out=$3
shift 3
[[ $minutes =~ ^[1-9][0-9]*$ ]] || fail "MINUTES is a number from 1, not '$minutes'"
[[ -d $shards ]] || fail "there is no folder $shards"
compgen -G "$shards/train-*.tar" >/dev/null || fail "there is no train-*.tar in $shards: gic shards PICTURES -o $shards"
compgen -G "$shards/val-*.tar" >/dev/null ||
    fail "there is no val-*.tar in $shards: gic shards OTHERS -o $shards --prefix val"
case ${ADVERSARIAL:-no} in
    no) share=(1-prior 10 2-compressor 30 3-joint 60) more=(3-joint 100) ;;
    yes) share=(1-prior 10 2-compressor 25 3-joint 40 4-adversarial 25) more=(3-joint 65 4-adversarial 35) ;;
    *) fail "ADVERSARIAL is yes or no, not '$ADVERSARIAL'" ;;
esac
configs=$(cd "$(dirname "$0")/../configs/weights" && pwd)
read -ra python <<<"${GIC_PYTHON:-python}"
mkdir -p "$out" 2>/dev/null || fail "the folder $out cannot be made"
if command -v flock >/dev/null; then # held by what is started here too, so that no two runs write in one folder
    exec 9>"$out/.lock"
    flock -w 10 9 || fail "another process is at work in $out"
fi

# stage, per cent of the time
if [[ ${INIT:-} == none ]]; then
    init="" stages=("${share[@]}")
else
    init=${INIT:-shipped}
    [[ $init == shipped || -f $init ]] || fail "INIT names $init, which is no file"
    stages=("${more[@]}")
fi
# A stage of less than a minute would do little but start: its time goes to the one after it.
plan=() spare=0
for ((i = 0; i < ${#stages[@]}; i += 2)); do
    seconds=$((minutes * 60 * stages[i + 1] / 100 + spare)) spare=0
    if [[ $seconds -lt 60 && $i -lt $((${#stages[@]} - 2)) ]]; then
        spare=$seconds
        echo "${stages[i]}: less than a minute, left out"
    else
        plan+=("${stages[i]}" "$seconds")
    fi
done
# Measuring takes part of the time: in short runs few pictures at few levels.
measured=(--data.val_limit 12)
if [[ $minutes -lt 60 ]]; then
    measured=(--data.val_limit 2 --model.levels "[2.0, 8.0]")
fi

# The same OUT goes on with the same run only.
told="$minutes minutes from ${init:-nothing}"
[[ ${ADVERSARIAL:-no} == no ]] || told+=", with a discriminator"
if [[ -e $out/run.txt ]]; then
    begun=$(<"$out/run.txt")
    [[ $begun == "$told" ]] || fail "$out is a run of $begun: for one of $told name another folder"
    [[ ! -e $out/small.safetensors ]] || echo "$out is a finished run of $begun"
elif [[ -n $(find "$out" -mindepth 1 ! -name .lock -print -quit) ]]; then
    fail "there are other files in $out: name another folder"
else
    if [[ $* != *objective.init_args.terms* ]]; then # what the last stage needs, before hours have passed
        "${python[@]}" -c "
import sys
from gic.errors import GicError
from gic.quality.terms import lpips_network
try:
    for net in ('alex', 'squeeze'):
        lpips_network(net)
except GicError as error:
    sys.exit(f'small.sh: {error}')" || exit 2
    fi
    echo "$told" >"$out/run.txt"
fi
# Each stage is measured before its first step and after its last.
options=("${measured[@]}" --trainer.val_check_interval 1000000000)
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    cores=$(nproc)
    options+=(--data.num_workers $((cores > 2 ? cores - 1 : 1)) --data.cache_mb 1000)
fi

child=""
stop() {
    trap '' TERM INT
    echo "small.sh: stopping; the same command goes on" >&2
    [[ -z $child ]] || { kill -TERM "$child" 2>/dev/null && wait "$child"; } || true
    exit 75
}
trap stop TERM INT

for ((i = 0; i < ${#plan[@]}; i += 2)); do
    stage=${plan[i]} seconds=${plan[i + 1]}
    folder=$out/$stage last=$stage
    if [[ ! -e $folder/done ]]; then
        echo "== $stage: $seconds s, from ${init:-nothing}"
        mkdir -p "$folder"
        "${python[@]}" -m gic fit --config "$configs/small-$stage.yaml" \
            --data.train "$shards/train-*.tar" --data.val "$shards/val-*.tar" "${options[@]}" \
            --trainer.max_steps -1 --trainer.max_time "$(clock "$seconds")" \
            --trainer.logger.init_args.save_dir "$out" --trainer.logger.init_args.name "" \
            --trainer.logger.init_args.version "$stage" --ckpt_path auto \
            ${init:+--model.init_from "$init"} "$@" > >(trap '' TERM INT && exec tee -a "$folder/log.txt") 2>&1 &
        child=$!
        code=0
        wait "$child" || code=$?
        child=""
        [[ $code == 0 ]] || exit "$code"
        touch "$folder/done"
    fi
    init=$folder/checkpoints/last.ckpt
done

cp "$out/$last/weights.safetensors" "$out/.small.safetensors.part"
mv "$out/.small.safetensors.part" "$out/small.safetensors"
echo "== from the first validation to the last"
"${python[@]}" -m gic.training.evaluation "$out/${plan[0]}" "$out/$last"
echo "written: $out/small.safetensors (gic compress photo.png --checkpoint $out/small.safetensors, and the same for gic decompress)"
