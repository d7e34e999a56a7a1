"""Windows → forecast: the network, its training, and its predictor."""
