"""The module `wasm`: apps as WebAssembly components, each with a name, a host name, sealed data and an API of its own.

PUT    /wasm/apps/{name}            manager, or the app's owner   load or replace
GET    /wasm/apps                   a token                       one's own; all for monitoring
GET    /wasm/apps/{name}            owner, monitoring
DELETE /wasm/apps/{name}            owner, manager                with its data
POST   /wasm/apps/{name}/key        owner, manager                a developer's key again, after a start
GET    /wasm/apps/{name}/log        owner, manager                what the app wrote to stdout and stderr
GET    /wasm/apps/{name}/metrics    owner, monitoring             what its calls have cost
GET    /wasm/apps/{name}/compiled   manager                       compiled code under our MAC
POST   /rpc/{app}/{function...}     as the app says               call
GET    /rpc/{app}/schema, /openapi.json; POST /rpc/{app}/mcp      what it offers
POST   /{function...}               the same at the app's host name
POST   /data                        wasm_load, wasm_call, ... as clients of the family send them

Of several workers, worker 0 changes apps: two changes at once could each be possible and not both, as two apps of one
host name. It has the others follow before it answers. What an app wrote and what it cost, it asks of all.

docs/wasm.md is for developers of apps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from enclave_os.errors import EnclaveError, InternalError, VersionConflict
from enclave_os.evidence import oids
from enclave_os.http import HTTPError, Request, Response, error_response, json_response
from enclave_os.modules.api import (
    DATA_PATH,
    MANAGER,
    NO_STORE,
    AppIdentity,
    Module,
    Route,
    Services,
    Token,
)
from enclave_os.modules.auth import bearer
from enclave_os.modules.shared_work import result_of
from enclave_os.modules.wasm import describe, loading
from enclave_os.modules.wasm.apps import App, Apps
from enclave_os.modules.wasm.calling import Caller, by_name, http_response
from enclave_os.modules.wasm.envelope import Envelope
from enclave_os.modules.wasm.mcp import MCPServer
from enclave_os.modules.wasm.meter import AppMeter
from enclave_os.modules.wasm.settings import WasmSettings
from enclave_os.modules.wasm.sharing import Sharing
from enclave_os.modules.wasm.spec import AppSpec
from enclave_os.modules.wasm.store import AppStore
from enclave_os.wasm import Engine, Pool

_T = TypeVar("_T")

FOLLOW_SECONDS: Final = 30.0
"""How long a worker that did not hear of a change may go on as before. All others follow before it is answered."""

METER_SECONDS: Final = 30.0
"""How much metering a crash can lose."""


class Wasm(Module):
    """Serves apps."""

    name = "wasm"

    def __init__(self) -> None:
        self._parts: _Parts | None = None
        self.routes = [
            Route("GET", "/wasm/apps", self.list_apps),
            Route("PUT", "/wasm/apps/{name}", self.load, first=True),
            Route("GET", "/wasm/apps/{name}", self.describe),
            Route("DELETE", "/wasm/apps/{name}", self.unload, first=True),
            Route("POST", "/wasm/apps/{name}/key", self.unlock, first=True),
            Route("GET", "/wasm/apps/{name}/log", self.log, first=True),
            Route("GET", "/wasm/apps/{name}/metrics", self.metrics, first=True),
            Route("GET", "/wasm/apps/{name}/compiled", self.compiled),
            Route("GET", "/rpc/{app}/schema", self.schema),
            Route("GET", "/rpc/{app}/openapi.json", self.openapi),
            Route("POST", "/rpc/{app}/mcp", self.mcp),
            Route("POST", "/rpc/{app}/{function...}", self.call),
        ]

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self, services: Services) -> None:
        """Bring back the apps that are in the store. Raises: ConfigError; SealBroken: a record is not ours."""
        parts = self._parts = _Parts(services)
        await parts.apps.follow()
        parts.started = True
        for work in (parts.keep_following(), parts.keep_metering()):
            parts.tasks.append(asyncio.get_running_loop().create_task(work))

    async def stop(self) -> None:
        """End the calls, and store what they have cost."""
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.close()

    async def peer(self, what: bytes) -> bytes:
        """Another worker's word; see `sharing`."""
        return b"" if self._parts is None else await self._parts.sharing.answer(what)

    def _given(self) -> _Parts:
        if self._parts is None:
            raise InternalError("wasm is not started")
        return self._parts

    # -- what is attested ---------------------------------------------------------------------------------------------

    def config_leaves(self) -> Mapping[str, bytes]:
        """One leaf for each app."""
        return self._given().apps.leaves()

    def custom_oids(self) -> Mapping[str, bytes]:
        """The combined code hash, under both of its numbers."""
        code = self._given().apps.code_hash()
        return {} if code is None else {oids.WASM_CODE_FIRST: code, oids.WASM_CODE: code}

    def app_identities(self) -> Sequence[AppIdentity]:
        """The apps with host names."""
        return self._given().apps.identities()

    def counters(self) -> Mapping[str, int | float]:
        """What this worker's apps did, in all."""
        parts = self._given()
        apps = parts.apps.by_name.values()
        return {
            "wasm_apps": len(apps),
            "wasm_sockets": sum(app.means.sockets.open for app in apps if app.means is not None),
            **parts.caller.counters(),
        }

    # -- apps ---------------------------------------------------------------------------------------------------------

    async def list_apps(self, request: Request) -> Response:
        """The apps that the caller may see."""
        parts = self._given()
        caller = await parts.services.tokens.verify(request)
        return json_response({"apps": [app.describe() for app in parts.apps.seen(caller)]}, headers=[NO_STORE])

    async def load(self, request: Request) -> Response:
        """Load or replace one."""
        parts = self._given()
        caller = await parts.services.tokens.verify(request)
        document, code = loading.body_of(request)
        app, new = await parts.load((request.params or {})["name"], document, code, caller)
        return json_response(app.describe(), 201 if new else 200, [NO_STORE])

    async def describe(self, request: Request) -> Response:
        """One app."""
        app, _ = await self._seen(request)
        return json_response(app.describe(), headers=[NO_STORE])

    async def unload(self, request: Request) -> Response:
        """Forget one."""
        parts = self._given()
        caller = await parts.services.tokens.verify(request)
        await parts.unload((request.params or {})["name"], caller)
        return Response(204)

    async def unlock(self, request: Request) -> Response:
        """Take a developer's key again."""
        parts = self._given()
        caller = await parts.services.tokens.verify(request)
        key = loading.key_of(request)
        app = await parts.unlock((request.params or {})["name"], key, caller)
        return json_response(app.describe(), headers=[NO_STORE])

    async def log(self, request: Request) -> Response:
        """An app's last lines, of one worker after the other."""
        parts = self._given()
        caller = await parts.services.tokens.verify(request)
        app = parts.apps.get((request.params or {})["name"])
        parts.apps.may_change(app, caller)
        return json_response({"lines": [*app.log, *await parts.sharing.lines(app.name)]}, headers=[NO_STORE])

    async def metrics(self, request: Request) -> Response:
        """What an app's calls have cost, on all workers and in all starts."""
        app, parts = await self._seen(request)
        await parts.store_meters()
        await parts.sharing.have_meters_stored()
        item = await parts.store.meters.get(app.name.encode())
        meter = AppMeter() if item is None else AppMeter.decode(item.value)
        return json_response({"app": app.name, "functions": meter.document()}, headers=[NO_STORE])

    async def compiled(self, request: Request) -> Response:
        """Compiled code, to be brought back."""
        parts = self._given()
        if MANAGER not in (await parts.services.tokens.verify(request)).roles:
            raise HTTPError(403, "compiled code goes out to managers only")
        app = parts.apps.get((request.params or {})["name"])
        return Response(200, await parts.apps.bundle(app), "application/octet-stream", [NO_STORE])

    async def _seen(self, request: Request) -> tuple[App, _Parts]:
        parts = self._given()
        caller = await parts.services.tokens.verify(request)
        app = parts.apps.get((request.params or {})["name"])
        if not parts.apps.may_see(app, caller):
            raise HTTPError(403, "an app is seen by its owner and by monitoring")
        return app, parts

    # -- calls --------------------------------------------------------------------------------------------------------

    async def call(self, request: Request) -> Response:
        """Call a function by its path."""
        params = request.params or {}
        return await self._call(self._given().apps.get(params["app"]), params["function"], request)

    async def _call(self, app: App, function: str, request: Request) -> Response:
        body = request.json() if request.body else None
        answer = await self._given().caller.call(app, function, bearer(request), by_name(body))
        return http_response(answer)

    async def schema(self, request: Request) -> Response:
        """JSON Schema of an app."""
        return await self._described(self._given().apps.get((request.params or {})["app"]), request, describe.schema)

    async def openapi(self, request: Request) -> Response:
        """OpenAPI of an app."""
        return await self._described(self._given().apps.get((request.params or {})["app"]), request, describe.openapi)

    async def mcp(self, request: Request) -> Response:
        """MCP of an app."""
        parts = self._given()
        return await parts.mcp.answer(parts.apps.get((request.params or {})["app"]), request, bearer(request))

    async def _described(self, app: App, request: Request, document: Any) -> Response:
        app.ready()
        await self._given().caller.allow(app, None, bearer(request))
        return json_response(document(app))

    async def handle(self, request: Request) -> Response | None:
        """`POST /data`, and everything at an app's own host name."""
        parts = self._given()
        if request.path == DATA_PATH:
            return await parts.envelope.answer(request) if request.method == "POST" else None
        app = parts.apps.by_hostname.get(request.hostname)
        if app is None:
            return None
        path = request.path[1:]
        if request.method == "GET" and path in ("schema", "openapi.json"):
            return await self._described(app, request, describe.schema if path == "schema" else describe.openapi)
        if request.method != "POST" or not path:
            return error_response(405, "functions are called by POST", (("Allow", "POST"),)) if path else None
        if path == "mcp":
            return await parts.mcp.answer(app, request, bearer(request))
        return await self._call(app, path, request)


class _Parts:
    """What `start` makes and `stop` lets go of."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.settings = WasmSettings.read(services.config)
        self.store = AppStore(services.storage, self.settings)
        self.engine = Engine()
        self.pool = Pool(asyncio.get_running_loop(), self.settings.pool(), services.clock.monotonic)
        self.caller = Caller(services, self.pool)
        self.apps = Apps(services, self.settings, self.store, self.engine, self._changed)
        self.mcp = MCPServer(self.caller)
        self.envelope = Envelope(self)
        self.sharing = Sharing(services, self.apps, self.store_meters)
        self.tasks: list[asyncio.Task[None]] = []
        self.started = False
        self._storing = asyncio.Lock()

    def _changed(self) -> None:
        self.pool.keep_only(self.apps.by_name)
        self.caller.keep_only(self.apps.by_name)
        if self.started:  # before that, who starts us asks by itself
            self.services.config_changed()

    async def load(
        self, name: str, document: Mapping[str, Any] | None, code: bytes | None, caller: Token
    ) -> tuple[App, bool]:
        """Load or replace an app. It goes on when the client does not wait: half a compilation is of no use.

        Args: document: what is said of it; None: as it was, or by default.
        """
        known = self.apps.by_name.get(name)
        if document is None and known is not None:
            spec = replace(known.record.spec, keep_data=False, brought_key=None)  # consent and key are given each time
        else:
            spec = AppSpec.read(name, document or {}, self.settings)
        return await result_of(asyncio.ensure_future(self._shared(self.apps.load(spec, code, caller))))

    async def unload(self, name: str, caller: Token) -> None:
        """Forget an app."""
        await result_of(asyncio.ensure_future(self._shared(self.apps.unload(name, caller))))

    async def unlock(self, name: str, key: bytes, caller: Token) -> App:
        """Take a developer's key again."""
        return await self._shared(self.apps.unlock(name, key, caller))

    async def _shared(self, change: Awaitable[_T]) -> _T:
        """Make a change, and have every other worker make it too."""
        done = await change
        await self.sharing.spread()
        return done

    async def keep_following(self) -> None:
        """Do as the other workers did."""
        if self.services.status().worker_count == 1:
            return
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                await self.sharing.look()
            except EnclaveError as error:
                self.services.logger.error("the apps of the other workers are not taken: %s", type(error).__name__)

    async def keep_metering(self) -> None:
        """Store what calls have cost, now and then."""
        while True:
            await asyncio.sleep(METER_SECONDS)
            try:
                await self.store_meters()
            except EnclaveError as error:
                self.services.logger.error("what calls have cost is not stored: %s", type(error).__name__)

    async def store_meters(self) -> None:
        """Add what this worker measured to what is stored. What cannot be stored now is kept for the next time."""
        async with self._storing:
            for app in list(self.apps.by_name.values()):
                measured, app.meter = app.meter, AppMeter()
                if not measured.functions:
                    continue
                try:
                    await self._store_meter(app.name.encode(), measured)
                except EnclaveError:
                    measured.add(app.meter)
                    app.meter = measured
                    raise

    async def _store_meter(self, name: bytes, measured: AppMeter) -> None:
        while True:
            item = await self.store.meters.get(name)
            total = AppMeter() if item is None else AppMeter.decode(item.value)
            total.add(measured)
            # Another worker may write the same: then one of all who try has written, and the others try again.
            with contextlib.suppress(VersionConflict):
                await self.store.meters.put(name, total.encode(), 0 if item is None else item.version)
                return

    async def close(self) -> None:
        """End everything, in the order in which it depends."""
        self.sharing.close()
        for task in (*self.tasks, *self.apps.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, *self.apps.tasks, return_exceptions=True)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.pool.close)
        try:
            await self.store_meters()
        except EnclaveError as error:
            self.services.logger.error("what calls have cost is not stored: %s", type(error).__name__)
        await loop.run_in_executor(None, self.apps.close)
        self.engine.close()
