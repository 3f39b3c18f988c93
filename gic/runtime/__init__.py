"""Networks on NumPy's arrays: what the codec runs on."""
