"""orchestrate: train large models on cheap, unreliable machines, and know what every dollar did."""

__version__ = "0.1.0"
