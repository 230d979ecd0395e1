# Sourced by scripts/demo and scripts/test: makes .venv and installs quantkit with all it needs. Idempotent.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "quantkit needs Python 3.11 or newer"; exit 2; }
if [ ! -x .venv/bin/python ]; then
  echo "creating .venv"
  "$python" -m venv .venv
fi
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  if command -v nvidia-smi >/dev/null 2>&1; then
    echo "installing torch (CUDA)"
    install 'torch>=2.11,<2.14'
  else
    # On Linux the default index may answer with several GB of CUDA; uv knows where the CPU builds are.
    echo "installing torch (CPU build)"
    install uv
    UV_HTTP_RETRIES=1 .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend cpu torch==2.13.0 \
      2>/dev/null || install torch==2.13.0
  fi
fi
stamp=.venv/quantkit-installed
if ! cmp -s pyproject.toml "$stamp"; then
  echo "installing quantkit and what its tests need"
  install -e '.[dev]'
  cp pyproject.toml "$stamp"
fi
echo "environment ready: $(.venv/bin/python --version), torch $(.venv/bin/python -c 'import torch; print(torch.__version__)')"
