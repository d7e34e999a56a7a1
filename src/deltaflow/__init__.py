"""deltaflow: forecasting of irregularly sampled time series with neural flows, in GluonTS.

Its names are listed in ``__init__.pyi``. They are imported when they are first used (PEP 562), so
that `import deltaflow` costs nothing, and `import deltaflow.flows` imports only torch.
"""

from deltaflow._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
