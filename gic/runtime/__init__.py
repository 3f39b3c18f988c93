"""Networks on numpy arrays: what the codec runs on."""
