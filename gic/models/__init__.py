"""The networks: transforms, hyperprior, entropy model, reverse network, and the codec that they make together."""
