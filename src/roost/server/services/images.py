"""The images that sessions can be made of: this machine's own, and those with packages that are built here."""

import asyncio
import contextlib
import platform
import time
from collections.abc import AsyncGenerator, Mapping

import msgspec
import structlog

from roost.engines.base import Engine
from roost.server.auth.base import Caller
from roost.server.domain.images import (
    Image,
    check_alias,
    check_reference,
    find_image,
    follow,
    host_images,
    labelled,
)
from roost.server.domain.requirements import mask_credentials, read_pyproject, read_requirements
from roost.server.store import images as rows
from roost.server.store.base import Store
from roost.server.store.images import ImageRow
from roost.wire.environments import Environment, EnvironmentRequest
from roost.wire.errors import Conflict, ImageNotFound, InsufficientPrivilege, InvalidParameters, NotFound
from roost.wire.sandboxes import Interpreter

log = structlog.get_logger(__name__)


class WantedImage(msgspec.Struct, frozen=True, kw_only=True):
    """A request for an image with packages."""

    reference: str
    requirements: str | None = None
    """The text of a `requirements.txt`; or"""
    pyproject: str | None = None
    """that of a `pyproject.toml`."""
    python: str | None = None
    """The version of Python; None takes the newest."""
    labels: Mapping[str, str] = {}
    sdist: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A `WantedImage` that may be built."""

    reference: str
    base: Image
    requirements: str
    labels: Mapping[str, str]


class Images:
    """The catalogue. Host images are read from the nodes once, since an operator who installs a language restarts the
    server; the others are written down, and remembered here.
    """

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine = engine
        self._store = store
        self._host: list[Image] = []
        self._built: dict[str, Image] = {}
        self._aliases: dict[str, str] = {}
        self._changing = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._building = 0

    async def open(self) -> None:
        """Register an image for each interpreter that every node has, and remember those that were built."""
        nodes = await self._engine.nodes()
        found = [await (await self._engine.agent(node.node_id)).interpreters() for node in nodes]
        common = [one for one in found[0] if all(one in others for others in found)] if found else []
        self._host = host_images(common, platform.machine())
        self._built = {row.reference: _image(row) for row in await self._store.read(rows.every)}
        self._aliases = await self._store.read(rows.aliases)
        async with self._changing:
            await self._collect()

    def find(self, reference: str, architecture: str | None = None) -> Image:
        """The image of a reference or alias (see `find_image`)."""
        return find_image(follow(reference, self._aliases), self.all(), architecture)

    def all(self) -> list[Image]:
        """Host images, then those that were built, by reference."""
        return [*self._host, *(self._built[reference] for reference in sorted(self._built))]

    def aliases_of(self, image: Image) -> list[str]:
        """Every other name of an image: its own, and what administrators called it."""
        given = []
        for alias in sorted(self._aliases):
            with contextlib.suppress(ImageNotFound):
                if self.find(alias) == image:
                    given.append(alias)
        return [*(alias for alias in image.aliases if alias not in self._aliases), *given]

    async def packages(self, image: Image) -> tuple[str, str] | None:
        """What was required of an image's packages, and what that was solved to; None for a host image.

        Neither has the credentials of addresses.
        """
        for row in await self._store.read(rows.every):
            if row.reference == image.reference:
                # Earlier servers wrote down addresses with their credentials.
                return mask_credentials(row.requirements), mask_credentials(row.lock)
        return None

    async def plan(self, caller: Caller, wanted: WantedImage) -> Plan:
        """Check a request for an image before anything is done for it.

        Raises:
            InsufficientPrivilege: only the platform's administrators build images.
            InvalidParameters, ImageNotFound, Conflict: it cannot be built.
        """
        _check_administrator(caller)
        reference = check_reference(wanted.reference)
        if wanted.sdist:
            raise InvalidParameters(
                "source distributions are not built yet, since that executes what is in them",
                hint="leave --sdist out; packages that have no wheel are named then",
            )
        base = find_image("python" if wanted.python is None else f"python:{wanted.python}", self._host)
        if base.interpreter.language != "python":
            raise InvalidParameters(f"{base.reference} is no Python")
        if reference in self._aliases or any(reference in (one.reference, *one.aliases) for one in self._host):
            raise Conflict(f"{reference} is the name of another image", hint="choose another name or tag")
        if (wanted.requirements is None) == (wanted.pyproject is None):
            raise InvalidParameters("send either `requirements` or `pyproject`")
        labelled(base, wanted.labels)
        if wanted.pyproject is not None:
            # A file may be made so that it takes long to read: in a thread, and in no more than one.
            async with self._reading:
                requirements = await asyncio.to_thread(read_pyproject, wanted.pyproject, base.interpreter.version)
        else:
            requirements = read_requirements(wanted.requirements or "")
        return Plan(reference=reference, base=base, requirements=requirements, labels=wanted.labels)

    async def build(self, plan: Plan) -> AsyncGenerator[str | Image, None]:
        """Build an image on every node; gives what the builder says, and at the end the image.

        It takes the place of an earlier one of that name; sessions of that keep what they have. One that is given up
        changes nothing.

        Raises:
            InvalidParameters: the requirements cannot be met.
            AgentError: a node failed.
        """
        self._building += 1
        try:
            made: Environment | None = None
            for node in await self._engine.nodes():
                agent = await self._engine.agent(node.node_id)
                request = EnvironmentRequest(
                    interpreter=plan.base.interpreter,
                    requirements=plan.requirements,
                    lock=made.lock if made is not None else None,
                )
                async with contextlib.aclosing(agent.build(request)) as steps:
                    async for step in steps:
                        if isinstance(step, Environment):
                            made = step
                        else:
                            yield step
            assert made is not None
            row = ImageRow(
                reference=plan.reference,
                base=plan.base.reference,
                architecture=plan.base.architecture,
                interpreter=msgspec.to_builtins(plan.base.interpreter),
                digest=made.digest,
                # Who builds needs the credentials of an address, and nobody afterwards.
                requirements=mask_credentials(plan.requirements),
                lock=mask_credentials(made.lock),
                labels=plan.labels,
                size_bytes=made.size_bytes,
                created_at=time.time(),
            )
            async with self._changing:
                await self._store.write(lambda c: rows.put(c, row))
                image = self._built[row.reference] = _image(row)
        finally:
            self._building -= 1
        async with self._changing:
            await self._collect()
        log.info("image.built", image=image.reference, digest=made.digest)
        yield image

    async def remove(self, caller: Caller, reference: str) -> None:
        """Remove an image that was built, and its packages where nobody else needs them.

        Raises:
            InsufficientPrivilege: only the platform's administrators remove images.
            ImageNotFound: there is no such image.
            Conflict: it is the host's, it has an alias, or live sessions use it.
        """
        _check_administrator(caller)
        async with self._changing:
            image = find_image(reference, self.all())
            if image.environment is None:
                raise Conflict(f"{image.reference} is the host's own", hint="uninstall what it is made of")
            if named := [alias for alias, target in sorted(self._aliases.items()) if _names(target, image)]:
                raise Conflict(f"{', '.join(named)} is an alias of it", hint="`roost image alias --delete` first")
            in_use = (await self._store.read(rows.environments_in_use)).get(image.environment, [])
            if in_use:
                raise Conflict(
                    f"{len(in_use)} live sessions use {image.reference}, such as {in_use[0]}",
                    hint="end them first with `roost rm`",
                )
            await self._store.write(lambda c: rows.delete(c, image.reference))
            del self._built[image.reference]
            await self._collect()
        log.info("image.removed", image=image.reference)

    async def put_alias(self, caller: Caller, alias: str, target: str) -> Image:
        """Let an alias name an image, or another alias of one; what it named before does not count any more.

        Raises:
            InsufficientPrivilege: only the platform's administrators name images.
            InvalidParameters: it is no name.
            Conflict: it is the reference of an image.
            ImageNotFound: it would name nothing.
        """
        _check_administrator(caller)
        check_alias(alias)
        async with self._changing:
            if any(alias == image.reference for image in self.all()):
                raise Conflict(f"{alias} is the name of an image itself", hint="choose another name")
            image = find_image(follow(target, {**self._aliases, alias: target}), self.all())
            await self._store.write(lambda c: rows.put_alias(c, alias, target))
            self._aliases[alias] = target
        return image

    async def delete_alias(self, caller: Caller, alias: str) -> None:
        """Forget an alias.

        Raises:
            InsufficientPrivilege: only the platform's administrators name images.
            NotFound: there is no such alias.
        """
        _check_administrator(caller)
        async with self._changing:
            if alias not in self._aliases:
                raise NotFound(f"there is no alias {alias!r}", hint="`roost image ls` tells those that are there")
            await self._store.write(lambda c: rows.delete_alias(c, alias))
            del self._aliases[alias]

    async def _collect(self) -> None:
        """Remove packages that no image and no live session needs; not while any are made, which nobody needs yet."""
        if self._building:
            return
        needed = {image.environment for image in self._built.values()}
        needed |= set(await self._store.read(rows.environments_in_use))
        for node in await self._engine.nodes():
            agent = await self._engine.agent(node.node_id)
            for digest in await agent.environments():
                if digest not in needed:
                    with contextlib.suppress(Conflict):  # a sandbox is just ending; the next collection takes it
                        await agent.remove_environment(digest)


def _image(row: ImageRow) -> Image:
    image = Image(
        reference=row.reference,
        aliases=(row.reference.removesuffix(":latest"),) if row.reference.endswith(":latest") else (),
        architecture=row.architecture,
        interpreter=msgspec.convert(row.interpreter, Interpreter),
        base=row.base,
        environment=row.digest,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
    )
    return labelled(image, row.labels)


def _names(target: str, image: Image) -> bool:
    try:
        return find_image(target, [image]) is image
    except ImageNotFound:
        return False


def _check_administrator(caller: Caller) -> None:
    if caller.role != "superadmin":
        raise InsufficientPrivilege("only administrators of the platform change its images", hint="ask one of them")
