"""A store: a folder with a catalog of models and the reels made of them."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from hilm.errors import HilmError, NotAStore, StorageError, UnknownModel, UsageError
from hilm.html import Document
from hilm.store.reading import no_progress
from hilm.weights.folder import is_hub_id, is_remote, split_variant

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from hilm.lineage.catalog import Catalog
    from hilm.lineage.search import Match
    from hilm.store.intake import Intake
    from hilm.store.reading import Progress

DEFAULT_SAMPLE = 30_000
"""Values of a sample when no number is given."""

DEFAULT_CHUNK = 1024
MAX_FRAME = 1 << 22
LOSSY_BITS = 2.5
"""Bits per weight of rounded differences when no number is given: about 3 % of their energy are lost."""

_MODES = ("archive", "small", "delta", "sample")
_OBJECT_STORES = ("s3", "gs", "az", "file-object-store")


def _text(path: str | PathLike[str] | None) -> str:
    if path is None:
        path = Path(os.environ.get("HILM_HOME") or "~/.cache/hilm").expanduser()
    return os.fspath(path)


def local_folder(path: str | PathLike[str] | None = None) -> Path:
    """The folder of a store given by path or address; of an object store that of what derives from it.

    Raises:
        UsageError: An address of another kind, or with a password in it.
    """
    text = _text(path)
    if address := _address(text):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return cache / "hilm-catalogs" / hashlib.sha256(address.encode()).hexdigest()[:16]
    local = re.match("file:/+", text)
    return Path("/" + unquote(text[local.end() :])) if local else Path(text)


def _address(text: str) -> str | None:
    """The address meant on an object store, of whose slashes a path may have lost some; None for a folder."""
    found = re.match(r"([a-z][a-z0-9+.-]+):(?:/+|$)", text)
    if found is None or found[1] == "file":
        return None
    scheme, rest = found[1], text[found.end() :].rstrip("/")
    if scheme not in _OBJECT_STORES or not rest:
        raise UsageError(
            f"a store cannot be kept at {scheme}://", hint="s3://BUCKET/PREFIX, gs://, az:// or a folder"
        )
    if re.search(r":[^/]*@|\?", rest):
        raise UsageError(
            "an address holds no credentials", hint="set those in the environment: AWS_… and so on"
        )
    return f"{scheme}://{'/' if scheme == 'file-object-store' else ''}{rest}"


class Store:
    """A folder with ``catalog/`` and ``reels/``; it is made when something is first put into it.

    Or the address of an object store, which has a catalog only: ``s3://BUCKET/PREFIX``, ``gs://``, ``az://``.

    Args:
        path: The folder, also as ``file:///…``, or address; ``$HILM_HOME`` or ``~/.cache/hilm`` by default.

    Attributes:
        address: On an object store; None for a folder.
        path: The folder; of an address a local one, for what is derived from its catalog.
        place: The folder or address, as text.

    Raises:
        NotAStore: The folder holds something else.
        UsageError: It is an address of another kind.
    """

    def __init__(self, path: str | PathLike[str] | None = None) -> None:
        self.path = local_folder(path)
        self.address = _address(_text(path))
        self.place = self.address or str(self.path)
        self.reels = self.path / "reels"
        if not self.address and self.path.exists() and not self._is_ours():
            raise NotAStore(f"{self.path} is not a hilm store and not an empty folder")

    def _is_ours(self) -> bool:
        if not self.path.is_dir():
            return False
        return self.exists or all(entry.name.startswith(".catalog-") for entry in self.path.iterdir())

    @property
    def exists(self) -> bool:
        """Whether anything was ever put into it.

        Raises:
            NetworkError: The object store does not answer, or refuses.
        """
        if self.address:
            with suppress(NotAStore):
                return bool(self.catalog)
            return False
        return (self.path / "catalog" / "catalog.json").is_file()

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog.

        Raises:
            NotAStore: There is none.
            CatalogSchemaError: It was written by a newer program.
        """
        from hilm.lineage.catalog import Catalog  # noqa: PLC0415 - its library takes a second to import

        return Catalog.open(self._catalog_place, create=False)

    @property
    def _catalog_place(self) -> Path | str:
        return f"{self.address}/catalog" if self.address else self.path / "catalog"

    def require_folder(self) -> None:
        """Refuse what takes reels.

        Raises:
            UsageError: The store is an address of an object store.
        """
        if self.address:
            raise UsageError(
                f"{self.address} holds a catalog and no reels",
                hint="hilm index works there; give a folder with --storage-dir for reels",
            )

    def make(self) -> None:
        """Make what is missing of the store.

        Raises:
            StorageError: The operating system refuses.
        """
        from hilm.lineage.catalog import Catalog  # noqa: PLC0415 - as above

        try:
            if not self.exists:
                Catalog.open(self._catalog_place, create=True)
            self.reels.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if isinstance(error, HilmError):
                raise
            raise StorageError(f"cannot make the store {self.path}: {error.strerror}") from error

    def encode(
        self,
        models: Sequence[str | PathLike[str]],
        *,
        mode: str = "archive",
        base: str | PathLike[str] | None = None,
        lossy: bool = False,
        max_params: int | None = None,
        stream: bool = False,
        chunk_size: int | None = None,
        layers: Sequence[str] | None = None,
        exclude_layers: Sequence[str] | None = None,
        name: str | None = None,
        preview: bool = True,
        carrier: str = "packed",
        layout: str = "auto",
        jobs: int | None = None,
        ray: str | None = None,
        force: bool = False,
        progress: Progress = no_progress,
        **rounding: Any,  # noqa: ANN401 - fields of hilm.reel.rate.Rounding
    ) -> dict[str, Any]:
        """Film models and catalogue their fingerprints, all in one pass over each.

        Args:
            models: Folders, files, Hub ids or URLs.
            mode: ``archive`` keeps every bit; ``small`` rounds weights, and says how far; ``delta`` keeps
                what differs from a base, bit for bit; ``sample`` keeps some values, one frame per model.
            base: What a delta is taken from: a checkpoint, which is indexed too, a reel, or the name of a
                model in the store.
            lossy: Round the differences of a delta, to 2.5 bits unless ``bits`` says otherwise.
            max_params: Values of a sample, spread over all tensors.
            stream: One frame per chunk instead.
            chunk_size: Values of such a chunk.
            layers: Layer types to sample.
            exclude_layers: Layer types to leave out of the sample.
            name: What to call the model; its folder's name by default.
            preview: Whether the reel gets a front video that players show.
            carrier: What coded weights of an archive or a small reel ride in: ``packed``, or a lossless video
                of codec ``ffv1``, ``utvideo`` (a file beside the reel) or ``vp9`` (the front itself).
            layout: How they lie in its frames: ``raster``, ``flat``, ``hilbert``, or what measures least.
            jobs: Processes; by default one per core where there are enough models.
            ray: Work on the Ray cluster at ``host:port``, or on a ``local`` one, ``jobs`` models at a time.
                Its machines open models and write reels at the paths given here.
            force: Encode again what is in the store already.
            progress: Called with models done, models in all, and a name.
            rounding: For ``small``: bits, error, like, quantiser, effort and keep, as of
                `hilm.reel.rate.Rounding`; for a lossy delta: bits, from 0.5.

        Returns:
            ``models``: per model its reel, mode, parameters, bits_per_weight, bytes, nmse, seconds,
            and of a delta the tensors that are ``unpaired`` and the share of ``energy_lost``, of a video
            ``carrier`` the ``layouts`` chosen and what they saved in percent;
            ``failed``: per failure the model, message, hint and exit_code.

        Raises:
            UsageError: Options that do not go together, or a base that cannot be one.
            MissingExtra: Ray is asked for and not installed.
            WorkerError: Ray does not start, or is lost.
            StorageError: The store cannot be written.
        """
        self.require_folder()
        if (mode == "delta") != (base is not None):
            raise UsageError("a delta, and only a delta, has a base", hint="--mode delta --base MODEL")
        sampling = {"limit": max_params, "layers": layers, "exclude_layers": exclude_layers}
        rounding["lossy"] = lossy
        options = _job_options(mode, sampling, chunk_size, rounding, stream=stream) | {"preview": preview}
        options |= _carrier_options(mode, carrier, layout)
        if base is not None:
            from hilm.store.bases import settle_base  # noqa: PLC0415 - only deltas need it

            options |= settle_base(self, base) | {"force": force}
        intake = self._intake(mode, options, force=force, progress=progress)
        intake.run([os.fspath(m) for m in models], name=name, jobs=jobs, ray=ray)
        made = [*intake.plan.skipped.values(), *intake.done.values()]
        return Document(models=made, failed=intake.failed)

    def quote(
        self,
        model: str | PathLike[str],
        carrier: str,
        *,
        mode: str = "archive",
        **rounding: Any,  # noqa: ANN401 - as of encode
    ) -> dict[str, Any]:
        """Measure what a video carrier costs, on some rows of the largest tensor; nothing is written.

        Returns:
            ``model``, ``carrier``, ``tensor``, and ``carried`` and ``packed``, bits per weight of either;
            None where the model has nothing that a video carries.

        Raises:
            UsageError: Options that do not go together.
            InputError: There is no checkpoint.
        """
        from hilm.store.pricing import quote_carrier  # noqa: PLC0415 - needs the codecs

        _carrier_options(mode, carrier, "auto")
        options = _job_options(mode, {}, None, rounding, stream=False)
        return quote_carrier(os.fspath(model), carrier, options.get("rounding"))

    def index(
        self,
        models: Sequence[str | PathLike[str]],
        *,
        jobs: int | None = None,
        ray: str | None = None,
        name: str | None = None,
        force: bool = False,
        progress: Progress = no_progress,
    ) -> dict[str, Any]:
        """Catalogue fingerprints without making reels; options as in ``encode``.

        Returns:
            ``indexed`` and ``skipped`` (names), ``failed`` (model, message, hint, exit_code).

        Raises:
            MissingExtra: Ray is asked for and not installed.
            WorkerError: Ray does not start, or is lost.
            StorageError: The store cannot be written.
        """
        intake = self._intake("index", {}, force=force, progress=progress)
        intake.run([os.fspath(m) for m in models], name=name, jobs=jobs, ray=ray)
        return {"indexed": list(intake.done), "skipped": list(intake.plan.skipped), "failed": intake.failed}

    def _intake(self, mode: str, options: dict[str, Any], *, force: bool, progress: Progress) -> Intake:
        from hilm.store.intake import Intake  # noqa: PLC0415 - reading a store needs no encoder
        from hilm.store.planning import Plan  # noqa: PLC0415 - the same

        return Intake(Plan(self, mode, options, force), progress)

    def search(
        self,
        model: str | PathLike[str],
        *,
        method: str = "hybrid",
        top_k: int = 10,
        proof: bool = True,
        progress: Progress = no_progress,
    ) -> dict[str, Any]:
        """Find relatives of a model.

        Args:
            model: A folder, file, Hub id or URL, or the name of a model in the store.
            method: ``hierarchical`` (same coordinates), ``features`` (any coordinates) or ``hybrid``.
            top_k: How many matches to return.
            proof: Read the weights of likely relatives whose fingerprints alone prove nothing.
            progress: Called as the work goes on.

        Returns:
            ``query``, ``method``, ``matches``: model, score, z, p_value, relation, level, sentence, details,
            uri; best first. For an unmerged adapter also ``adapter``: ``compatible`` (models that it fits,
            which is no evidence) and ``applied`` (pairs that differ by it: base, model, cosine, p_value).
            Of a model of several stacks (a language model and a vision tower, an encoder and a decoder) also
            ``components``: component and matches, those established only.

        Raises:
            UnknownModel: Neither a path nor a name in the store.
            UsageError: No such method.
        """
        from hilm.store import searching  # noqa: PLC0415 - only searching needs it

        query, matches, parts = searching.search_store(
            self, model, method, top_k, proof=proof, progress=progress
        )
        adapter = {"adapter": searching.describe_adapter(self, query)} if query.is_adapter else {}
        found = [_describe_match(match) for match in matches]
        components = [
            {"component": name, "matches": [_describe_match(match) for match in near]}
            for name, near in parts.items()
        ]
        more = adapter | ({"components": components} if components else {})
        return Document({"query": query.name, "method": method, "matches": found} | more)

    def lineage(
        self,
        model: str | PathLike[str] | None = None,
        *,
        picture: str | PathLike[str] | None = None,
        progress: Progress = no_progress,
    ) -> dict[str, Any]:
        """Arrange models as trees of descent, from fingerprints alone.

        Args:
            model: A folder, file, Hub id or URL, or the name of a model in the store, whose family is wanted;
                every model of the store by default.
            picture: PNG to draw the trees into.
            progress: Called as a model that is not in the store is read.

        Returns:
            ``query``; ``nodes``: model, family, parameters, bits, zeros, architecture, declared_base, uri;
            ``edges``: parent, child, relation, direction (``shown`` or ``not shown``), p_value, z, distance,
            weight, sentence, details; ``hints``: pairs with similar token geometry; ``picture``: its path.

        Raises:
            UnknownModel: Neither a path nor a name in the store.
            UsageError: Too many models for one graph, or one picture.
        """
        from hilm.store.genealogy import lineage_of  # noqa: PLC0415 - only drawing trees needs it

        return Document(lineage_of(self, model, picture, progress))

    def dedupe(self, *, measure: bool = False, progress: Progress = no_progress) -> dict[str, Any]:
        """Find models that are there more than once, by fingerprints; nothing is deleted.

        Args:
            measure: Write a delta reel of each near duplicate, and throw it away, to know its size.
            progress: Called as they are measured.

        Returns:
            ``exact``: groups of equal values (models, bytes, saved); ``near``: models that differ little from
            another (model, base, relation, bytes, identical_share, bits_per_weight_estimate, saved_estimate,
            and saved where it was measured); ``exact_bytes`` and ``near_bytes``: sums.

        Raises:
            UsageError: Too many models for one graph.
        """
        from hilm.store.duplicates import find_duplicates  # noqa: PLC0415 - only this needs it

        return find_duplicates(self, measure=measure, progress=progress)

    def locate(self, model: str | PathLike[str]) -> str:
        """Where the model of that name was when it was taken in; a path, Hub id or URL as it is.

        Raises:
            UnknownModel: Nothing of these.
        """
        row = self.find(model)
        return os.fspath(model) if row is None else str(row["uri"])

    def find(self, model: str | PathLike[str]) -> dict[str, Any] | None:
        """Row of the ``models`` table; None for a path, a URL, or what may be one on the Hub.

        Raises:
            UnknownModel: Nothing of these.
        """
        text = os.fspath(model)
        if os.path.exists(split_variant(text)[0]) or is_remote(text):  # noqa: PTH110 - may be text that is no path
            return None
        try:
            return self.row(text)
        except UnknownModel:
            if is_hub_id(text):
                return None
            raise

    def row(self, name: str) -> dict[str, Any]:
        """Row of the ``models`` table.

        Raises:
            UnknownModel: No model of that name.
        """
        rows = self.catalog.models({"name": name}) if self.exists else []
        if not rows:
            raise UnknownModel(f"there is no path and no model in the store called {name!r}")
        return rows[-1]

    def reel(self, name: str, *modes: str) -> Path:
        """File of a model's latest reel, of the first of some modes that there is, or of any.

        Raises:
            UnknownModel: No model of that name.
            UsageError: It has no such reel.
        """
        self.require_folder()
        row = self.row(name)
        entries = self.catalog.rows("reels", {"name": name})
        kinds = [[e for e in entries if e["mode"] == mode] for mode in modes] if modes else [entries]
        found = next(filter(None, kinds), None)
        if found is None:
            what = f"no reel of mode {' or '.join(modes)}" if modes else "no reel"
            raise UsageError(f"{name} has {what} in the store", hint=f"hilm encode {row['uri']} makes one")
        return self.reels / str(found[-1]["uri"])

    def list(self) -> dict[str, Any]:
        """Every model in the store: model, parameters, mode, bytes, bits_per_weight, uri."""
        if not self.exists:
            return Document(models=[])
        reels: dict[str, list[dict[str, Any]]] = {}
        for row in self.catalog.rows("reels"):
            reels.setdefault(row["name"], []).append(row)
        models = []
        for row in sorted(self.catalog.models(), key=lambda r: r["name"]):
            last = reels.get(row["name"], [None])[-1]
            models.append(
                {
                    "model": row["name"],
                    "parameters": row["parameters"],
                    "mode": last["mode"] if last else None,
                    "bytes": last["bytes"] if last else None,
                    "bits_per_weight": last["bits_per_value"] if last else None,
                    "uri": row["uri"],
                }
            )
        return Document(models=models)

    def stats(self) -> dict[str, Any]:
        """Totals over the store: models, parameters, reels, bytes of reels and of their sources."""
        models = self.catalog.models() if self.exists else []
        reels = self.catalog.rows("reels") if self.exists else []
        files = {row["uri"] for row in reels}
        sizes = [(self.reels / uri).stat().st_size for uri in files if (self.reels / uri).is_file()]
        return Document(
            {
                "path": self.place,
                "models": len(models),
                "parameters": sum(row["parameters"] for row in models),
                "source_bytes": sum(row["bytes"] for row in models),
                "reels": len(files),
                "reel_bytes": sum(sizes),
                "frames": sum(row["frames"] for row in reels),
            }
        )

    def show(
        self,
        model: str,
        *,
        chain: bool = False,
        sheet: str | PathLike[str] | None = None,
        film: str | PathLike[str] | None = None,
        picture: str | PathLike[str] | None = None,
        figure: str = "std",
        progress: Progress = no_progress,
    ) -> dict[str, Any]:
        """What the store knows of a model, or what is in a reel; optionally its sheet, film and heat map.

        Args:
            model: Name of a model in the store, or a reel: a file or URL ending in ``.mp4``; for a sheet or
                heat map also a path, Hub id or URL.
            chain: List what its latest reel takes to decode: itself and, of a delta, what it stands on.
            sheet: PNG to write.
            film: MP4 to write.
            picture: PNG to write: the heat map of the model's layers, all of its weights being read.
            figure: What the heat map shows: std, max, outliers, zeros or mean.
            progress: Called with values measured, values in all, and the current tensor.

        Raises:
            UnknownModel: No model of that name.
            UsageError: It has no film, neither weights nor archive to draw, or there is no such figure.
        """
        from hilm.store.showing import show_model  # noqa: PLC0415 - only pictures need it

        found = show_model(
            self,
            model,
            chain=chain,
            sheet=sheet,
            film=film,
            picture=picture,
            figure=figure,
            progress=progress,
        )
        return Document(found)

    def film(
        self,
        models: Sequence[str | PathLike[str]],
        out: str | PathLike[str],
        *,
        tensor: str | None = None,
        difference: bool = False,
    ) -> dict[str, Any]:
        """Film one tensor through successive checkpoints, one frame each, all at one scale.

        The scale is that of the first frame, or of differences that of the last: 24 grey levels are sigma
        rounded to a power of two.

        Args:
            models: Checkpoints, archives or names of models in the store, in the order of the frames.
            out: MP4 to write.
            tensor: What to film; the largest matrix of attention or MLP by default.
            difference: Show how much each differs from the first.

        Returns:
            ``film``, ``tensor``, ``shape``, ``difference``, ``scale``; ``frames``: model and sigma of each.

        Raises:
            UsageError: Fewer than two models, or one without this tensor in this shape.
            InputError: One is no checkpoint.
        """
        from hilm.store.films import film_models  # noqa: PLC0415 - only pictures need it

        return film_models(self, models, out, tensor=tensor, difference=difference)

    def remove(self, model: str, *, force: bool = False) -> dict[str, Any]:
        """Forget a model, and delete its reels where no other model is in them.

        Args:
            model: Its name.
            force: Also if deltas in the store were taken from it, and no other model has the same content.

        Raises:
            UnknownModel: No model of that name.
            UsageError: Deltas need it.
        """
        from hilm.store.shelf import discard  # noqa: PLC0415 - only deleting needs it

        key = self.row(model)["content_key"]
        deltas = {row["name"] for row in self.catalog.rows("reels", {"base_content_key": key})} - {model}
        if deltas and not force and len(self.catalog.models({"content_key": key})) == 1:
            raise UsageError(
                f"deltas were taken from {model}: {', '.join(sorted(deltas))}",
                hint="remove those first, or --force: they cannot be decoded without it",
            )
        return {
            "removed": model,
            "deleted_reels": discard(self.catalog, self.reels, self.catalog.delete([model])),
        }


def _job_options(
    mode: str,
    sampling: dict[str, Any],
    chunk_size: int | None,
    rounding: dict[str, Any],
    *,
    stream: bool,
) -> dict[str, Any]:
    """Fields of a job that say how it samples or rounds."""
    if mode not in _MODES:
        raise UsageError(f"there is no mode {mode!r}", hint=f"modes: {', '.join(_MODES)}")
    asked = {key: value for key, value in rounding.items() if value not in (None, (), False)}
    fitting = {"small": rounding.keys() - {"lossy"}, "delta": {"bits", "lossy"}}.get(mode, set())
    if unknown := asked.keys() - fitting:
        raise UsageError(f"mode {mode} takes no {min(unknown)}", hint="--mode small rounds weights")
    if mode != "sample":
        if stream or chunk_size or any(sampling.values()):
            raise UsageError(
                f"mode {mode} keeps all weights: it takes no sampling options", hint="--mode sample"
            )
        if mode == "delta":
            return {"bits": asked.get("bits", LOSSY_BITS if asked else None)}
        if mode == "archive":
            return {}
        from hilm.reel.rate import Rounding  # noqa: PLC0415 - other modes need no quantiser

        return {"rounding": Rounding(**asked)}
    limit = sampling["limit"] or DEFAULT_SAMPLE
    frame = (chunk_size or DEFAULT_CHUNK) if stream else limit
    if frame > MAX_FRAME:
        raise UsageError(f"a frame holds at most {MAX_FRAME:,} values", hint="--stream makes many frames")
    layers = {key: tuple(sampling[key] or ()) or None for key in ("layers", "exclude_layers")}
    return {"limit": limit, "chunk_size": frame if stream else None, **layers}


def _carrier_options(mode: str, carrier: str, layout: str) -> dict[str, Any]:
    """Fields of a job that say what carries its symbols."""
    if (carrier, layout) == ("packed", "auto"):
        return {}
    from hilm.reel.carrier import carrier_settings  # noqa: PLC0415 - most reels are packed

    if mode not in {"archive", "small"} or not carrier_settings(carrier, layout):
        raise UsageError(
            f"{carrier} with layout {layout} is no carrier of mode {mode}",
            hint="videos carry archives and small reels; only they have a layout",
        )
    return {"carrier": (carrier, layout)}


def _describe_match(match: Match) -> dict[str, Any]:
    judged = match.verdict
    return {
        "model": match.model["name"],
        "score": judged.score,
        "z": judged.z,
        "p_value": judged.p_value,
        "relation": judged.relation,
        "level": judged.level,
        "sentence": judged.sentence,
        "details": judged.details,
        "uri": match.model["uri"],
    }


def encode(
    models: Sequence[str | PathLike[str]],
    *,
    store: Store | None = None,
    **options: Any,  # noqa: ANN401 - of Store.encode
) -> dict[str, Any]:
    """``Store.encode`` on the default store or the one given."""
    return (store or Store()).encode(models, **options)


def index(
    models: Sequence[str | PathLike[str]],
    *,
    store: Store | None = None,
    **options: Any,  # noqa: ANN401 - of Store.index
) -> dict[str, Any]:
    """``Store.index`` on the default store or the one given."""
    return (store or Store()).index(models, **options)


def search(model: str | PathLike[str], *, store: Store | None = None, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - of Store.search
    """``Store.search`` on the default store or the one given."""
    return (store or Store()).search(model, **options)
