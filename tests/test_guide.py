"""Every Python block of docs/guide is run against a local Hub with tiny models under the real names."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from hilm.inference.guide import GOALS
from tests import blocks
from tests.hub_server import GOOD, HubServer
from tests.inference.models import SIZE, bert, tokenizer, write

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))
BLOCKS = [(page.name, *block) for page in PAGES for block in blocks.blocks_of(page)]
PRELOADED = (
    "torch", "datasets", "transformers.pipelines", "peft", "accelerate", "bitsandbytes",
    "trl.trainer.sft_trainer", "trl.trainer.dpo_trainer",
)  # fmt: skip
SERVED = {
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": ("sentiment-analysis", "714eb0f"),
    "dbmdz/bert-large-cased-finetuned-conll03-english": ("ner", "4c53496"),
    "distilbert/distilbert-base-cased-distilled-squad": ("question-answering", ""),
    "sshleifer/distilbart-cnn-12-6": ("summarization", ""),
    "google-t5/t5-base": ("translation_en_to_de", ""),
    "google-t5/t5-small": ("translation_en_to_de", ""),
    "openai-community/gpt2": ("text-generation", ""),
    "HuggingFaceTB/SmolLM3-3B": ("text-generation", "a07cc9a"),
    "facebook/bart-large-mnli": ("zero-shot-classification", "d7645e1"),
    "distilbert/distilroberta-base": ("fill-mask", "fb53ab8"),
    "google-bert/bert-base-uncased": ("fill-mask", ""),
    "distilbert/distilbert-base-uncased": ("fill-mask", ""),
}
ALSO = ("distilbert/distilbert-base-uncased", "distilbert/distilbert-base-uncased-finetuned-sst-2-english")


def llama(folder: Path) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer("t5").save_pretrained(folder)
    return folder


def wikitext() -> dict[str, bytes]:
    rows, file = pa.table({"text": ["", " = Valkyria = ", "Some Long Sentence here ."]}), io.BytesIO()
    pq.write_table(rows, file)
    path = "wikitext-2-raw-v1/train-00000-of-00001.parquet"
    card = (
        "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n"
        f"  - split: train\n    path: {path}\n---\n"
    )
    return {path: file.getvalue(), "README.md": card.encode()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What every block ended with, in order; blocks to skip are left out."""
    root = tmp_path_factory.mktemp("guide")
    transformers.utils.logging.disable_progress_bar()
    todo = [code for _, _, kind, code in BLOCKS if not kind.startswith("skip")]
    with HubServer() as hub:
        for repo_id, (task, revision) in SERVED.items():
            folder = Path(write(task, root / repo_id))
            if repo_id == "google-bert/bert-base-uncased":
                torch.save(bert("MaskedLM").state_dict(), folder / "pytorch_model.bin")
            repository = hub.add(repo_id, folder)
            if revision:
                repository.refs[revision] = repository.refs["main"]
        for name in ALSO:  # ids of before the Hub had organisations
            hub.repositories["models", name.partition("/")[2]] = hub.repositories["models", name]
        hub.add("HuggingFaceTB/SmolLM2-135M", llama(root / "llama"))
        hub.add("Salesforce/wikitext", wikitext(), "datasets")
        hub.moved["datasets", "wikitext"] = "Salesforce/wikitext"
        environment = hub.environment(root / "home", GOOD) | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        ran = subprocess.run(
            [sys.executable, "-m", "tests.blocks", *PRELOADED], input=json.dumps(todo), text=True, cwd=root,
            env=os.environ | environment, capture_output=True, timeout=280, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    ended = iter(json.loads(ran.stdout))
    return [None if kind.startswith("skip") else next(ended) for _, _, kind, _ in BLOCKS]


@pytest.mark.parametrize(
    "index", range(len(BLOCKS)), ids=[f"{b[0]}-{b[1]}-{i}" for i, b in enumerate(BLOCKS)]
)
def test_blocks_end_as_announced(index, outcomes):
    kind, ended = BLOCKS[index][2], outcomes[index]
    if kind.startswith("skip: "):
        assert kind.removeprefix("skip: ") in {"needs a GPU", "needs several machines"}
    elif kind == "fails: AssertionError" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    else:
        wanted = "" if kind == "run" else kind.removeprefix("fails: ")
        assert ended.partition("\n")[0] == wanted, ended


def test_each_of_the_22_rows_names_blocks():
    rows = re.findall(
        r"^\| (\d+) \| .* \| \[.*?\]\((.*?)#(.*?)\) \|$", (GUIDE / "index.md").read_text(), re.MULTILINE
    )
    assert [int(number) for number, *_ in rows] == list(range(1, 23))
    there = {(page, heading.lower().replace(" ", "-")) for page, heading, *_ in BLOCKS}
    assert {(page or "index.md", anchor) for _, page, anchor in rows} <= there


def test_the_tree_is_the_one_hilm_prints():
    text = (GUIDE / "index.md").read_text()
    assert all(f"| {goal.library} |" in text for goal in GOALS.values())
