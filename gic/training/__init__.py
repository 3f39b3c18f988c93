"""Lightning around the codec: objective, module, callbacks, evaluation, and the command line of ``fit``."""
