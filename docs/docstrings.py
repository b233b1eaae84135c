"""Lets mkdocstrings read this project's docstrings: Sphinx's roles and literal blocks."""

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):`([^`]+)`")


class PlainMarkup(Extension):
    """Turns ``:class:`Circuit``` into code and ``::`` before a block into a colon."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of each object once, when it has been collected."""
        if obj.docstring is not None:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)
