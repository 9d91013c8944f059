"""Notes in an enclave: files, clock, random numbers, keys and HTTPS from Python."""

import json
import secrets
import time
from pathlib import Path

import wit_world
from componentize_py_types import Err
from wit_world.imports import crypto, https, keystore

FOLDER = Path("/notes")
KEY = "signer"


class WitWorld(wit_world.WitWorld):
    """The exports of `notes.wit`."""

    def add(self, title: str, text: str) -> int:
        """Store one note."""
        if not title or "/" in title:
            raise Err("a title is not empty and has no slash")
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / title).write_text(json.dumps({"text": text, "stored": int(time.time())}))
        return len(list(FOLDER.iterdir()))

    def all(self) -> list[wit_world.Note]:
        """Every note, by title."""
        if not FOLDER.is_dir():
            return []
        found = []
        for path in sorted(FOLDER.iterdir()):
            document = json.loads(path.read_text())
            found.append(wit_world.Note(path.name, document["text"], document["stored"]))
        return found

    def sign(self, title: str) -> bytes:
        """A signature over one note."""
        if not keystore.key_exists(KEY):
            try:
                keystore.load_key(KEY)
            except Err:
                keystore.generate_signing_key(KEY, crypto.SignAlgorithm.ECDSA_P256_SHA256)
                keystore.persist_key(KEY)
        return crypto.sign(KEY, crypto.SignAlgorithm.ECDSA_P256_SHA256, (FOLDER / title).read_bytes())

    def token(self) -> str:
        """Something that nobody can guess."""
        return secrets.token_urlsafe(16)

    def fetch(self, url: str) -> str:
        """What is at an address, if the operator lets us ask."""
        answer = https.fetch(https.Request(https.Method.GET, url, [], None, None, None))
        return answer.body.decode()
