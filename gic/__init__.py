"""gic: a generative image codec with one continuous rate knob, and the framework that trains it."""

__version__ = "0.1.0"
