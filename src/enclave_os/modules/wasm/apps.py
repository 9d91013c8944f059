"""The apps of one worker: loaded, replaced, unloaded, and the same as in the store, whoever changed it.

absent --load--> ready --replace--> ready --unload--> absent
start: ready, or compiling (the engine is another than before), or locked (its developer's key has to come again),
       or failed (says why, serves nothing)
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from enclave_os.errors import ConfigError, EnclaveError
from enclave_os.evidence import oids
from enclave_os.evidence.config_leaf import canonical_json, config_leaf
from enclave_os.evidence.merkle import root
from enclave_os.http import HTTPError
from enclave_os.modules.api import MANAGER, MONITORING, AppIdentity, Services, Token
from enclave_os.modules.wasm import bundles, host
from enclave_os.modules.wasm.host.context import AppMeans
from enclave_os.modules.wasm.host.socket_grants import SocketGrants
from enclave_os.modules.wasm.meter import AppMeter
from enclave_os.modules.wasm.permissions import AppTokens
from enclave_os.modules.wasm.settings import WasmSettings
from enclave_os.modules.wasm.spec import AppSpec, key_source
from enclave_os.modules.wasm.store import CONSENTS_MAX, AppRecord, AppStore, erase
from enclave_os.wasm import CallLimits, Component, ComponentRefused, Engine, Linker

_T = TypeVar("_T")

DATA_TABLES: Final = ("files", "keys", "values")
LOG_LINES_MAX: Final = 500
LOG_LINE_SIZE_MAX: Final = 1000


@dataclass(eq=False, slots=True)
class App:
    """One app on this worker.

    Attributes:
        linker: None while it is not ready.
        means: what its calls may use; None while it is not ready.
        state: `ready`, `compiling`, `locked` or `failed`; why: what to do about the others.
        log: its last lines; the host's log never has them.
    """

    record: AppRecord
    linker: Linker | None = None
    means: AppMeans | None = None
    tokens: AppTokens | None = None
    state: str = "ready"
    why: str = ""
    meter: AppMeter = field(default_factory=AppMeter)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES_MAX))

    def owned_by(self, caller: Token) -> bool:
        """Whether the caller loaded it first."""
        return (caller.issuer, caller.subject) == self.record.owner

    def write_log(self, line: str) -> None:
        """One line of the app's log: it stays inside, for the app's owner. From any thread."""
        self.log.append(line[:LOG_LINE_SIZE_MAX])

    @property
    def name(self) -> str:
        """The app's name."""
        return self.record.spec.name

    @property
    def component(self) -> Component:
        """What runs. Raises: HTTPError: 503: it is not ready."""
        return self.ready()[0].component

    @property
    def limits(self) -> CallLimits:
        """What one call may use."""
        spec = self.record.spec
        return CallLimits(fuel=spec.fuel, memory=spec.memory, seconds=spec.seconds)

    def ready(self) -> tuple[Linker, AppMeans]:
        """What a call needs. Raises: HTTPError: 503: it is not ready, and why."""
        if self.linker is None or self.means is None:
            raise HTTPError(503, f"the app {self.name} is {self.state}: {self.why}")
        return self.linker, self.means

    def leaves(self) -> dict[str, bytes]:
        """The app's own configuration tree."""
        return {name: canonical_json(value) for name, value in self.record.public().items() if value is not None}

    def identity(self) -> dict[str, bytes]:
        """The extensions of its certificate."""
        leaves = sorted(self.leaves().items(), key=lambda pair: pair[0].encode())
        return {
            oids.APP_CONFIG_ROOT: root([config_leaf(name, data) for name, data in leaves]),
            oids.APP_CODE: self.record.code,
            oids.APP_KEY_SOURCE: self.record.source.encode("ascii"),
            oids.APP_CONFIG: self.record.spec.configuration_hash(),
        }

    def describe(self) -> dict[str, Any]:
        """For who may list apps."""
        ready = self.linker is not None
        return {
            **self.record.public(),
            "state": self.state,
            **({"why": self.why} if self.why else {}),
            "size": self.record.size,
            "configuration_hash": self.record.spec.configuration_hash().hex(),
            "loaded": ready,
            "exports": [
                {
                    "name": export.name,
                    "param_count": len(export.function.params),
                    "result_count": int(export.function.result is not None),
                }
                for export in (self.component.exports.values() if ready else ())
            ],
            **({"imports": list(self.component.imports), "not_callable": self.component.skipped} if ready else {}),
        }


class Apps:
    """All apps.

    Args:
        changed: what is attested of them has changed.
    """

    def __init__(
        self, services: Services, settings: WasmSettings, store: AppStore, engine: Engine, changed: Callable[[], None]
    ) -> None:
        self._services = services
        self._settings = settings
        self._store = store
        self._engine = engine
        self._changed = changed
        self._compiler = ThreadPoolExecutor(1, "wasm-compile")  # one at a time: each may take a core and much memory
        self._bundles = bundles.Bundles(store, services.random, engine.fingerprint)
        self._changing = asyncio.Lock()
        self._revision = -1
        self.tasks: set[asyncio.Task[None]] = set()
        self.by_name: dict[str, App] = {}
        self.by_hostname: dict[str, App] = {}

    def close(self) -> None:
        """Wait for a compilation that is under way. From another thread than the loop's."""
        self._compiler.shutdown(cancel_futures=True)

    def get(self, name: str) -> App:
        """An app. Raises: HTTPError: 404."""
        app = self.by_name.get(name)
        if app is None:
            raise HTTPError(404, f"there is no app {name!r}")
        return app

    # -- as the store has it ------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Have what the store has: at start, and when another worker changed it."""
        revision = await self._store.revision()
        if revision == self._revision:
            return
        async with self._changing:
            records = await self._store.records()
            for name in [name for name in self.by_name if name not in records]:
                self._drop(self.by_name[name])
            for name, record in records.items():
                known = self.by_name.get(name)
                if known is None or known.record.version != record.version:
                    await self._restore(record, known)
            self._revision = revision
        self._changed()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _restore_late(self, record: AppRecord, known: App | None) -> None:
        async with self._changing:
            there = self.by_name.get(record.spec.name)
            if there is None or there.record.version != record.version:
                return  # replaced or unloaded meanwhile
            try:
                await self._restore(record, known, late=True)
            except EnclaveError as error:
                self._services.logger.error("the app %s is not restored: %s", record.spec.name, type(error).__name__)
                there.state, there.why = "failed", "its component cannot be read now; load it again"

    async def _restore(self, record: AppRecord, known: App | None, *, late: bool = False) -> None:
        key = record.key
        if key is None and known is not None and known.record.source == record.source:
            key = known.record.spec.brought_key
        try:
            linker = await self._compiled_before(record.code)
            if linker is None and not late:
                # Another version of the engine: so that a start does not wait for minutes, it is compiled behind it.
                self._take(App(record, state="compiling", why="its component is compiled for this version"))
                self._keep(self._restore_late(record, known))
                return
            linker = linker or await self._linked(record.code)
        except (ComponentRefused, HTTPError) as error:
            self._services.logger.error("the app %s does not load: %s", record.spec.name, error)
            self._take(App(record, state="failed", why=str(error)))
            return
        if key is None:
            why = "its data is sealed with its developer's key: POST it to /wasm/apps/<name>/key"
            self._take(App(record, state="locked", why=why))
            return
        self._take(self._made(record, linker, key))

    async def _linked(self, code: bytes) -> Linker:
        """A component by its hash, compiled before or now."""
        linker = await self._compiled_before(code)
        if linker is not None:
            return linker
        wasm = await self._store.code(code)
        if wasm is None:
            raise HTTPError(503, "its component is not in the store, or only code for another engine: load it again")
        return await self._compile(code, wasm)

    async def _compile(self, code: bytes, wasm: bytes) -> Linker:
        """Compile a component, and keep what it became. Raises: ComponentRefused."""

        def work() -> tuple[Linker, bytes]:
            component = Component.compile(self._engine, wasm)
            return self._link(component), component.serialize()

        linker, compiled = await self._in_compiler(work)
        await self._store.put_compiled(code, self._engine.fingerprint, compiled)
        return linker

    async def _compiled_before(self, code: bytes) -> Linker | None:
        compiled = await self._store.compiled(code, self._engine.fingerprint)
        if compiled is None:
            return None
        return await self._in_compiler(lambda: self._link(Component.deserialize(self._engine, compiled)))

    def _link(self, component: Component) -> Linker:
        return component.link(host.INTERFACES)

    async def _in_compiler(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._compiler, work)

    # -- changes ------------------------------------------------------------------------------------------------------

    async def load(self, spec: AppSpec, code: bytes | None, caller: Token) -> tuple[App, bool]:
        """Load an app, or replace one. Returns: it, and whether it is new.

        Args: code: a component, or our own compiled bundle; None keeps the code that is there.
        Raises: HTTPError: 400, 403, 404, 409, 413, 422.
        """
        manager = MANAGER in caller.roles
        async with self._changing:
            known = self.by_name.get(spec.name)
            if known is None and not manager:
                raise HTTPError(403, "a new app is loaded by a manager")
            if known is not None:
                self.may_change(known, caller)
            if known is None and len(self.by_name) >= self._settings.apps_max:
                raise HTTPError(409, f"there are {self._settings.apps_max} apps already")
            if spec.hostname not in ("", known.record.spec.hostname if known else "") and not manager:
                raise HTTPError(403, "a host name is given by a manager")
            other = self.by_hostname.get(spec.hostname)
            if spec.hostname and other is not None and other.name != spec.name:
                raise HTTPError(409, "the host name is another app's")
            tokens = self._tokens(spec)
            linker, digest, size = await self._take_code(known, code, manager=manager)
            spec.permissions.check_functions(linker.component.exports)
            record, key = self._record(spec, known, digest, size, caller)
            app = self._made(record, linker, key, tokens)
            await self._put(app, known)
            if known is not None:
                await self._after_replacing(known.record, app.record)
        return app, known is None

    async def _put(self, app: App, known: App | None) -> None:
        """Serve an app and keep it, or neither: what cannot be attested is never stored, for no start could attest it.

        Raises: HTTPError: 409.
        """
        self._take(app)
        try:
            self._changed()
            app.record = await self._store.put(app.record)
        except BaseException as error:
            self._drop(app)
            if known is not None:
                self._take(known)
            self._changed()
            if isinstance(error, ConfigError):
                raise HTTPError(409, str(error)) from error
            raise

    async def _take_code(self, known: App | None, code: bytes | None, *, manager: bool) -> tuple[Linker, bytes, int]:
        if code is None:
            if known is None:
                raise HTTPError(400, "a new app comes with its component")
            return await self._linked(known.record.code), known.record.code, known.record.size
        if len(code) > self._settings.component_bytes:
            raise HTTPError(413, f"a component has at most {self._settings.component_bytes} bytes here")
        try:
            if code.startswith(bundles.MAGIC):
                return await self._take_bundle(code, manager=manager)
            digest = hashlib.sha256(code).digest()
            linker = await self._compiled_before(digest) or await self._compile(digest, code)
        except ComponentRefused as error:
            raise HTTPError(422, str(error)) from error
        await self._store.put_code(code)
        return linker, digest, len(code)

    def _record(
        self, spec: AppSpec, known: App | None, digest: bytes, size: int, caller: Token
    ) -> tuple[AppRecord, bytes]:
        """What will be kept, and the key of the app's data."""
        fresh = self._services.random(16).hex()
        made = None if spec.brought_key is not None else self._services.random(32)
        key = spec.brought_key or made or b""
        if known is None:
            owner = (caller.issuer, caller.subject)
            return AppRecord(spec, digest, size, owner, fresh, made, key_source(spec.brought_key)), key
        old = known.record
        same_key = spec.brought_key is None or key_source(spec.brought_key) == old.source
        consents = old.consents
        if old.code != digest and spec.keep_data:
            if old.key is None and spec.brought_key is None:
                raise HTTPError(409, "other code is to read data under its developer's key: give encryption_key")
            if len(consents) >= CONSENTS_MAX:
                raise HTTPError(409, f"the data went from component to component {CONSENTS_MAX} times; begin anew")
            consents = (*consents, (old.code.hex(), digest.hex()))
        if (old.code == digest or spec.keep_data) and same_key:
            kept = old.key or spec.brought_key or (known.record.spec.brought_key or b"")
            if not kept:
                raise HTTPError(409, "the app is locked: give its encryption_key")
            spec = replace(spec, brought_key=None if old.key is not None else kept)
            return replace(old, spec=spec, code=digest, size=size, consents=consents), kept
        if spec.keep_data:
            raise HTTPError(409, "the data that is to be kept is sealed with another key")
        # Other code without consent, or another key: the old data is out of reach, and goes.
        source = key_source(spec.brought_key)
        made_new = AppRecord(spec, digest, size, old.owner, fresh, made, source, version=old.version)
        return made_new, key

    async def _after_replacing(self, old: AppRecord, new: AppRecord) -> None:
        if old.namespace != new.namespace:
            await self._erase_data(old)
        if old.code != new.code and not any(
            app.record.code == old.code for app in self.by_name.values() if app.name != new.spec.name
        ):
            await self._store.drop_code(old.code, self._engine.fingerprint)

    async def unload(self, name: str, caller: Token) -> None:
        """Forget an app and its data. Raises: HTTPError: 403, 404, 409."""
        async with self._changing:
            app = self.get(name)
            self.may_change(app, caller)
            await self._store.delete(app.record)
            self._drop(app)
            await self._erase_data(app.record)
            if not any(other.record.code == app.record.code for other in self.by_name.values()):
                await self._store.drop_code(app.record.code, self._engine.fingerprint)
        self._changed()

    async def unlock(self, name: str, key: bytes, caller: Token) -> App:
        """Give an app its developer's key again. Raises: HTTPError: 403, 404, 409."""
        async with self._changing:
            app = self.get(name)
            self.may_change(app, caller)
            if not hmac.compare_digest(key_source(key), app.record.source):
                raise HTTPError(409, "this is not the key that the app's data is sealed with")
            await self._unlocked(app, key)
        return self.get(name)

    def brought_key(self, name: str) -> bytes:
        """The key that an app's developer brought and that is known here; b"": none is."""
        app = self.by_name.get(name)
        return (app and app.record.spec.brought_key) or b""

    async def take_key(self, name: str, key: bytes) -> None:
        """Go on with a developer's key that another worker has, if the app waits for it here."""
        async with self._changing:
            app = self.by_name.get(name)
            if app is None or app.state != "locked" or not hmac.compare_digest(key_source(key), app.record.source):
                return
            await self._unlocked(app, key)

    async def _unlocked(self, app: App, key: bytes) -> None:
        linker = await self._linked(app.record.code)
        self._take(self._made(replace(app.record, spec=replace(app.record.spec, brought_key=key)), linker, key))

    def may_change(self, app: App, caller: Token) -> None:
        """Raises: HTTPError: 403: neither a manager nor the app's owner."""
        if MANAGER not in caller.roles and not app.owned_by(caller):
            raise HTTPError(403, "an app is changed by its owner or a manager")

    def seen(self, caller: Token) -> list[App]:
        """The apps that the caller may see: one's own; all for monitoring and managers."""
        return [app for app in self.by_name.values() if self.may_see(app, caller)]

    def may_see(self, app: App, caller: Token) -> bool:
        """Whether the caller may see an app."""
        return not caller.roles.isdisjoint((MONITORING, MANAGER)) or app.owned_by(caller)

    async def _erase_data(self, record: AppRecord) -> None:
        # Rows are deleted whatever their key: the names of rows are sealed with it, so without it they cannot be found.
        key = record.key or record.spec.brought_key
        if key is None:
            return
        for name in DATA_TABLES:
            await erase(self._store.table(name, record.namespace, key))

    # -- compiled code that goes out and comes back -----------------------------------------------------------------

    async def bundle(self, app: App) -> bytes:
        """An app's compiled code under our MAC."""
        return await self._bundles.pack(app.record.code, await self._in_compiler(app.component.serialize))

    async def _take_bundle(self, bundle: bytes, *, manager: bool) -> tuple[Linker, bytes, int]:
        if not manager:
            raise HTTPError(403, "compiled code is taken from a manager only")
        digest, compiled = await self._bundles.open(bundle)
        linker: Linker = await self._in_compiler(lambda: self._link(Component.deserialize(self._engine, compiled)))
        await self._store.put_compiled(digest, self._engine.fingerprint, compiled)
        return linker, digest, len(compiled)

    # -- what is there ------------------------------------------------------------------------------------------------

    def _made(self, record: AppRecord, linker: Linker, key: bytes, tokens: AppTokens | None = None) -> App:
        services, spec = self._services, record.spec
        known = self.by_name.get(spec.name)
        log: deque[str] = deque(maxlen=LOG_LINES_MAX) if known is None else known.log
        files, keys, values = (self._store.table(name, record.namespace, key) for name in DATA_TABLES)
        means = AppMeans(
            name=spec.name,
            env=spec.env,
            args=spec.args,
            files=files,
            write=self._store.write,
            keys=keys,
            values=values,
            clock=services.clock,
            random=services.random,
            egress=services.egress,
            sockets=SocketGrants(spec.permissions.sockets, self._settings.app_sockets),
            log=log.append,
            file_bytes=self._settings.file_bytes,
            response_bytes=self._settings.response_bytes,
        )
        if known is not None and known.means is not None and known.record.namespace == record.namespace:
            means.memory_keys = known.means.memory_keys
        return App(record, linker, means, tokens or self._tokens(spec), log=log)

    def _tokens(self, spec: AppSpec) -> AppTokens | None:
        """Raises: HTTPError: 400: its issuer's key is none."""

        def report(line: str) -> None:
            app = self.by_name.get(spec.name)
            if app is not None:
                app.write_log(line)

        return spec.permissions.tokens(spec.name, self._services, report)

    def _take(self, app: App) -> None:
        known = self.by_name.get(app.name)
        if known is not None and known is not app:
            app.meter = known.meter
        self.by_name[app.name] = app
        self._index()

    def _drop(self, app: App) -> None:
        self.by_name.pop(app.name, None)
        self._index()

    def _index(self) -> None:
        apps = self.by_name.values()
        self.by_hostname = {app.record.spec.hostname: app for app in apps if app.record.spec.hostname}

    # -- what is attested ---------------------------------------------------------------------------------------------

    def leaves(self) -> Mapping[str, bytes]:
        """One leaf for each app: everything that is public of it."""
        return {f"app.{name}": canonical_json(app.record.public()) for name, app in self.by_name.items()}

    def code_hash(self) -> bytes | None:
        """P.2.3 and P.2.5: SHA-256 over name || code hash of all apps, by name; None without apps."""
        if not self.by_name:
            return None
        parts = (name.encode() + app.record.code for name, app in sorted(self.by_name.items()))
        return hashlib.sha256(b"".join(parts)).digest()

    def identities(self) -> list[AppIdentity]:
        """The apps with host names of their own."""
        return [AppIdentity(hostname, app.identity()) for hostname, app in sorted(self.by_hostname.items())]
