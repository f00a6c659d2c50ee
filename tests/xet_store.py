"""Where the unmodified Xet client keeps its chunks in tests: a folder, which it takes as ``local://FOLDER``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hf_xet import XetFileInfo, XetSession

TOKEN, EXPIRY = "xet_tokenOfTheTests", 4_000_000_000
RECORD = 48  # bytes of everything in a shard of metadata
END = b"\xff" * 32
VERIFIED, DIGESTED = 1 << 31, 1 << 30


class XetStore:
    """The store, and what the Hub must know of it: the Xet hashes of files of which it is told SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = f"local://{folder}"

    def sign_in(self) -> tuple[dict, dict]:
        """A token as the Rust client reads it (JSON), and as the Python client does (headers)."""
        document = {"casUrl": self.endpoint, "exp": EXPIRY, "accessToken": TOKEN}
        return document, {
            "X-Xet-Cas-Url": self.endpoint, "X-Xet-Token-Expiration": str(EXPIRY), "X-Xet-Access-Token": TOKEN
        }  # fmt: skip

    def hashes(self) -> dict[str, str]:
        """SHA-256 → Xet hash of every file uploaded."""
        found = {}
        for shard in (self.folder / "xet" / "xorbs" / "shards").glob("*.mdb"):
            found |= files_of(shard.read_bytes())
        return found

    def read(self, xet_hash: str, size: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            options = {"endpoint": self.endpoint, "token": TOKEN, "token_expiry_unix_secs": EXPIRY}
            with XetSession().new_file_download_group(**options) as group:
                group.start_download_file(XetFileInfo(xet_hash, size), str(path))
            return path.read_bytes()


def files_of(shard: bytes) -> dict[str, str]:
    """SHA-256 → Xet hash of the files in a shard.

    After one record of header, each file has a header (hash, flags, count of segments), as many records of
    segments, as many again to verify them, and one with the SHA-256; the flags say which of these are there.
    """
    found, at = {}, RECORD
    while (head := shard[at : at + RECORD])[:32] != END:
        flags, segments = (int.from_bytes(head[i : i + 4], "little") for i in (32, 36))
        at += RECORD * (1 + segments * (2 if flags & VERIFIED else 1))
        if flags & DIGESTED:
            found[hexadecimal(shard[at : at + 32])] = hexadecimal(head[:32])
            at += RECORD
    return found


def hexadecimal(digest: bytes) -> str:
    """As Xet writes a hash: four words, each with its last byte first."""
    return "".join(word[::-1].hex() for word in (digest[i : i + 8] for i in range(0, 32, 8)))
