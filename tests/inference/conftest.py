from __future__ import annotations

import pytest
import torch
from transformers.utils import logging

from hilm.inference import create
from tests.inference.models import MAKERS, write


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Task → folder of its tiny model."""
    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("models")
    return {task: write(task, root / task) for task in MAKERS}


@pytest.fixture(scope="session")
def runners(folders):
    """Task → runner, made once."""
    return {task: create(task, folder, device="cpu") for task, folder in folders.items()}
