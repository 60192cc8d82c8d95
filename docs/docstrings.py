"""Docstrings in which one line documents several parameters, for the API pages."""

import re
from typing import Any

from griffe import Extension, Object

# "    first, second: text" in a section; what follows a space would be read as a type.
SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+):(?= )", re.MULTILINE)


class SeveralNames(Extension):
    """Join the names of one entry, so that they are read as one name."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = SEVERAL.sub(
                lambda match: f"{match[1]}{match[2].replace(', ', ',')}:", obj.docstring.value
            )
