"""What a cache holds, and what filling one costs."""

from pictures import prepare
from safetensors.torch import load_file

from modules.data.cache import keys_of


def contents(folder):
    """Every row of a cache by space and name, as bytes."""
    found = {}
    for path in folder.glob("*/*.safetensors"):
        rows = load_file(path)
        for row, key in enumerate(keys_of(path)):
            held = {name: tensor[row].numpy().tobytes() for name, tensor in rows.items()}
            found.setdefault((path.parent.name, key), held)
            assert found[path.parent.name, key] == held
    return found


def work(encoder, concepts, folder, **settings):
    """Images and captions that a build encodes."""
    images, texts = encoder.images, len(encoder.texts)
    prepare(concepts, encoder, folder, **settings)
    return encoder.images - images, len(encoder.texts) - texts
