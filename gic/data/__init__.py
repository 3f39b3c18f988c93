"""Pictures for training and evaluation: shards, streams, loaders."""
