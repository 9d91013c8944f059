"""Notes in an enclave: files, clock, random numbers, keys, HTTPS and TCP from Python."""

import encodings.idna  # noqa: F401  # sockets look names up by it, and nothing is imported later than here
import json
import secrets
import socket
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

    def tell(self, host: str, port: int, text: str) -> str:
        """What a TCP server says to a text, if both lists let us reach it. The host can read and change this."""
        try:
            with socket.create_connection((host, port), timeout=5) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                server.sendall(text.encode())
                server.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: server.recv(65536), b"")).decode()
        except OSError as error:
            raise Err(f"{type(error).__name__}: {error}") from error
