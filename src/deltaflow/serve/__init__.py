"""A live forecaster over HTTP, which `deltaflow serve` starts. Needs the extra ``serve``."""
