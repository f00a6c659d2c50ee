from __future__ import annotations

import copy

import datasets
import pytest
import torch
import transformers

from hilm.training.config import from_document
from tests.training.models import rows_for, write_models, write_rows

UPSTREAM = (
    # transformers 5.23 calls its own deprecated name when PEFT enables gradients of inputs
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    # bitsandbytes 0.50 casts inputs of every 8-bit product on a CPU
    "ignore:MatMul8bitLt. inputs will be cast:UserWarning",
    # peft 0.21 numbers the positions behind a prompt itself; transformers 5 always generates with numbers
    "ignore:Position ids are not supported for parameter:UserWarning",
    # peft 0.21 saves the embedding of a model that is a folder: it cannot ask the Hub about the vocabulary
    "ignore:Could not find a config file in:UserWarning",
)
METHOD_KEYS = {
    "grpo": {"num_generations": 4, "max_completion_length": 8},
    "rloo": {"num_generations": 4, "max_completion_length": 8},
    "ppo": {"max_completion_length": 8},
}


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/training" in str(item.path):
            for text in UPSTREAM:
                item.add_marker(pytest.mark.filterwarnings(text))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with tiny models: llama, t5, bert, resnet_bk."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def document(models, tmp_path):
    """Make the plain data of a run's configuration."""

    def make(method="sft", kind="full", /, *, base="llama", rows=None, **sections):
        key = "seq2seq" if base == "t5" else method
        path = write_rows(tmp_path / f"{key}.jsonl", rows_for(key) if rows is None else rows)
        made = {
            "model": {"path": str(models / base)},
            "data": {"path": str(path)},
            "out": str(tmp_path / "run"),
            "peft": {"kind": kind, "r": 4, "virtual_tokens": 4},
            "train": {"steps": 2, "batch_size": 8, "max_length": 64, "log_every": 1},
            "method": METHOD_KEYS.get(method, {}),
            "reward": {"kind": "keyword", "pattern": "e a o"},
        }
        for name, section in sections.items():
            made[name] = section if not isinstance(section, dict) else {**made.get(name, {}), **section}
        return copy.deepcopy(made)

    return make


@pytest.fixture
def configure(document):
    """Make a run's configuration."""
    return lambda *args, **sections: from_document(document(*args, **sections))
