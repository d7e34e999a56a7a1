"""DataFrame → irregular data set → windows: everything that handles absolute time."""

from deltaflow._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
