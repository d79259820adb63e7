import os
import shutil

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that fight for busy cores cost up to 180x
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items):
    if shutil.which("nvidia-smi") is None:
        no_gpu = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(no_gpu)
