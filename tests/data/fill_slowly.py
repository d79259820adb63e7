"""Fills a cache in a process of its own, slowly enough to be killed."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

from pictures import PoolingEncoder, concept, prepare

from modules.data import cache, encode


class SlowEncoder(PoolingEncoder):
    """Takes `pause` seconds for each call."""

    pause = 0.0

    def encode_images(self, pixels):
        time.sleep(self.pause)
        return super().encode_images(pixels)

    def encode_text(self, captions):
        time.sleep(self.pause)
        return super().encode_text(captions)


def fill(folder, kept, pause):
    """Two images or captions a call, and a small shard after every few."""
    cache.SHARD_BYTES, cache.SMALL_BYTES = 4 << 10, 2 << 10
    encode.PICTURES = encode.CAPTIONS = 2
    encoder = SlowEncoder()
    encoder.pause = pause
    settings = {"image.enable_random_flip": True, "image_variations": 2}
    prepare(concept(folder, **settings), encoder, Path(kept))


def start(folder, kept, pause):
    """The process, running; each is forked from one that has imported everything."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # Python < 3.12.5 passes it on to no one
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fill_slowly"])
    process = context.Process(target=fill, args=(str(folder), str(kept), pause))
    process.start()
    return process
