"""The images that sessions can be made of."""

import platform

from roost.engines.base import Engine
from roost.server.domain.images import Image, find_image, host_images


class Images:
    """The catalogue; read once from the nodes, since an operator who installs an interpreter restarts the server."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._images: list[Image] = []

    async def open(self) -> None:
        """Register an image for each interpreter that every node has."""
        nodes = await self._engine.nodes()
        found = [await (await self._engine.agent(node.node_id)).interpreters() for node in nodes]
        common = [one for one in found[0] if all(one in others for others in found)] if found else []
        self._images = host_images(common, platform.machine())

    def find(self, reference: str, architecture: str | None = None) -> Image:
        """The image of a reference or alias (see `find_image`)."""
        return find_image(reference, self._images, architecture)
