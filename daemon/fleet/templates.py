"""What workers are launched from: one template for all pools, and one for each pool that was added since."""

from __future__ import annotations

from collections.abc import Collection

from ..config.settings import Config
from .backend import Backend, Template


class Templates:
    """The templates in use, by the name of a pool; under no name that of all others."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._templates: dict[str, Template] = {}

    def live(self, name: str, config: Config) -> Template:
        """The template of this name, made if there is none or it was lost (``SpawnError``)."""
        template = self._templates.get(name)
        if template is None or template.lost:
            template = self._templates[name] = self._backend.template(config)
        return template

    def drop(self, names: Collection[str]) -> None:
        """Whoever is launched under these names next finds the code as it is then."""
        for name in set(names) & self._templates.keys():
            self._templates.pop(name).close()

    def adopt(self, template: Template) -> None:
        """Launch everything from this one from now on."""
        self.close()
        self._templates[""] = template

    def close(self) -> None:
        """Close all."""
        self.drop(list(self._templates))
