#!/usr/bin/env bash
# What a graphics card shows, in under six minutes: the tests that need one, then ours beside the paper's procedure.
#
#     bash benchmarks/on_a_card.sh [PYTHON] [FOLDER]
#
# PYTHON has torch with CUDA, diffusers, transformers and optimum-quanto; FOLDER keeps the random models (4 GB).
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
folder=${2:-$(mktemp -d)}
export HF_HUB_OFFLINE=1
"$python" - <<'END'
import torch
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
END
"$python" -m pytest -q -m gpu -p no:cacheprovider tests/test_on_a_card.py
failed=$?
compare() { "$python" benchmarks/compare.py --cache "$folder" --json "$folder/$1.json" "${@:2}"; }
compare sd15 --model random-sd15 --steps 40 --arms a,a-off,b,c
compare sd15-int4 --model random-sd15 --steps 40 --weights int4 --arms a,a-off
compare sdxl --model random-sdxl --steps 15 --arms a,a-off,c
"$python" benchmarks/on_a_card.py "$folder"
exit $failed
