"""Compute sessions (spec/client-sdk.md §7)."""

import asyncio
import contextlib
import functools
import secrets
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import quote
from uuid import UUID, uuid4

import aiohttp

from roost.client.active import api_session, current_session
from roost.client.archives import HOME, extract, inside_home, place, read_parts
from roost.client.exceptions import ArgumentError, BackendAPIVersionError, BackendClientError
from roost.client.func.base import BaseFunction, api_function
from roost.client.repeats import POLL_AGAIN_S, again, is_broken
from roost.client.request import AttachedFile, Request, Response
from roost.client.types import Undefined, undefined
from roost.client.uploads import beyond_limits, files_to_upload
from roost.client.utils import ProgressBar, ProgressReportingReader, progress_bar
from roost.client.versioning import get_id_or_name, get_naming
from roost.client.websocket import WebSocketContextManager
from roost.wire.ids import SESSION_NAME, SESSION_REFERENCE

__all__ = ("ComputeSession",)

_BATCH_OPTIONS = {"clean": None, "build": None, "buildLog": False, "exec": None}


def drop(mapping: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """A copy without the entries that equal `value`, in mappings within too."""
    return {
        key: drop(item, value) if isinstance(item, Mapping) else item
        for key, item in mapping.items()
        if isinstance(item, Mapping) or item != value
    }


def _refused(name: str, hint: str) -> Callable[..., NoReturn]:
    """A function of the original that there is no way to do here yet; it says so, and what to do instead."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise BackendAPIVersionError(f"{name} is not available: {hint}")

    refuse.__name__ = name
    refuse.__doc__ = f"Not available: {hint}."
    return refuse


class ComputeSession(BaseFunction):
    """A session on the server, referred to by name or id. Making the object sends nothing."""

    id: UUID | None
    name: str | None
    owner_access_key: str | None
    created: bool
    status: str
    service_ports: list[dict[str, Any]]
    domain: str
    group: str
    _seen: dict[str, int]
    """The last event of each open run that this object has had; servers of ours tell, others do not."""

    def __init__(self, name: str, owner_access_key: str | None = None) -> None:
        self.id = None
        self.name = name
        self.owner_access_key = owner_access_key
        self._seen = {}

    @classmethod
    def from_session_id(cls, session_id: UUID) -> Self:
        """Refer to a session by its id."""
        made = cls.__new__(cls)
        made.id = session_id
        made.name = None
        made.owner_access_key = None
        made._seen = {}
        return made

    def get_session_identity_params(self) -> dict[str, str]:
        """What names this session in a query."""
        if self.id is not None:
            return {"sessionId": str(self.id)}
        if self.name is None:
            raise ArgumentError("this session has neither a name nor an id")
        params = {"sessionName": self.name}
        if self.owner_access_key:
            params["owner_access_key"] = self.owner_access_key
        return params

    @api_function
    @classmethod
    async def hello(cls) -> dict[str, Any]:
        """What the server says of itself."""
        async with Request("GET", "/").fetch() as response:
            return dict(await response.json())

    @api_function
    @classmethod
    async def get_or_create(
        cls,
        image: str,
        *,
        name: str | None = None,
        type_: str = "interactive",
        starts_at: str | None = None,
        enqueue_only: bool = False,
        max_wait: int = 0,
        no_reuse: bool = False,
        mounts: list[str] | None = None,
        mount_map: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        startup_command: str | None = None,
        resources: Mapping[str, str | int] | None = None,
        resource_opts: Mapping[str, str | int] | None = None,
        cluster_size: int = 1,
        cluster_mode: str = "single-node",
        domain_name: str | None = None,
        group_name: str | None = None,
        bootstrap_script: str | None = None,
        tag: str | None = None,
        scaling_group: str | None = None,
        owner_access_key: str | None = None,
        preopen_ports: list[int] | None = None,
        assign_agent: list[str] | None = None,
        dependencies: Sequence[str | UUID] | None = None,
        callback_url: str | None = None,
        architecture: str | None = None,
    ) -> Self:
        """Create a session, or reuse the live one of that name and image.

        With a server of ours the request has an `Idempotency-Key`, and is sent once more where its connection breaks.

        Args:
            starts_at: for batch sessions: ISO 8601, or a time from now such as `45m`.
            max_wait: seconds to wait for it; 0 is without limit.
            startup_command: what a batch session runs.
            dependencies: ids or names of sessions that have to succeed first.
            callback_url: hears of the session's life.
        """
        session = current_session()
        version, config = session.api_version, session.config
        name = _checked_name(name if name is not None else new_name())
        domain = domain_name if domain_name is not None else config.domain
        group = group_name if group_name is not None else config.group
        settings: dict[str, Any] = {
            "mounts": [*(mounts or ()), *config.vfolder_mounts],
            "environ": envs,
            "resources": resources if resources is not None else {},
            "resource_opts": resource_opts if resource_opts is not None else {},
            "scalingGroup": scaling_group,
        }
        body: dict[str, Any] = {
            "tag": tag,
            get_naming(version, "name_arg"): name,
            "config": settings,
            ("image" if version > (4, "20181215") else "lang"): image,
        }
        if version >= (4, "20190615"):
            body |= {
                "owner_access_key": owner_access_key,
                "domain": domain,
                "group": group,
                "type": type_,
                "enqueueOnly": enqueue_only,
                "maxWaitSeconds": max_wait,
                "reuseIfExists": not no_reuse,
                "startupCommand": startup_command,
            }
        if version >= (5, "20191215"):
            settings |= {"mount_map": mount_map if mount_map is not None else {}, "preopen_ports": preopen_ports}
            body |= {"starts_at": starts_at, "bootstrap_script": bootstrap_script}
        if version >= (6, "20200815"):
            body |= {"clusterSize": cluster_size, "clusterMode": cluster_mode}
        else:
            settings["clusterSize"] = cluster_size
        if assign_agent is not None:
            settings["agentList"] = assign_agent
        later = {"dependencies": dependencies, "callback_url": callback_url, "architecture": architecture}
        body |= {key: value for key, value in later.items() if value is not None}
        answer = await _create(f"/{get_naming(version, 'path')}", body)
        return cls._made(answer, name, owner_access_key, domain, group)

    @api_function
    @classmethod
    async def create_from_template(
        cls,
        template_id: str,
        *,
        name: str | Undefined | None = undefined,
        type_: str | Undefined = undefined,
        starts_at: str | None = None,
        enqueue_only: bool | Undefined = undefined,
        max_wait: int | Undefined = undefined,
        no_reuse: bool | Undefined = undefined,
        image: str | Undefined = undefined,
        mounts: list[str] | Undefined = undefined,
        mount_map: Mapping[str, str] | Undefined = undefined,
        envs: Mapping[str, str] | Undefined = undefined,
        startup_command: str | Undefined = undefined,
        resources: Mapping[str, str | int] | Undefined = undefined,
        resource_opts: Mapping[str, str | int] | Undefined = undefined,
        cluster_size: int | Undefined = undefined,
        cluster_mode: str | Undefined = undefined,
        domain_name: str | Undefined = undefined,
        group_name: str | Undefined = undefined,
        bootstrap_script: str | Undefined = undefined,
        tag: str | Undefined = undefined,
        scaling_group: str | Undefined = undefined,
        owner_access_key: str | Undefined = undefined,
        dependencies: Sequence[str | UUID] | Undefined = undefined,
        callback_url: str | Undefined = undefined,
        architecture: str | Undefined = undefined,
    ) -> Self:
        """Create a session of a template, or reuse the live one of that name and image.

        Args:
            template_id: see `SessionTemplate`. What else is given takes the place of what the template says, also
                where it is empty; for the rest see `get_or_create`.
        """
        session = current_session()
        version, config = session.api_version, session.config
        if name is None or name is undefined:
            # Names end with a letter, a digit or an underscore.
            name = f"pysdk-{secrets.token_urlsafe(8).replace('-', '_')}"
        if mounts is not undefined or config.vfolder_mounts:
            mounts = [*(mounts if mounts is not undefined else ()), *config.vfolder_mounts]
        settings: dict[str, Any] = {
            "mounts": mounts,
            "mount_map": mount_map,
            "environ": envs,
            "resources": resources,
            "resource_opts": resource_opts,
            "scalingGroup": scaling_group,
        }
        body: dict[str, Any] = {
            "template_id": template_id,
            get_naming(version, "name_arg"): _checked_name(name),
            "config": settings,
            "image": image,
            "tag": tag,
            "owner_access_key": owner_access_key,
            "domain": domain_name,
            "group": group_name,
            "type": type_,
            "enqueueOnly": enqueue_only,
            "maxWaitSeconds": max_wait,
            "reuseIfExists": undefined if no_reuse is undefined else not no_reuse,
            "startupCommand": startup_command,
            "starts_at": starts_at,
            "bootstrap_script": bootstrap_script,
            "dependencies": dependencies,
            "callback_url": callback_url,
            "architecture": architecture,
        }
        if version >= (6, "20200815"):
            body |= {"clusterSize": cluster_size, "clusterMode": cluster_mode}
        else:
            settings["clusterSize"] = cluster_size
        path = f"/{get_naming(version, 'path')}/_/create-from-template"
        answer = await _create(path, drop(body, undefined))
        return cls._made(
            answer,
            name,
            None if owner_access_key is undefined else owner_access_key,
            config.domain if domain_name is undefined else domain_name,
            config.group if group_name is undefined else group_name,
        )

    @classmethod
    def _made(cls, answer: Mapping[str, Any], name: str, owner: str | None, domain: str, group: str) -> Self:
        """What a creation was answered with."""
        made = cls(name, owner)
        if current_session().api_version[0] >= 5:
            made.id = UUID(answer["sessionId"])
        made.created = answer.get("created", True)
        made.status = answer.get("status", "RUNNING")
        made.service_ports = _service_ports(answer)
        made.domain, made.group = domain, group
        return made

    @api_function
    async def destroy(self, *, forced: bool = False, recursive: bool = False) -> Any:
        """End the session; the statistics where the server sends some.

        Args:
            recursive: end those that depend on it first; the statistics are a list then, its own first.
        """
        params: dict[str, str] = {}
        if self.owner_access_key is not None:
            params["owner_access_key"] = self.owner_access_key
        if forced:
            params["forced"] = "true"
        if recursive:
            params["recursive"] = "true"
        async with Request("DELETE", self._path(), params=params).fetch() as response:
            return await response.json() if response.status == 200 else None

    @api_function
    async def restart(self) -> None:
        """Restart the session's containers."""
        async with Request("PATCH", self._path(), params=self._params()).fetch():
            pass

    @api_function
    async def interrupt(self) -> None:
        """Interrupt whatever runs."""
        async with Request("POST", self._path("interrupt"), params=self._params()).fetch():
            pass

    @api_function
    async def complete(self, code: str, opts: Mapping[str, Any] | None = None) -> Any:
        """What could follow this code."""
        request = Request("POST", self._path("complete"), params=self._params())
        request.set_json({"code": code, "options": _completion_options(opts or {})})
        async with request.fetch() as response:
            return await response.json()

    @api_function
    async def get_info(self) -> Any:
        """The session's properties."""
        async with Request("GET", self._path(), params=self._params()).fetch() as response:
            return await response.json()

    @api_function
    async def get_logs(self) -> Any:
        """The session's log, under `result` and `logs`."""
        async with Request("GET", self._path("logs"), params=self._params()).fetch() as response:
            return await response.json()

    @api_function
    async def get_dependency_graph(self) -> Any:
        """What the session depends on, and what that depends on."""
        async with Request("GET", self._path("dependency-graph"), params=self._params()).fetch() as response:
            return await response.json()

    @api_function
    async def execute(
        self,
        run_id: str | None = None,
        code: str | None = None,
        mode: str = "query",
        opts: Mapping[str, Any] | None = None,
    ) -> Any:
        """Start a run, or go on with one; the `result` object.

        With a server of ours each call says what it has, so that nothing is missed and nothing comes twice. A call with
        mode `continue` whose connection breaks is repeated; after a broken start or input, go on with `continue`.
        """
        mode = "input" if mode == "user-input" else mode
        body: dict[str, Any] = {"mode": mode, "code": code, "runId": run_id}
        if mode in {"query", "continue", "input"}:
            if code is None:
                raise ArgumentError(f"mode {mode!r} needs code, if only an empty text")
        elif mode == "batch":
            body["options"] = {key: (opts or {}).get(key, default) for key, default in _BATCH_OPTIONS.items()}
        elif mode == "complete":
            body |= {"code": code or "", "options": _completion_options(opts or {})}
        else:
            raise BackendClientError(f"no such mode of execution: {mode!r}")
        path = self._path("complete") if mode == "complete" else self._path()
        if mode == "query" and run_id is not None:
            self._seen.setdefault(run_id, 0)
        for pause_s in POLL_AGAIN_S if mode == "continue" else ():
            try:
                return await self._poll(path, body)
            except (aiohttp.ClientError, BackendClientError) as error:
                if not is_broken(error):
                    raise
            await asyncio.sleep(pause_s)
        return await self._poll(path, body)

    async def _poll(self, path: str, body: Mapping[str, Any]) -> Any:
        request = Request("POST", path, params=self._params())
        request.set_json(body)
        run_id, mode = body["runId"], body["mode"]
        seen = 0 if run_id is None else self._seen.get(run_id)
        if seen is not None and mode != "complete":
            request.headers["X-Roost-After"] = str(seen)
        async with request.fetch() as response:
            result = (await response.json())["result"]
            if (seq := response.headers.get("X-Roost-Seq")) is not None:
                self._seen[result["runId"]] = int(seq)
        if result.get("status") in ("finished", "exec-timeout"):
            self._seen.pop(result.get("runId"), None)
        return result

    def stream_execute(
        self, code: str = "", *, mode: str = "query", opts: Mapping[str, Any] | None = None
    ) -> WebSocketContextManager:
        """Run code over a WebSocket, inside an `AsyncSession`: `async with session.stream_execute(code) as stream`.

        The frames are objects with `status` and `console`; after `waiting-input` send one line with `send_str`.
        """
        if not current_session().is_async:
            raise ArgumentError("streams work only inside an AsyncSession")
        if mode not in ("query", "batch"):
            raise BackendClientError(f"no such mode of a stream: {mode!r}")
        start = {"code": code, "mode": mode, "options": {**_BATCH_OPTIONS, **(opts or {})} if mode == "batch" else {}}
        request = Request("GET", f"/stream{self._path('execute')}", params=self._params())
        return request.connect_websocket(on_enter=lambda socket: socket.send_json(start))

    @api_function
    async def upload(
        self, files: Sequence[str | Path], basedir: str | Path | None = None, show_progress: bool = False
    ) -> Response:
        """Upload files from beneath `basedir` (here, if not given); folders with all that they hold.

        Relative paths are taken from here, or where there is no such file, from `basedir`.

        Servers of ours take any number of files of any size, others 20 files below 1 MiB. To ours a file is sent again
        where its connection breaks.

        Args:
            show_progress: draw a bar on stderr, if that is a terminal.
        """
        base = (Path(basedir) if basedir is not None else Path.cwd()).resolve()
        found = files_to_upload(files, base)
        problem = beyond_limits(found)
        if problem is not None and not current_session().is_roost:
            raise ArgumentError(problem)
        total = sum(path.stat().st_size for path, _ in found)
        with progress_bar("uploading", total if show_progress else None) as bar:
            if problem is None:
                return await again(functools.partial(self._upload_form, found), bar, if_files=found)
            response = [await again(functools.partial(self._upload_alone, *one), bar, if_files=[one]) for one in found]
            return response[-1]

    async def _upload_form(self, found: Iterable[tuple[Path, str]], bar: ProgressBar) -> Response:
        request = Request("POST", self._path("upload"), params=self._params())
        with contextlib.ExitStack() as opened:
            attached = []
            for path, remote in found:
                stream = opened.enter_context(ProgressReportingReader(path, tqdm_instance=bar))
                attached.append(AttachedFile(remote, stream, "application/octet-stream"))
            request.attach_files(attached)
            async with request.fetch() as response:
                return response

    async def _upload_alone(self, path: Path, remote: str, bar: ProgressBar) -> Response:
        request = Request("PUT", f"{self._path('files')}/{quote(remote)}", params=self._params())
        with ProgressReportingReader(path, tqdm_instance=bar) as stream:
            request.set_content(stream)
            async with request.fetch() as response:
                return response

    @api_function
    async def download(
        self, files: Sequence[str | Path], dest: str | Path = ".", show_progress: bool = False
    ) -> dict[str, list[str]]:
        """Download files and folders into the folder `dest`.

        Servers of ours send any number of any size, and again where their connection breaks, others 5 of at most 1 MiB.

        Args:
            show_progress: draw a bar on stderr, if that is a terminal.
        """
        paths = [Path(file).as_posix() for file in files]
        with progress_bar("downloading", 0 if show_progress else None) as bar:
            if current_session().is_roost:
                names = []
                for path in paths:
                    names += await again(functools.partial(self._download_alone, path, Path(dest)), bar)
            else:
                names = await self._download_archives(paths, Path(dest), bar)
        return {"file_names": names}

    async def _download_archives(self, paths: list[str], dest: Path, bar: ProgressBar) -> list[str]:
        request = Request("GET", self._path("download"), params=self._params())
        request.set_json({"files": paths})
        names: list[str] = []
        async with request.fetch() as response:
            for archive in await read_parts(response.raw_response):
                bar.update(len(archive))
                names.extend(extract(archive, dest))
        return names

    async def _download_alone(self, path: str, dest: Path, bar: ProgressBar) -> list[str]:
        inside = inside_home(path)
        request = Request("GET", f"{self._path('files')}/{quote(str(inside))}", params=self._params())
        with tempfile.TemporaryFile() as content:
            async with request.fetch() as response:
                is_folder = response.content_type == "application/x-tar"
                async for piece in response.content.iter_chunked(1 << 20):
                    content.write(piece)
                    bar.update(len(piece))
            content.seek(0)
            target = dest / (inside.name or HOME.name)  # as official servers name what they send
            return await asyncio.to_thread(place, content, target, is_folder, within=dest)

    @api_function
    async def list_files(self, path: str | Path = ".") -> Any:
        """The entries of a folder in the session."""
        request = Request("GET", self._path("files"), params=self._params())
        request.set_json({"path": Path(path).as_posix()})
        async with request.fetch() as response:
            return await response.json()

    @api_function
    async def rename(self, new_id: str) -> None:
        """Give the session another name."""
        params = {**self._params(), "name": _checked_name(new_id)}
        async with Request("POST", self._path("rename"), params=params).fetch():
            pass
        self.name = new_id

    paginated_list = _refused("paginated_list", "`GET /session` and `roost ps` list sessions")
    get_task_logs = _refused("get_task_logs", "get_logs tells what a session wrote, also after its end")
    get_status_history = _refused("get_status_history", "`GET /session/NAME/history` and `roost why NAME` tell it")
    get_abusing_report = _refused("get_abusing_report", "`roost why NAME` tells why a session was ended")
    commit = _refused("commit", "`roost image build` makes images")
    listen_events = stream_events = _refused("listen_events", "pass callback_url to get_or_create to hear of a session")
    stream_pty = _refused("stream_pty", "`roost shell NAME` is an interactive session")
    stream_app_info = _refused("stream_app_info", "sessions have no apps")
    start_service = _refused("start_service", "sessions have no apps")

    def _path(self, verb: str = "") -> str:
        version = api_session.get().api_version
        reference = get_id_or_name(version, self)
        if not SESSION_REFERENCE.fullmatch(reference):
            raise ArgumentError(f"not a session: {reference!r:.100} (an id, a name, or the beginning of one)")
        path = f"/{get_naming(version, 'path')}/{reference}"
        return f"{path}/{verb}" if verb else path

    def _params(self) -> dict[str, str]:
        return {"owner_access_key": self.owner_access_key} if self.owner_access_key else {}


def new_name() -> str:
    """The name of a session whose creator has not chosen one."""
    return f"pysdk-{secrets.token_hex(5)}"


async def _create(path: str, body: Mapping[str, Any]) -> Any:
    """Send a creation; servers of ours recognise it when it is sent again."""
    request = Request("POST", path)
    request.set_json(body)
    if not current_session().is_roost:
        async with request.fetch() as response:
            return await response.json()
    request.headers["Idempotency-Key"] = str(uuid4())
    try:
        async with request.fetch() as response:
            return await response.json()
    except (aiohttp.ClientError, BackendClientError) as error:
        if not is_broken(error):
            raise
    async with request.fetch() as response:
        return await response.json()


def _checked_name(name: str) -> str:
    if not SESSION_NAME.fullmatch(name):
        raise ArgumentError(
            f"not a session name: {name!r} (4 to 64 letters, digits and underscores; dots and hyphens inside)"
        )
    return name


def _service_ports(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    ports = answer.get("servicePorts")
    return list(ports if ports is not None else answer.get("service_ports") or ())


def _completion_options(opts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "row": int(opts.get("row", 0)),
        "col": int(opts.get("col", 0)),
        "line": opts.get("line", ""),
        "post": opts.get("post", ""),
    }
