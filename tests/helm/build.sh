# Helm as a library, in a Python environment of its own: no helm is packaged in Debian. woodfrog_testnode::cached runs this.
set -euo pipefail
python3 -m venv "$BUILD/venv"
"$BUILD/venv/bin/pip" --disable-pip-version-check install --quiet --requirement "$SOURCES/requirements.txt"
