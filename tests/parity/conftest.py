from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from transformers import ViTConfig, ViTModel  # noqa: E402 - without torch there is nothing to import

from hilm.models.onevision import OneVisionConfig, OneVisionModel, load_onevision  # noqa: E402 - without torch there is nothing to import
from hilm.parity.runners import module_runner  # noqa: E402 - without torch there is nothing to import
from hilm.parity.selftest import train_like  # noqa: E402 - without torch there is nothing to import
from tests.parity.media import write_clip, write_picture  # noqa: E402 - without torch there is nothing to import


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    """Tiny models are slower in threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vision_transformer(width):
    """A small vision transformer with trained-like weights, as a runner."""
    config = ViTConfig(
        hidden_size=width, num_hidden_layers=3, num_attention_heads=4, intermediate_size=4 * width,
        image_size=[126, 154], patch_size=14, layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTModel(config).eval()
    train_like(model)
    return module_runner(model, label="ViT")


@pytest.fixture(scope="session")
def vit():
    """One of width 64."""
    return vision_transformer(64)


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A folder with the padded and the packed encoder of one set of weights, pictures and clips."""
    folder = tmp_path_factory.mktemp("pair")
    config = OneVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=1, patch_size=14
    )
    torch.manual_seed(0)
    model = OneVisionModel(config)
    train_like(model)
    model.save_pretrained(folder / "padded")
    load_onevision(folder / "padded", packed=True).save_pretrained(folder / "packed")
    write_picture(folder / "1.png")
    write_picture(folder / "2.jpg", 100, 40)
    write_clip(folder / "1.mp4", 40)
    write_clip(folder / "b-frames.mp4", 20)
    return folder
