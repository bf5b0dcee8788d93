"""Optional libraries, which are imported when they are needed."""

import importlib
from typing import Any


def import_optional(module: str, user: str, extra: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: Name of the module.
        user: What needs the library, for the message.
        extra: Extra of this package that installs it.

    Returns:
        The module.

    Raises:
        ImportError: The library is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ImportError(f"{user} needs {library}: pip install 'flag-aggregator[{extra}]'") from error
