"""Where the weights lie while a model runs: `offload` streams the blocks of a model that the device cannot hold."""
