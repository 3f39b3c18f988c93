"""Pictures to files and back: encoder, decoder, rate, tiles, and weights on disk."""
