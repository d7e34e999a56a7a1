"""Named data sets and forecasting tasks: clinical data, synthetic series, small sets."""

from deltaflow._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
