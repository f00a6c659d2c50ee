"""What leaves of a model: the files that others need, a card, and nothing private."""

from __future__ import annotations

import re
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hilm.errors import ConversionError, InputError, UsageError
from hilm.extras import require
from hilm.ship.card_facts import create_model_card
from hilm.ship.card_rules import CARD
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIZES = ("1M", "10M", "100M", "1B", "10B")
TORCH = {".pt", ".pth"}
_PUBLISHED = re.compile(
    r"[^/]+\.(safetensors|gguf|onnx|onnx\.data|onnx_data|mp4|json|model|txt|jinja|md|py|png|jpg|svg|webp)|LICENSE.*|NOTICE.*"
)
_WITHHELD = re.compile(
    r"training_args.*|optimizer.*|scheduler.*|rng_state.*|trainer_state.*|pull\.json|events\.jsonl"
)
_WITHHELD_FOLDERS = re.compile(r"checkpoint-.*|\..*|__pycache__|.*\.egg-info")


@dataclass(frozen=True, slots=True)
class Staged:
    """What is to be published.

    Attributes:
        folder: Where the model can be opened.
        files: Path in the repository → file.
        left_out: Paths of the folder that stay at home.
    """

    folder: Path
    files: dict[str, Path]
    left_out: tuple[str, ...] = ()


@contextmanager
def stage(
    source: Path, repo_id: str, *, model_size: str | None = None, also: Sequence[Path] = ()
) -> Iterator[Staged]:
    """Choose what is to be published; what has to be made for that is gone afterwards.

    Args:
        source: Folder, weight file, reel or graph; a PyTorch file is converted.
        repo_id: Repository it is for; named in the card that is written where there is none.
        model_size: Documented size of a ResNet-BK in a PyTorch file.
        also: Files to publish beside it.

    Raises:
        InputError: There is nothing to publish, or a PyTorch file does not fit.
    """
    if absent := next((path for path in (source, *also) if not path.exists()), None):
        raise InputError(f"{absent} does not exist", hint="name the folder of a model")
    with tempfile.TemporaryDirectory(prefix="hilm-push-") as scratch:
        folder = source if source.is_dir() else Path(scratch)
        if source.suffix in TORCH and source.is_file():
            convert(source, model_size, folder)
        elif source.is_file():
            (folder / source.name).symlink_to(source.resolve())
        files, left_out = _choose(folder)
        files |= {path.name: path for path in also}
        if not files:
            raise InputError(
                f"{source} holds nothing to publish",
                hint="weights, graphs, reels and their settings are published",
            )
        if CARD not in files:
            files[CARD] = Path(scratch) / CARD
            files[CARD].write_text(create_model_card(folder, repo_id), "utf-8")
        yield Staged(folder, dict(sorted(files.items())), tuple(left_out))


def _choose(folder: Path) -> tuple[dict[str, Path], list[str]]:
    files, left_out = {}, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder)
        private = any(map(_WITHHELD_FOLDERS.fullmatch, inside.parts)) or _WITHHELD.fullmatch(path.name)
        if private or not _PUBLISHED.fullmatch(path.name):
            left_out.append(inside.as_posix())
        else:
            files[inside.as_posix()] = path
    return files, left_out


def convert(path: Path, model_size: str | None, folder: Path) -> None:
    """Write the ResNet-BK in a PyTorch file as a folder that transformers loads. No pickle is run.

    Raises:
        UsageError: No size is given.
        ConversionError: The file holds something else than a ResNet-BK of that size.
    """
    if model_size not in SIZES:
        raise UsageError(
            f"the size of {path.name} is needed, not {model_size!r}",
            hint=f"--model-size, of {', '.join(SIZES)}",
        )
    torch, resnet_bk = require("torch"), require("hilm.models.resnet_bk")
    with open_checkpoint(path) as checkpoint:
        arrays = {name: checkpoint.array(name) for name, info in checkpoint.tensors.items() if info.is_weight}
    blank = resnet_bk.create_resnet_bk_for_hf(model_size, device="meta")
    inputs = blank.get_input_embeddings().weight
    rows = next(
        (arrays[n].shape[0] for n, p in blank.named_parameters() if p is inputs and n in arrays), None
    )
    model = resnet_bk.create_resnet_bk_for_hf(model_size, **({} if rows is None else {"vocab_size": rows}))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wrong = sorted(
        n for n in shapes.keys() | arrays.keys() if n not in arrays or shapes.get(n) != arrays[n].shape
    )
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if wrong := [name for name in wrong if name not in tied or name in arrays]:
        raise ConversionError(
            f"{path.name} is not a ResNet-BK {model_size}: {len(wrong)} tensors differ, such as {wrong[0]}",
            hint="check --model-size, or push a folder written by save_pretrained",
        )
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    resnet_bk.save_with_code(model, folder)
