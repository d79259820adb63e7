import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that fight for busy cores cost up to 180x
os.environ.setdefault("HF_HUB_OFFLINE", "1")
