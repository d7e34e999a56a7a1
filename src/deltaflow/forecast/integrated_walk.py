"""The integral of a random walk, as a kernel of scikit-learn."""

import numpy as np
from sklearn.gaussian_process.kernels import Kernel

from deltaflow.forecast.processes import integrated_walk


class IntegratedWalk(Kernel):
    """The covariance of the integral of a random walk, which starts at time 0.

    It has no parameters: the walk makes steps of variance 1 per unit of time.
    """

    def __init__(self):
        """scikit-learn takes the parameters of a kernel from here."""

    def __call__(self, X, Y=None, eval_gradient=False):
        """Return the covariances ``(n, m)`` between times ``(n, 1)`` and ``(m, 1)``.

        With ``eval_gradient``, return the gradient by no parameters ``(n, n, 0)``, too.
        """
        covariance = integrated_walk(X, (X if Y is None else Y).T)
        return (covariance, np.empty((*covariance.shape, 0))) if eval_gradient else covariance

    def diag(self, X):
        """Return the variances ``(n,)`` at times ``(n, 1)``."""
        return integrated_walk(X, X)[:, 0]

    def is_stationary(self):
        """Tell that covariances depend on more than the time between two values."""
        return False
