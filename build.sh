ENCLAVE_OS_ONLY=$1 nice -n 0 /work/wt/wasmhard/.venv/bin/python setup.py -q build_ext --inplace 2>&1 | grep -v Cythonizing | head -20
