#!/usr/bin/env bash
# From a fresh clone to an answer: install into .venv, then ask the bundled model about images/shapes.png.
# Needs Python >= 3.10 and git; no GPU, no download of weights.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

install_project ""
question="What color is the star?"
say "llava ask --image images/shapes.png \"$question\""
exec "$environment/bin/llava" ask --image "$repository/images/shapes.png" "$question"
