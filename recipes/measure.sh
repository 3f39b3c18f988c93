#!/usr/bin/env bash
# Measures the weights that ship, and writes every number and picture of the README and the pages that comes from them.
#
#   recipes/measure.sh KODAK [all | speed]
#
# KODAK holds kodim01.png to kodim24.png. Results land in docs/results, docs/images and benchmarks/results, and the tables
# of the pages are written from them (docs/tools/tables.py). `speed` measures seconds and memory instead, on an idle
# machine. What was measured before is in the cache of `gic test` and is not measured again. About an hour on two cores.
#
#   GIC_PYTHON=...  what starts Python
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    exit
fi
fail() {
    echo "measure.sh: $1" >&2
    exit 2
}

kodak=${1:-} what=${2:-all}
[[ $kodak && ($what == all || $what == speed) ]] || fail "usage: recipes/measure.sh KODAK [all | speed]"
[[ -e $kodak/kodim24.png ]] || fail "there is no kodim24.png in $kodak"
kodak=$(cd "$kodak" && pwd)
cd "$(dirname "$0")/.."
read -ra python <<<"${GIC_PYTHON:-python}"
gic() { "${python[@]}" -m gic "$@"; }
measure() { "${python[@]}" "benchmarks/$1.py" "${@:2}"; }

if [[ $what == speed ]]; then
    measure runtimes --size 768 512 --size 1920 1080 --output benchmarks/results/runtimes.json
    measure memory --output benchmarks/results/memory.json
    measure start --output benchmarks/results/start.json
    exit
fi

benchmark() { # quality beside other codecs, and of samplers
    gic test --config configs/test/kodak.yaml --data "$kodak" --output runs/kodak \
        --metrics '[psnr,ms_ssim,ssimulacra2,lpips_alex,lpips_squeeze,fid768,kid768,niqe]' \
        --published docs/results/published-kodak.csv --published_dataset kodak
    cp runs/kodak/results.json docs/results/kodak-benchmark.json
    cp runs/kodak/results.csv docs/results/kodak-benchmark.csv
    cp runs/kodak/bd_rates.json docs/results/kodak-bd-rates.json
    cp runs/kodak/curves/overview.png docs/images/kodak-overview.png
}

codec() { # exactness, progressive files, pictures
    gic test --config configs/test/samplers.yaml --limit 6 --data "$kodak" --output runs/samplers
    cp runs/samplers/results.json docs/results/samplers.json
    measure rate_control --images "$kodak" --output benchmarks/results/rate_control.json
    measure seam --images "$kodak"/kodim{01,05,13,19,21,23}.png --q 4 --output benchmarks/results/seam.json
    measure unusual "$kodak" --output benchmarks/results/unusual.json
    measure progressive "$kodak" --json docs/results/progressive-kodak.json --figure docs/images/progressive-kodak.png
    measure progressive "$kodak" --orders --first 4 --json docs/results/progressive-orders.json
    measure regions "$kodak/kodim15.png" --ellipse 370 30 720 430 --bpp 0.1 --output docs/images/region.jpg \
        --json docs/results/region.json
    gic compress "$kodak" -o runs/progressive --q 2 --progressive --overwrite
    gic info runs/progressive --json | sed "s,\"runs/,\"," >docs/results/progressive-first-level.jsonl
    gic compress "$kodak" -o runs/coarse --q 32 --overwrite --json | sed "s,\"$kodak/,\"kodak/,; s,\"runs/,\"," >docs/results/coarsest.jsonl
    measure strip "$kodak"/kodim{05,23}.png --box 60 130 316 386 --box 120 60 376 316 --output docs/images/kodak-strip.jpg
    measure strip "$kodak/kodim13.png" --bpp 0.2 0.4 --box 60 200 360 420 --output docs/images/stream.jpg
    measure slider "$kodak/kodim13.png" --bpp 0.2 --box 60 60 700 460 --output docs/images/slider
    if "${python[@]}" -c "import pillow_jxl" 2>/dev/null; then
        measure progressive_demo "$kodak/kodim23.png" --box 60 40 444 296 --output docs/images/progressive.webp
    else
        echo "measure.sh: docs/images/progressive.webp stays, it needs pip install pillow-jxl-plugin" >&2
    fi
}

# Side by side: each takes one core.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
codec & other=$!
benchmark
wait "$other"
"${python[@]}" docs/tools/tables.py
